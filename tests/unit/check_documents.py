#!/usr/bin/env python3
"""Holds the documents for those who carry the work on against the tree: what they name in `backticks` exists.

In lib/DESIGN.md and tests/README.md every backticked word that looks like a name is looked up: a path (`plan/schedule.hpp`,
also when it is the end of a longer one), a type (`Schedule`: declared), a function (`make_plan()`: followed by a parenthesis),
a member (`Offers::accept()`: in a file that declares the class, or in its definition), an option (`--timeout`), or any other
word (`core`, `WC_BUSY`: in the sources, comments left out). In README.md and the documents of jobs/ and lib/ only paths are, of folders
of the tree. Links, [text](path#heading), lead to a file and to one of its headings, in all of them. The rooms of lib/DESIGN.md are those of lib/CMakeLists.txt, in that order. What contains a space is a command, and so is a block that is indented or fenced: neither is looked at, nor is build/.
Prints file:line of each name that is nowhere and exits with 1, or exits with 0.

Usage: check_documents.py [--root DIR] | --self-test
"""

import argparse
import functools
import os
import pathlib
import re
import sys
import tempfile

EVERY_NAME = ("lib/DESIGN.md", "tests/README.md")
PATHS_ONLY = ("README.md", "jobs/README.md")
SOURCES = {".hpp", ".cpp", ".h", ".c", ".cu", ".py", ".sh", ".sbatch", ".cmake", ".map", ".in"}
NOT_THE_TREE = {"build", "demo-model", "__pycache__"}
NAME = re.compile(r"[A-Za-z_]\w*(::~?\w+)*(\(\))?")
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*/|[\w.-]+(/[\w.-]+)+|[\w-]+\.(hpp|cpp|h|c|cu|md|py|sh|sbatch|txt|json|cmake|map)")


class Tree:
    """The files below a folder, without what is built there."""

    def __init__(self, root):
        self.root = root
        self.paths = set()
        for folder, folders, files in os.walk(root):
            folders[:] = [f for f in folders if f not in NOT_THE_TREE and not f.startswith(".")]
            at = pathlib.PurePosixPath(os.path.relpath(folder, root))
            self.paths |= {str(at / name) for name in [*folders, *files]}
        self.ends = set()
        for path in self.paths:
            parts = path.split("/")
            self.ends |= {"/".join(parts[i:]) for i in range(len(parts))}

    @functools.cached_property
    def texts(self):
        """Sources without comments. Those of this test say nothing about the tree."""
        result = {}
        for path in sorted(self.paths):
            suffix = pathlib.PurePosixPath(path).suffix
            name = path.rsplit("/", 1)[-1]
            if (suffix not in SOURCES and name != "CMakeLists.txt") or name == pathlib.Path(__file__).name:
                continue
            text = (self.root / path).read_text(errors="replace")
            if suffix in {".hpp", ".cpp", ".h", ".c", ".cu"}:
                text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
            elif suffix != ".py":
                text = re.sub(r"(?m)^\s*#(?!\s*(include|define)).*$", " ", text)
            result[path] = text
        return result

    @functools.cached_property
    def all_text(self):
        return "\n".join(self.texts.values())

    def has_path(self, path):
        return path.rstrip("/") in self.ends

    def declares(self, type_name, text):
        return re.search(rf"\b(class|struct|enum class|enum|union|using|concept|namespace) (\w+::)*{type_name}\b", text)

    def has_name(self, name):
        is_function = name.endswith("()")
        *scope, last = name.removesuffix("()").split("::")
        word = re.escape(last) + (r"\s*(<[^;()]*>)?\s*\(" if is_function else r"\b")
        if not scope:
            if re.fullmatch(r"[A-Z][a-z0-9]+([A-Z][a-z0-9]*)*", last) and not is_function:
                return bool(self.declares(last, self.all_text))
            return self.has_path(last) or bool(re.search(rf"(?<![\w-]){word}", self.all_text))
        return any(re.search(rf"\b{scope[-1]}::{word}", text) or
                   (self.declares(scope[-1], text) and re.search(rf"(?<!\w){word}", text)) for text in self.texts.values())

    def has_option(self, option):
        return f'"{option.removeprefix("--")}"' in self.all_text or re.search(rf"{option}\b(?!-)", self.all_text) is not None


