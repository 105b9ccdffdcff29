#!/usr/bin/env python3
"""tools/count_tests.py: the table of what ctest wrote, and why tests were skipped. usage: count_tests.py"""

import pathlib
import subprocess
import sys
import tempfile
import unittest

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools/count_tests.py"


def case(name, status="run", output="", message=None):
    inside = "" if message is None else f'<skipped message="{message}"/>'
    return f'<testcase name="{name}" status="{status}">{inside}<system-out>{output}</system-out></testcase>'


def skipped(name, output):
    return case(name, "notrun", output, "SKIP_RETURN_CODE=77")


class Table(unittest.TestCase):
    def lines_of(self, *cases):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "host/tests.xml"
            path.parent.mkdir()
            path.write_text(f"<testsuite>{''.join(cases)}</testsuite>")
            done = subprocess.run([sys.executable, TOOL, path, path.parent / "no-such.xml"], text=True, timeout=60,
                                  stdout=subprocess.PIPE, check=True)
            return [line.split() for line in done.stdout.splitlines()][1:]

    def test_counts_runs_and_cases_per_tier(self):
        self.assertEqual(
            self.lines_of(case("unit.a", output="[====] Running 3 tests from 1 suite"),
                          case("unit.b", "fail"), case("mpi.c.np2", output="[==] Running 1 test from 1"),
                          case("mpi.d.np2", "notrun", message="Unable to find executable")),
            [["host", "mpi", "2", "1", "0", "1", "1"], ["host", "unit", "2", "1", "0", "1", "3"]])

    def test_each_reason_is_said_once_with_the_runs_that_it_skipped(self):
        lines = self.lines_of(skipped("gpu.a.np2", "skipped: no GPU here\nskipped: no GPU here\n"),
                              skipped("interop.b", "before\nskipped: no numpy \nafter"),
                              skipped("gpu.c", "not skipped: this\nskipped: no GPU here"), case("unit.d"))
        self.assertEqual([" ".join(line) for line in lines[-2:]], ["skipped 2 x no GPU here", "skipped 1 x no numpy"])
        self.assertEqual(lines[0], ["host", "gpu", "2", "0", "2", "0", "0"])

    def test_who_gives_no_reason_is_named(self):
        lines = self.lines_of(skipped("slurm.a", "skipped:\n"), skipped("slurm.b", ""))
        self.assertEqual([" ".join(line) for line in lines[-2:]],
                         [f"skipped 1 x slurm.{name} does not say why" for name in "ab"])

    def test_nothing_skipped_nothing_said(self):
        self.assertEqual(len(self.lines_of(case("unit.a"))), 1)


if __name__ == "__main__":
    unittest.main()
