#!/usr/bin/env python3
"""Deltas as a user of the program meets them: what is sent of versions that differ little, that what arrives is the same as
without, and what tables and reports say.

usage: cli_delta.py WEIGHTCAST MPIEXEC [unittest argument...]
"""

import json
import os
import random
import re
import shutil
import sys
import unittest

from workplace import Workplace, read_safetensors, run, write_safetensors, header_of, data_of

WEIGHTCAST, MPIEXEC = sys.argv[1:3]
LAYOUTS = [  # transport, trainers, tp, dp
    ("mpi", 1, 1, 1), ("mpi", 1, 2, 2), ("mpi", 2, 1, 2), ("mpi", 2, 2, 1),
    ("direct", 1, 1, 2), ("direct", 1, 2, 1), ("direct", 2, 2, 2), ("direct", 2, 1, 1)]


def weightcast(*arguments, ranks=1):
    launcher = [MPIEXEC, "--oversubscribe", "-n", str(ranks)] if ranks > 1 else []
    return run([*launcher, WEIGHTCAST, *arguments])


def changed_copy(source, target, share):
    """A checkpoint like another one, but for a share of its elements, at random places: how many those are."""
    shutil.copytree(source, target)
    draw, count = random.Random(7), 0
    for name in os.listdir(target):
        if not name.endswith(".safetensors"):
            continue
        path = os.path.join(target, name)
        tensors = read_safetensors(path)
        for key, (dtype, shape, data) in tensors.items():
            assert dtype == "BF16"
            data = bytearray(data)
            for at in range(0, len(data), 2):
                if draw.random() < share:
                    data[at] ^= 1
                    count += 1
            tensors[key] = (dtype, shape, bytes(data))
        write_safetensors(path, json.dumps(header_of(tensors)), data_of(tensors))
    return count