def backticked(text):
    """The words in backticks with their line numbers, without blocks."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            for word in re.findall(r"`([^`]+)`", line):
                yield number, word


def problem_of(word, tree, paths_only):
    """What is wrong with a word, or nothing."""
    if " " in word or word.startswith("build/"):
        return None
    if paths_only:
        is_ours = re.fullmatch(r"(lib|apps|tests|tools|jobs)/[\w./-]*", word)
        return "no such path" if is_ours and not tree.has_path(word) else None
    if re.fullmatch(r"--[a-z-]+", word):
        return None if tree.has_option(word) else "no such option"
    if PATH.fullmatch(word):
        return None if tree.has_path(word) else "no such path"
    if NAME.fullmatch(word):
        return None if tree.has_name(word) else "no such name"
    return None


def headings(text):
    """The anchors of a document's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.strip().lower()).replace(" ", "-") for line in lines}


def link_problem(document, target, tree):
    """What is wrong with a link in a document, or nothing."""
    path, _, heading = target.partition("#")
    path = os.path.normpath(os.path.join(os.path.dirname(document), path)) if path else document
    if path not in tree.paths:
        return "leads nowhere"
    return "no such heading" if heading and heading not in headings((tree.root / path).read_text()) else None


def rooms_problem(root):
    """What is wrong with the list of rooms, or nothing."""
    built = re.findall(r"^weightcast_room\((\w+)", (root / "lib/CMakeLists.txt").read_text(), re.MULTILINE)
    section = re.search(r"^## Rooms\n(.*?)(?=^## |\Z)", (root / "lib/DESIGN.md").read_text(), re.MULTILINE | re.DOTALL)
    listed = re.findall(r"^- `(\w+)`:", section[1], re.MULTILINE) if section else []
    return None if listed == built else f"lib/DESIGN.md: lists the rooms {listed}, lib/CMakeLists.txt {built}"


def check(root):
    """All that is wrong with the documents, as lines of text."""
    tree = Tree(root)
    problems = []
    if {"lib/DESIGN.md", "lib/CMakeLists.txt"} <= tree.paths and (problem := rooms_problem(root)):
        problems.append(problem)
    others = {path for path in tree.paths if re.fullmatch(r"(jobs|lib)/.*\.md", path)}
    for document in [*EVERY_NAME, *PATHS_ONLY, *sorted(others.difference(EVERY_NAME, PATHS_ONLY))]:
        if document not in tree.paths:
            problems.append(f"{document}: is missing")
            continue
        text = (root / document).read_text()
        for number, word in backticked(text):
            if problem := problem_of(word, tree, document not in EVERY_NAME):
                problems.append(f"{document}:{number}: {word}: {problem}")
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
            if problem := link_problem(document, target, tree):
                problems.append(f"{document}: link to {target}: {problem}")
    return problems


