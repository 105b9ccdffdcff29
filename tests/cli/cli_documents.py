#!/usr/bin/env python3
"""The command lines in the documents: the program takes every option in them, and mpirun starts as many ranks as they need.

usage: cli_documents.py PROGRAM [unittest arguments]
"""

import pathlib
import re
import shlex
import sys
import unittest

import workplace

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ""


def command_lines(text):
    """Words of every line of an indented block that calls the program, continued lines joined; without what is only meant."""
    blocks = re.sub(r"\\\n\s*", " ", text)
    for line in re.findall(r"^    (.*\bweightcast (?:update|bench|plan|verify|snapshot|inspect|synth)\b.*)", blocks, re.MULTILINE):
        if not line.startswith(("#", "run: ")) and "..." not in line and "[" not in line:
            yield shlex.split(line, comments=True)


class Documents(unittest.TestCase):
    def problem_of(self, words):
        """What is wrong with a line, or nothing."""
        at = max(index for index, word in enumerate(words) if re.fullmatch(r"(.*/)?weightcast", word))
        done = workplace.run([PROGRAM, *words[at + 1:], "--print-config"])
        if done.returncode != 0:
            return done.stderr
        ranks = re.search(r"mpirun .*?-n (\d+)", " ".join(words[:at]))
        size = {name: int(value) for name, value in re.findall(r"(?m)^(trainers|tp|dp) = (\d+) ", done.stdout)}
        engines = size.get("tp", 1) * size.get("dp", 1)
        if ranks and "tp" in size and int(ranks[1]) != size["trainers"] + engines:
            return f"{ranks[0]} does not start {size} ranks"
        return "mpirun does not say how many ranks" if words[at + 1] in ("update", "bench") and not ranks else None

    def test_all(self):
        documents = [ROOT / "README.md", *ROOT.glob("jobs/*.md"), *ROOT.glob("lib/**/*.md")]
        lines = [(document, words) for document in documents for words in command_lines(document.read_text(encoding="utf-8"))]
        self.assertGreater(len(lines), 10)
        for document, words in lines:
            with self.subTest(document=document.name, line=shlex.join(words)):
                self.assertIsNone(self.problem_of(words))

    def test_what_is_noticed(self):
        text = "    run: weightcast plan --no\n    weightcast plan --modle tiny  # a comment\n" \
               "    mpirun -n 3 weightcast update \\\n        --tp 3\n    weightcast bench\n    weightcast plan --tp 3\nweightcast plan --no\n"
        lines = list(command_lines(text))
        self.assertEqual(len(lines), 4)
        wrong = [self.problem_of(words) or "" for words in lines]
        for problem, expected in zip(wrong, ("did you mean --model?", "-n 3 does not start", "how many ranks", "")):
            self.assertIn(expected, problem)
        self.assertEqual(wrong[3], "")


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    PROGRAM = sys.argv.pop(1)
    unittest.main()