class Deltas(Workplace):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.initial, cls.target = os.path.join(cls.shared, "initial"), os.path.join(cls.shared, "target")
        made = weightcast("synth", "--model", "tiny", "--seed", "3", "--output", cls.initial)
        assert made.returncode == 0, made.stderr
        cls.changed = changed_copy(cls.initial, cls.target, 0.01)

    def job(self, *options, trainers=1, tp=1, dp=1, fails=0):
        """A job from initial to target; its report and its table."""
        report = self.path("report.json")
        result = weightcast("update", "--initial", self.initial, "--target", self.target, "--tp", str(tp), "--dp", str(dp),
                            "--trainers", str(trainers), "--json", report, *options, ranks=trainers + tp * dp)
        self.assertEqual(result.returncode, fails, result.stdout + result.stderr)
        with open(report, encoding="utf-8") as file:
            return json.load(file), result.stdout

    def test_what_arrives_is_the_same(self):
        for index, (transport, trainers, tp, dp) in enumerate(LAYOUTS):
            with self.subTest(transport=transport, trainers=trainers, tp=tp, dp=dp):
                snapshots, digests = [], []
                for delta in ("off", "auto"):
                    snapshots.append(self.path(f"{index}-{delta}.h5"))
                    report, table = self.job("--transport", transport, "--delta", delta, "--repeat", "3", "--snapshot",
                                             snapshots[-1], trainers=trainers, tp=tp, dp=dp)
                    digests.append(report["verify"]["digest"])
                    self.assertEqual(report["verify"]["mismatched"], 0)
                    self.assertEqual([one["result"] for one in report["updates"]], ["committed"] * 3)
                    self.check_updates(report, table, delta)
                self.assertEqual(*digests)
                same = weightcast("verify", *snapshots)
                self.assertEqual(same.returncode, 0, same.stdout + same.stderr)
                same = weightcast("verify", snapshots[-1], self.target)
                self.assertEqual(same.returncode, 0, same.stdout + same.stderr)

    def check_updates(self, report, table, delta):
        payloads = [one["payload"] for one in report["updates"]]
        self.assertEqual(payloads, ["dense"] * 3 if delta == "off" else ["dense", "delta", "delta"])
        self.assertEqual("payload" in table, delta == "auto")
        # The longest stream, its table, and a mark for each 16 bits of both sources: within the limit and a fifth.
        memory = report["group"]["delta_bytes"]
        self.assertEqual(memory > 0, delta == "auto")
        self.assertLessEqual(memory, (2 * 0.4 + 0.2) * report["model"]["bytes"])
        if delta == "auto":
            self.assertEqual(table.count(" dense "), 1, table)
            self.assertEqual(table.count(" delta "), 2, table)
        for one in report["updates"]:
            if one["payload"] == "dense":
                self.assertEqual((one["shipped_bytes"], one["changed_elements"]), (0, 0))
                self.assertGreaterEqual(one["egress_bytes"], report["model"]["bytes"])
                continue
            # What several ranks hold goes to each of them.
            self.assertGreaterEqual(one["changed_elements"], self.changed)
            if report["world"]["tp"] == report["world"]["dp"] == 1:
                self.assertEqual(one["changed_elements"], self.changed)
            self.assertGreaterEqual(one["shipped_bytes"], 4 * one["changed_elements"])
            self.assertLess(one["shipped_bytes"], report["model"]["bytes"] // 4)
            self.assertLess(one["egress_bytes"], report["model"]["bytes"])
            self.assertGreater(one["diff_s"], 0)  # between two versions, when it is published
            self.assertGreater(one["apply_s"], 0)

    def test_in_place(self):
        report, _ = self.job("--delta", "auto", "--repeat", "4", "--commit", "in-place", tp=2)
        self.assertEqual([one["payload"] for one in report["updates"]], ["dense", "delta", "delta", "delta"])
        self.assertEqual(report["verify"]["mismatched"], 0)

    def test_too_much_is_sent_whole(self):
        report, table = self.job("--delta", "auto", "--delta-limit", "0.1%", "--repeat", "3")
        self.assertEqual([one["payload"] for one in report["updates"]], ["dense"] * 3)
        self.assertEqual(len(re.findall("committed.* dense ", table)), 3, table)

    def test_bench(self):
        report = self.path("bench.json")
        result = weightcast("bench", "--model", "tiny", "--changed", "1%", "--delta", "off,auto,versions", "--transport",
                            "mpi,direct", "--repeat", "4", "--json", report, ranks=3)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertIn("versions differ in 1 % of their elements", result.stdout)
        with open(report, encoding="utf-8") as file:
            rows = json.load(file)["rows"]
        self.assertEqual([(row["transport"], row["delta"]) for row in rows],
                         [(transport, delta) for transport in ("mpi", "direct") for delta in ("off", "auto", "versions")])
        for row in rows:
            with self.subTest(transport=row["transport"], delta=row["delta"]):
                self.assertEqual((row["wrong"], row["changed"]), (0, 0.01))
                self.assertEqual(row["payload"], "dense" if row["delta"] == "off" else "delta")
                if row["payload"] == "dense":
                    self.assertEqual(row["shipped_bytes"], 0)
                    continue
                elements = row["model_bytes"] // 2
                self.assertGreater(row["changed_elements"], 0.005 * elements)
                self.assertLess(row["changed_elements"], 0.02 * elements)
                self.assertLess(row["shipped_bytes"], row["model_bytes"] // 4)
                self.assertGreater(row["apply_s"], 0)
                if row["delta"] == "versions":
                    self.assertGreater(row["diff_s"], 0)

    def test_bench_without_changes_in_common(self):
        report = self.path("bench.json")
        result = weightcast("bench", "--model", "tiny", "--delta", "auto", "--repeat", "2", "--json", report, ranks=2)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        with open(report, encoding="utf-8") as file:
            row, = json.load(file)["rows"]
        self.assertEqual((row["wrong"], row["changed"], row["payload"]), (0, 1, "dense"))

    def test_bad_options(self):
        for options, text in ((("--delta-limit", "0"), "at most 1"), (("--delta-limit", "40"), "0.4 or 2%"),
                              (("--delta", "versions"), "off, auto")):
            result = weightcast("update", "--initial", self.initial, "--target", self.target, *options)
            self.assertEqual(result.returncode, 64, result.stderr)
            self.assertIn(text, result.stderr)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
