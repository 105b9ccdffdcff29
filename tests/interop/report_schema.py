#!/usr/bin/env python3
"""Reports of the program against report.schema.json, by jsonschema and by check_report.py, which must agree.

usage: report_schema.py PROGRAM MPIEXEC [unittest arguments]
Exit status 77: there is no jsonschema (Debian: python3-jsonschema).
"""

import copy
import json
import os
import random
import subprocess
import sys
import tempfile
import unittest

import check_report

PROGRAM, MPIEXEC = "", ""
UPDATE = ["update", "--model=tiny", "--initial=synth:1", "--target=synth:2", "--device=host"]
BENCH = ["bench", "--model=tiny", "--device=host", "--repeat=2", "--warmup=0"]
# Ranks, exit status, command line.
RUNS = {
    "plain": (3, 0, [*UPDATE, "--repeat=3", "--snapshot"]),  # a name is added
    "parameter by parameter, readers, scrubs": (5, 0, [*UPDATE, "--dp=2", "--granularity=parameter", "--readers=2", "--scrub=1", "--repeat=2"]),
    "deltas": (2, 0, [*UPDATE, "--delta=auto", "--delta-limit=1", "--repeat=3"]),
    "trainers": (4, 0, [*UPDATE, "--trainers=2", "--commit=in-place", "--transport=mpi"]),
    "quantize": (3, 0, [*UPDATE, "--quantize=fp8-channel"]),
    "sample": (2, 0, [*UPDATE, "--verify=sample"]),
    "fails": (2, 76, [*UPDATE[:3], "--target=synth:1", "--verify=sample", "--device=host"]),
    "fails early": (2, 66, ["update", "--initial=/nowhere", "--target=/nowhere"]),
    "bench": (3, 0, [*BENCH, "--ceiling", "--granularity=model,parameter", "--readers=1"]),
    "bench of deltas": (2, 0, [*BENCH, "--delta=off,auto,versions", "--changed=2%", "--verify=all,none"]),
    "bench fails": (3, 78, [*BENCH, "--tp=3"]),
}
ABSENT = {"torch"}  # of baselines only


def run(ranks, arguments, folder):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WEIGHTCAST_", "OMPI_COMM", "PMIX_", "SLURM_"))}
    path = os.path.join(folder, "report.json")
    snapshot = [os.path.join(folder, "out.h5")] if arguments[-1] == "--snapshot" else []
    done = subprocess.run([MPIEXEC, "-n", str(ranks), PROGRAM, *arguments, *snapshot, "--json", path], text=True, timeout=120,
                          env={**environment, "CUDA_VISIBLE_DEVICES": ""}, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    with open(path, encoding="utf-8") as file:
        return done, json.load(file, parse_constant=check_report.no_constants)


def objects_in(value):
    """All objects in it."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects_in(item)


class Reports(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.validator = jsonschema.Draft202012Validator(check_report.SCHEMA)
        cls.reports = {}
        for name, (ranks, status, arguments) in RUNS.items():
            with tempfile.TemporaryDirectory(prefix="weightcast-report-") as folder:
                done, cls.reports[name] = run(ranks, arguments, folder)
            assert done.returncode == status, f"{name}: {done.stdout}{done.stderr}"

    def test_the_schema_is_one(self):
        jsonschema.Draft202012Validator.check_schema(check_report.SCHEMA)

    def test_reports_follow_it(self):
        for name, report in self.reports.items():
            with self.subTest(name):
                self.assertEqual([error.message for error in self.validator.iter_errors(report)], [])
                self.assertEqual(check_report.problems_of(report), [])

    def test_every_key_is_in_some_report(self):
        seen = {key for report in self.reports.values() for one in objects_in(report) for key in one}
        self.assertEqual({key for d in check_report.DEFINITIONS.values() for key in d.get("properties", {})} - seen, ABSENT)

    def test_what_does_not_follow_it_is_refused_by_both(self):
        dice = random.Random(17)
        for name, report in self.reports.items():
            for what in ("more", "less", "text", "negative", "truth", "list"):
                for _ in range(8):
                    broken = copy.deepcopy(report)
                    one = dice.choice(list(objects_in(broken)))
                    key = dice.choice(list(one))
                    one.update({"more": {"colour": 1}, "text": {key: "?" if not isinstance(one[key], str) else 1}, "negative": {key: -1.5},
                                "truth": {key: 1 if isinstance(one[key], bool) else True}, "list": {key: [[]]}}.get(what, {}))
                    if what == "less":
                        del one[key]
                    with self.subTest(name, what=what, key=key):
                        mine = []
                        check_report.check(broken, check_report.SCHEMA, "report", mine)
                        self.assertEqual(self.validator.is_valid(broken), not mine, mine)
                        if what in ("more", "truth", "list"):
                            self.assertTrue(mine)

    def test_recorded_reports_follow_it(self):
        """Keys are added, never renamed or removed."""
        results = os.path.join(check_report.HERE, "..", "..", "jobs", "results")
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(results) for name in names if name.endswith(".json")]
        paths = [path for path in paths if os.path.basename(path) != "host.json"]  # of the machine
        self.assertGreater(len(paths), 10)
        for path in paths:
            with open(path, encoding="utf-8") as file, self.subTest(path):
                self.assertEqual([error.message for error in self.validator.iter_errors(json.load(file))], [])


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    try:
        import jsonschema
    except ImportError:
        print(f"{sys.executable} has no jsonschema: tools/setup.sh --tests installs it")
        sys.exit(77)
    PROGRAM, MPIEXEC = os.path.abspath(sys.argv.pop(1)), sys.argv.pop(1)
    unittest.main()