GOOD = {
    "lib/DESIGN.md": "# D\n`core`, `Plan`, `make_plan()`, `Offers::accept()`, `Error::Reach`, `gpu::narrow()`, `plan/plan.hpp`, `lib/`,\n"
                     "`--timeout`, `WC_BUSY`, `a command --nowhere`, `build/x`\n\n    `no_name_at_all()`\n\n## Rooms\n\n- `core`: c.\n- `plan`: p.\n",
    "lib/CMakeLists.txt": "weightcast_room(core)\nweightcast_room(plan USES core)\n",
    "tests/README.md": "`unit`, `TEST_SEEDS`, `tests/unit/`, `agree()`\n",
    "README.md": "`lib/weightcast/plan/plan.hpp`, `build/host/nothing`, `no_name()`, [limits](jobs/limits.md#what-is-not), [p](https://x.y/z)\n",
    "jobs/README.md": "`job.sh`\n",
    "jobs/limits.md": "# Limits\n[up](../README.md)\n\n## What is *not*?\n[here](#limits), `no_name()`\n",
    "lib/weightcast/core/error.hpp": "class Error {\n  enum class Reach { local };\n};\ntemplate <typename T>\nvoid agree(T t);\n",
    "lib/weightcast/plan/plan.hpp": "struct Plan {};\nPlan make_plan();  // forgotten_plan()\nnamespace gpu {\nvoid narrow();\n}\n",
    "lib/weightcast/update/offer.cpp": "bool Offers::accept(int) { return commands.find(\"timeout\"); }\n",
    "lib/weightcast/capi/weightcast.h": "enum { WC_BUSY = 75 /* or WC_GONE */ };\n",
    "tests/unit/plan_test.py": "import os\nos.environ[\"TEST_SEEDS\"]\n",
    "jobs/job.sh": "echo\n",
}
# A document, what is added to it, and what the message must contain.
BAD = [
    ("lib/DESIGN.md", "`Schedule`", "DESIGN.md:11: Schedule: no such name"),
    ("lib/DESIGN.md", "- `plan`: again.", "lists the rooms ['core', 'plan', 'plan'], "),
    ("lib/CMakeLists.txt", "weightcast_room(store)", "lib/CMakeLists.txt ['core', 'plan', 'store']"),
    ("lib/DESIGN.md", "`make_plan`, `Make`", "Make: no such name"),
    ("lib/DESIGN.md", "`Plan()`, `unmake_plan()`", "unmake_plan(): no such name"),
    ("lib/DESIGN.md", "`make()`", "make(): no such name"),
    ("lib/DESIGN.md", "`forgotten_plan()`", "forgotten_plan(): no such name"),
    ("lib/DESIGN.md", "`WC_GONE`", "WC_GONE: no such name"),
    ("lib/DESIGN.md", "`Offers::refuse()`", "Offers::refuse(): no such name"),
    ("lib/DESIGN.md", "`Plan::accept()`", "Plan::accept(): no such name"),
    ("lib/DESIGN.md", "`Plan::Reach`", "Plan::Reach: no such name"),
    ("lib/DESIGN.md", "`plan/old.hpp`", "plan/old.hpp: no such path"),
    ("lib/DESIGN.md", "`an.hpp`", "an.hpp: no such path"),
    ("lib/DESIGN.md", "`attic/`", "attic/: no such path"),
    ("lib/DESIGN.md", "`--time`", "--time: no such option"),
    ("lib/DESIGN.md", "`planes`", "planes: no such name"),
    ("tests/README.md", "`TEST_SEED`", "tests/README.md:2: TEST_SEED: no such name"),
    ("README.md", "`lib/weightcast/plan/old.hpp`", "README.md:2: lib/weightcast/plan/old.hpp: no such path"),
    ("jobs/README.md", "`jobs/old.sh`", "jobs/old.sh: no such path"),
    ("jobs/limits.md", "`jobs/old.sh`", "jobs/limits.md:6: jobs/old.sh: no such path"),
    ("jobs/limits.md", "[x](README.md#what)", "jobs/limits.md: link to README.md#what: no such heading"),
    ("jobs/limits.md", "[x](limit.md)", "jobs/limits.md: link to limit.md: leads nowhere"),
    ("README.md", "![x](jobs/old.svg)", "README.md: link to jobs/old.svg: leads nowhere"),
    ("README.md", "[x](#none)", "README.md: link to #none: no such heading"),
]


def check_copy(files):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return check(root)


def self_test():
    """Adds a name that does not exist to a good tree in every way that check() must notice; returns what it did not."""
    failures = [f"the good tree is refused: {problems}" for problems in [check_copy(GOOD)] if problems]
    for document, text, expected in BAD:
        problems = check_copy({**GOOD, document: GOOD[document] + text + "\n"})
        if not any(expected in problem for problem in problems):
            failures.append(f"not noticed: {expected!r}; noticed: {problems}")
    for document in EVERY_NAME + PATHS_ONLY:
        if not any("is missing" in problem for problem in check_copy({n: t for n, t in GOOD.items() if n != document})):
            failures.append(f"not noticed: {document} is missing")
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2])
    parser.add_argument("--self-test", action="store_true", help="show that every check can fail")
    arguments = parser.parse_args()
    problems = self_test() if arguments.self_test else check(arguments.root)
    print("\n".join(problems) if problems else f"{len(BAD)} wrong names noticed" if arguments.self_test else "all names exist")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
