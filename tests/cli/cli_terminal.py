#!/usr/bin/env python3
"""What people see: progress on terminals of several widths, under mpirun and without, and tables that fit 80 columns.

Usage: cli_terminal.py WEIGHTCAST MPIEXEC [unittest arguments]. Needs mpirun on the terminal's own host.
"""

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
import unittest

from workplace import Workplace, environment, run

HUGE_BYTES = 1 << 38  # more than anybody reads before a test has seen enough; a hole, which takes no room
PATIENCE_S = 60


class Screen:
    """What a terminal shows that knows carriage returns and newlines and nothing else."""

    def __init__(self, columns):
        self.columns, self.lines, self.column, self.wrapped = columns, [""], 0, False

    def show(self, text):
        for character in text:
            if character == "\n":
                self.lines.append("")
            elif character == "\r":
                self.column = 0
            else:
                if self.column == self.columns:
                    self.wrapped = True
                    self.lines.append("")
                    self.column = 0
                line = self.lines[-1].ljust(self.column)
                self.lines[-1] = line[:self.column] + character + line[self.column + 1:]
                self.column += 1
        return self

    def text(self):
        return "\n".join(line.rstrip() for line in self.lines)


class Terminal:
    """A job on a terminal of its own."""

    def __init__(self, test, columns, command, env, modes=0, **redirections):
        self.columns, self.printed = columns, ""
        self.side, theirs = pty.openpty()
        settings = termios.tcgetattr(theirs)
        settings[3] |= modes
        termios.tcsetattr(theirs, termios.TCSANOW, settings)
        test.addCleanup(os.close, self.side)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        unset = {"COLUMNS", "NO_COLOR"} - set(env)
        self.job = subprocess.Popen([str(word) for word in command], stdin=theirs, start_new_session=True,
                                    env={k: v for k, v in environment({"TERM": "xterm", **env}).items() if k not in unset},
                                    preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
                                    **{"stdout": theirs, "stderr": theirs, **redirections})
        os.close(theirs)
        test.addCleanup(self.end)

    def read(self):
        """Whether there was more."""
        try:
            more = os.read(self.side, 65536).decode()
        except OSError:  # nobody has the terminal open any more
            more = ""
        self.printed += more
        return more != ""

    def wait_for(self, pattern):
        until = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.printed):
            ready, _, _ = select.select([self.side], [], [], max(0, until - time.monotonic()))
            if not ready or not self.read():
                raise AssertionError(f"{pattern} does not come: {self.printed!r}")

    def finish(self):
        """The exit status, when all is printed."""
        while self.read():
            pass
        return self.job.wait(PATIENCE_S)

    def end(self):
        if self.job.poll() is None:
            self.job.terminate()  # mpirun takes its ranks along
        self.job.wait()

    def screen(self):
        return Screen(self.columns).show(self.printed)


class Progress(Workplace):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.huge = os.path.join(cls.shared, "huge.safetensors")
        header = json.dumps({"weights": {"dtype": "U8", "shape": [HUGE_BYTES], "data_offsets": [0, HUGE_BYTES]}}).encode()
        with open(cls.huge, "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + HUGE_BYTES)

    def reading(self, columns, launched, env=None, **redirections):
        """A job that reads for as long as it is let."""
        command = [PROGRAM, "inspect", "--digest", self.huge]
        return Terminal(self, columns, [MPIEXEC, "-n", 1, *command] if launched else command, env or {}, **redirections)

    def bar_of(self, terminal):
        terminal.wait_for(r"%[^\r]*\r+[^\r]*%")  # drawn, and drawn again
        terminal.end()
        drawn = terminal.printed.split("\r")[1]
        self.assertFalse(terminal.screen().wrapped, terminal.printed)
        self.assertNotIn("\n", terminal.printed)
        self.assertNotIn("\x1b", terminal.printed)
        return drawn

    def test_a_bar_fits_the_terminal(self):
        for launched in (False, True):
            for columns in (40, 80, 200):
                with self.subTest(launched=launched, columns=columns):
                    bar = self.bar_of(self.reading(columns, launched))
                    self.assertLess(len(bar), columns)
                    self.assertRegex(bar, r"^reading \S+ \[#* +\] +\d+ %")
                    self.assertEqual("GB" in bar, columns > 40, bar)
                    self.assertEqual("B/s" in bar, columns == 200, bar)

    def test_the_environment_knows_better(self):
        for launched in (False, True):
            with self.subTest(launched=launched):
                self.assertLess(len(self.bar_of(self.reading(200, launched, {"COLUMNS": "30"}))), 30)
                self.assertGreater(len(self.bar_of(self.reading(200, launched, {"COLUMNS": "wide"}))), 80)
                self.bar_of(self.reading(80, launched, {"NO_COLOR": "1"}))  # looks for escape sequences

    def test_a_rank_is_not_stopped_as_a_job_in_the_background(self):
        self.bar_of(self.reading(80, True, modes=termios.TOSTOP))

    def test_a_dumb_terminal_gets_lines(self):
        for launched in (False, True):
            for term in ("dumb", ""):
                with self.subTest(launched=launched, term=term):
                    terminal = self.reading(80, launched, {"TERM": term})
                    terminal.wait_for(r"reading .*: +\d+ %.*B/s\r\n")
                    terminal.end()
                    self.assertNotRegex(terminal.printed, r"\r[^\n]|\x1b")

    def test_no_terminal_gets_lines(self):
        for launched in (False, True):
            with self.subTest(launched=launched):
                job = self.reading(80, launched, stderr=subprocess.PIPE)
                self.addCleanup(job.job.stderr.close)
                self.assertRegex(job.job.stderr.readline().decode(), r"^reading .*: +\d+ %.*B/s\n$")
                log = self.path(f"log-{launched}")
                with open(log, "wb") as file:
                    job = self.reading(80, launched, stderr=file)
                with open(log, encoding="utf-8") as file:
                    until = time.monotonic() + PATIENCE_S
                    while "B/s\n" not in file.read():
                        self.assertLess(time.monotonic(), until, "no line in a minute")
                        time.sleep(0.05)
                        file.seek(0)
                self.assertFalse(select.select([job.side], [], [], 0)[0], "nothing comes to the terminal")

    def test_what_a_script_sends_elsewhere_stays_away(self):
        script = f"{PROGRAM} inspect --digest {self.huge} 2>&1 | sed -u 's/^/seen: /'"
        terminal = Terminal(self, 80, [MPIEXEC, "-n", 1, "sh", "-c", script], {})
        terminal.wait_for(r"seen: reading .*B/s\r\n")
        self.assertNotRegex(terminal.printed, r"\r[^\n]")

    def test_nothing_of_a_bar_is_left(self):
        gate = self.path("gate")
        os.mkfifo(gate)
        update = [PROGRAM, "update", "--model=tiny", "--initial=synth:1", "--target=synth:2", "--repeat=2", "--device=host"]
        late = ["sh", "-c", f"read word < {gate} && exec \"$@\"", "late"]
        terminal = Terminal(self, 80, [MPIEXEC, "-n", 1, *update, ":", "-n", 1, *late, *update], {})
        terminal.wait_for(r"waiting for all ranks to start \d+ s")
        with open(gate, "w", encoding="utf-8") as file:
            file.write("go\n")
        status = terminal.finish()
        screen = terminal.screen()
        self.assertEqual((status, screen.wrapped), (0, False), terminal.printed)
        self.assertNotIn("waiting", screen.text())
        lines = screen.text().splitlines()
        self.assertTrue(lines[0].startswith("# weightcast update: "), lines)
        self.assertEqual(lines[-1], "30 of 30 parameters verified")


class Tables(Workplace):
    def setUp(self):
        super().setUp()
        run([PROGRAM, "synth", "--model=tiny", "--output", self.path("a")])

    def output(self, *arguments, ranks=0, status=0):
        done = run([*([MPIEXEC, "-n", ranks] if ranks else []), PROGRAM, *arguments])
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        return done.stdout

    def check_width(self, text):
        self.assertEqual([line for line in text.splitlines() if len(line) > 80], [])

    def update(self, *arguments, target="synth:2"):
        return self.output("update", "--model=tiny", "--initial=synth:1", "--target", target, "--device=host", *arguments, ranks=2)

    def test_update(self):
        for arguments, columns in (([], "update version result prepare stage verify total GB/s egress"),
                                   (["--delta=auto"], "update version result stage verify total GB/s payload shipped")):
            narrow, wide = self.update("--repeat=3", *arguments), self.update("--repeat=3", "--wide", *arguments)
            self.check_width(narrow)
            self.assertIn(columns.split(), [line.split() for line in narrow.splitlines()])
            self.assertIn("# times in ms; --wide adds ", narrow)
            self.assertNotIn("--wide", wide)
            head = next(line for line in wide.splitlines() if line.startswith("update "))
            self.assertLessEqual(set(columns.split()) | {"prepare", "vote", "commit", "egress"}, set(head.split()))

    def test_update_ends_with_the_median(self):
        report = self.path("report.json")
        text = self.update("--repeat=4", "--wide", "--json", report)
        with open(report, encoding="utf-8") as file:
            content = json.load(file)
        rows = [line.split() for line in text.splitlines()]
        head = next(row for row in rows if row[:1] == ["update"])
        median = next(row for row in rows if row[:1] == ["median"])
        self.assertEqual(len(rows[rows.index(median) - 1]), len(median) - 1)  # "of 4" are two words
        shown = dict(zip(head, median[:2] + ["of 4"] + median[4:]))
        self.assertAlmostEqual(float(shown["total"]), content["summary"]["median_s"] * 1e3, delta=0.001)
        for stage in ("prepare", "stage", "verify", "vote", "commit"):
            times = sorted(update[f"{stage}_s"] for update in content["updates"])
            self.assertAlmostEqual(float(shown[stage]), (times[1] + times[2]) / 2 * 1e3, delta=0.001)
        cold, least, most = (content["summary"][key] * 1e3 for key in ("cold_s", "min_s", "max_s"))
        self.assertIn(f"# total: cold (the first) {cold:.3f}, min {least:.3f}, max {most:.3f}, ", text)
        self.assertNotIn("median", self.update())

    def test_long_names_are_shortened(self):
        folder = self.path("checkpoints-" + "x" * 120)
        os.mkdir(folder)
        run([PROGRAM, "synth", "--model=tiny", "--output", os.path.join(folder, "a")])
        self.check_width(self.update(target=os.path.join(folder, "a")))

    def test_bench(self):
        for arguments in (["--ceiling"], ["--delta=off,auto", "--changed=1%"], ["--transport=mpi,direct", "--verify=all,none",
                                                                              "--granularity=model,parameter"]):
            text = self.output("bench", "--model=tiny", "--device=host", "--repeat=2", "--warmup=0", *arguments, ranks=2)
            own = "\n".join(line for line in text.splitlines() if not re.match(r"# .*(layer|cold|1st|on the claim)|#   |# \w+ +\d", line))
            self.check_width(own)
            head = next(line for line in text.splitlines() if line.startswith("model ")).split()
            self.assertLessEqual({"model", "transport", "median", "GB/s", "#wrong"}, set(head))
            varied = {argument.split("=")[0] for argument in arguments}
            for option, column in (("--verify", "verify"), ("--granularity", "unit"), ("--delta", "delta"), ("--ceiling", "ratio")):
                self.assertEqual(column in head, option in varied, (arguments, head))

    def test_plan(self):
        for arguments in (["--model=llama-3.1-8b", "--tp=16"], ["--model=llama-3.1-8b", "--tp=4", "--trainers=4", "--quantize=fp8-block"]):
            text = self.output("plan", *arguments)
            self.check_width(text)
            self.assertLess(text.index("proven"), text.index("model.embed_tokens.weight"), "the summary comes first")
            self.assertIn("model.layers.{0..31}.self_attn.qkv_proj.weight ", text)
            self.assertIn("from q_proj + k_proj + v_proj, cut by rows", text)
            everything = self.output("plan", *arguments, "--all")
            self.check_width(everything)
            for layer in range(32):
                self.assertIn(f"model.layers.{layer}.self_attn.qkv_proj.weight ", everything)
            self.assertNotIn("..", everything)
            wide = self.output("plan", *arguments, "--wide")
            self.assertRegex(wide, r"(?m)^model\.layers\.\{0\.\.31\}\.self_attn\.qkv_proj\.weight +\S+ +\[.*\] +\d+ +q_proj \+ k_proj")

    def test_inspect(self):
        name = "model.layers.10." + "very_long." * 8 + "weight"
        header = json.dumps({name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}})
        path = self.path("long.safetensors")
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header.encode() + bytes(24))
        for what in (path, self.path("a")):
            for arguments in ([], ["--digest"]):
                self.check_width(self.output("inspect", what, *arguments))
                wide = self.output("inspect", what, "--wide", *arguments)
                self.assertRegex(wide, r"(?m)^\S+  (F32|BF16) \[[\d, ]+\] +\d+" + ("  [0-9a-f]{32}$" if arguments else "$"))
        self.assertIn(name, self.output("inspect", path, "--wide"))

    def test_verify_shows_some_of_many_differences(self):
        run([PROGRAM, "synth", "--model=smollm2-135m", "--output", self.path("b")])
        some = self.output("verify", self.path("a"), self.path("b"), status=1).splitlines()
        self.assertEqual(len(some), 12)
        more = int(re.fullmatch(r"\.\.\. and (\d+) more tensors differ in name or shape \(--all lists them\)", some[10]).group(1))
        every = self.output("verify", self.path("a"), self.path("b"), "--all", status=1).splitlines()
        self.assertEqual(len(every), 10 + more + 1)
        self.assertEqual((every[:10], every[-1]), (some[:10], "different"))

    def test_a_pipe_and_a_wide_terminal_get_the_same(self):
        terminal = Terminal(self, 200, [PROGRAM, "plan", "--model=tiny", "--tp=2"], {})
        self.assertEqual(terminal.finish(), 0)
        self.assertEqual(terminal.printed.replace("\r\n", "\n"), self.output("plan", "--model=tiny", "--tp=2"))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    PROGRAM, MPIEXEC = (os.path.abspath(path) for path in sys.argv[1:3])
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
