#!/usr/bin/env python3
"""`weightcast update` and `bench` with several trainer ranks: every layout brings the same weights, and bad input is refused.

usage: cli_trainers.py PROGRAM MPIEXEC [Layouts|BadInput|unittest arguments]
WEIGHTCAST_LAYOUTS=all: every number of trainer ranks up to 4, with every layout, tp, dp and transport, and SmolLM2, too.
"""

import itertools
import json
import os
import re
import sys
import unittest

import cli_update
from cli_update import CONFIG, USAGE, mpirun, offline
from workplace import run

ALL = os.environ.get("WEIGHTCAST_LAYOUTS") == "all"


def layouts_of(trainers, tp_possible):
    return ["whole", "fsdp"] + (["tp"] if trainers in tp_possible else [])


class Layouts(cli_update.Workplace):
    def planned_egress(self, *arguments):
        """What `weightcast plan` says that each trainer rank sends."""
        text = offline("plan", *arguments, "--all").stdout
        if "sent bytes" not in text:
            return [int(re.search(r"(?m)^trainer egress +(\d+) bytes", text).group(1))]
        rows = [re.match(r" *(\d+) +(\d+) +(\d+) +\d+(?: |$)", line) for line in text[text.index("sent bytes"):].splitlines()]
        return [int(row.group(3)) for row in rows if row]

    def check(self, trainers, layout, tp, dp, transport, *arguments, sharded=True, model="tiny", **keywords):
        """The report of an update that ends with what plan and reference say."""
        where = ["--tp", tp, "--dp", dp, "--trainers", trainers, "--source-layout", layout]
        snapshot = self.path("out.h5")
        report, text = self.update(trainers + tp * dp, *where, "--transport", transport, "--snapshot", snapshot, "--force", *arguments,
                                   **keywords)
        self.assertEqual(report["world"], {"trainer": trainers, "trainers": trainers, "tp": tp, "dp": dp})
        self.assertEqual((report["source_layout"], report["transport"]), (layout, transport))
        self.assertEqual([r["role"] for r in report["ranks"]], ["trainer"] * trainers + ["engine"] * tp * dp)
        self.assertEqual({u["result"] for u in report["updates"]}, {"committed"})
        parameters = report["model"]["parameters"]
        self.assertEqual((report["verify"]["parameters"], report["verify"]["mismatched"]), (parameters, 0))
        self.assertIn(f"{parameters} of {parameters} parameters verified\n", text)
        self.assertEqual("# egress by trainer rank: " in text, trainers > 1)
        for update in report["updates"]:
            self.assertEqual(len(update["trainer_egress_bytes"]), trainers)
            if sharded:
                self.assertEqual(update["trainer_egress_bytes"], self.planned_egress("--model", model, *where))
        return report

    def test_every_layout_brings_the_same_weights(self):
        few = [(1, "fsdp", 2, 1, "mpi"), (2, "fsdp", 1, 1, "mpi"), (2, "fsdp", 4, 1, "direct"), (2, "whole", 2, 2, "direct"),
               (2, "tp", 4, 1, "mpi"), (2, "tp", 2, 2, "mpi"), (3, "fsdp", 2, 1, "direct"), (3, "fsdp", 2, 2, "mpi"),
               (3, "whole", 1, 2, "mpi"), (4, "fsdp", 1, 2, "direct"), (4, "tp", 2, 1, "direct"), (4, "fsdp", 4, 1, "mpi")]
        every = [(trainers, layout, tp, dp, transport)
                 for trainers, tp, dp, transport in itertools.product((1, 2, 3, 4), (1, 2, 4), (1, 2), ("mpi", "direct"))
                 for layout in layouts_of(trainers, (1, 2, 4))]
        digests = set()
        for way in every if ALL else few:
            with self.subTest(way=way):
                report = self.check(*way)
                self.same_snapshot(self.two + ".h5", self.path("out.h5"))
                digests.add(report["verify"]["digest"])
        self.assertEqual(len(digests), 1, "the digest depends on who had the weights")

    def test_every_mode_of_an_update(self):
        for trainers, layout, arguments in ((2, "fsdp", ("--granularity=parameter", "--repeat=3")),
                                            (3, "fsdp", ("--commit=in-place", "--repeat=2")),
                                            (2, "tp", ("--method=broadcast", "--granularity=parameter")),
                                            (2, "fsdp", ("--readers=2", "--repeat=5"))):
            with self.subTest(trainers=trainers, layout=layout, arguments=arguments):
                report = self.check(trainers, layout, 2, 1, "mpi", *arguments, sharded="--method=broadcast" not in arguments)
                self.same_snapshot((self.one if "--repeat=2" in arguments else self.two) + ".h5", self.path("out.h5"))
                if "readers" in report:
                    self.assertEqual((report["readers"]["mixed"], report["readers"]["stale"]), (0, 0))
                if "--granularity=parameter" in arguments:
                    self.assertEqual({layer["calls"] % 30 for layer in report["layers"]}, {0})

    def smollm2(self, transport):
        """A real shape of which 2 and 4 ranks cannot hold what an engine's would."""
        reference, digests = self.path("reference.h5"), set()
        self.assertEqual(offline("synth", "--model=smollm2-135m", "--seed=2", "--output", self.path("synth")).returncode, 0)
        self.assertEqual(offline("snapshot", "--checkpoint", self.path("synth"), "--output", reference).returncode, 0)
        for trainers, tp, dp in itertools.product((1, 2, 3, 4), (1, 3), (1, 2)):
            for layout in layouts_of(trainers, (1, 3)):
                with self.subTest(trainers=trainers, layout=layout, tp=tp, dp=dp):
                    report = self.check(trainers, layout, tp, dp, transport, "--model=smollm2-135m", model="smollm2-135m",
                                        initial="synth:1", target="synth:2")
                    self.same_snapshot(reference, self.path("out.h5"))
                    digests.add(report["verify"]["digest"])
        self.assertEqual(len(digests), 1)

    @unittest.skipUnless(ALL, "WEIGHTCAST_LAYOUTS=all")
    def test_a_real_shape_by_mpi(self):
        self.smollm2("mpi")

    @unittest.skipUnless(ALL, "WEIGHTCAST_LAYOUTS=all")
    def test_a_real_shape_by_direct(self):
        self.smollm2("direct")

    def test_made_up_weights_a_sample_and_what_is_left_for_tp(self):
        report, text = self.update(4, "--model=tiny", "--trainers=2", "--verify=sample", initial="synth:1", target="synth:2")
        self.assertEqual((report["world"]["tp"], report["source_layout"]), (2, "fsdp"))
        self.assertIn("2 trainer ranks + 1 x tp 2 engine ranks", text)
        self.assertEqual(report["verify"]["parameters"], 12)

    def test_preflight_and_bench_know_them(self):
        done = mpirun(4, "update", "--preflight", "--trainers=3")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("3 trainer ranks + 1 x tp 1 engine ranks", done.stdout)
        self.assertEqual(re.findall(r"(?m)^ +\d +(trainer|engine) ", done.stdout), ["trainer"] * 3 + ["engine"])
        done = mpirun(5, "bench", "--model=tiny", "--trainers=3", "--transport=mpi,direct", "--repeat=2", "--warmup=1", "--ceiling",
                      "--granularity=model,parameter", "--json", self.path("bench.json"))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        rows = self.report(self.path("bench.json"))["rows"]
        planned = self.planned_egress("--model=tiny", "--trainers=3", "--tp=2")
        self.assertEqual([(r["trainers"], r["source_layout"], r["wrong"], r["trainer_egress_bytes"]) for r in rows],
                         [(3, "fsdp", 0, planned)] * 4)
        for row in rows:
            self.assertAlmostEqual(row["ratio_to_ceiling"] * row["ceiling_GBps"] / row["model_GBps"], 1, delta=1e-3)  # four digits


class BadInput(cli_update.Workplace):
    def test_wrong_number_of_ranks(self):
        for ranks, arguments, needed in ((3, ["--trainers=3"], 4), (2, ["--trainers=4"], 5), (3, ["--trainers=2", "--tp=2"], 4),
                                         (5, ["--trainers=2", "--dp=2"], 4), (4, ["--trainers=2", "--tp=1"], 3)):
            with self.subTest(ranks=ranks, arguments=arguments):
                self.assertIn(f"mpirun -n {needed},", self.refused(CONFIG, *arguments, ranks=ranks))

    def test_wrong_words(self):
        for arguments in (["--trainers=0"], ["--trainers=two"], ["--trainers=2", "--source-layout=custom"], ["--source-layout=pigeon"]):
            with self.subTest(arguments=arguments):
                self.refused(USAGE, *arguments, reported=False)

    def test_a_layout_that_does_not_divide(self):
        block = self.refused(CONFIG, "--trainers=3", "--source-layout=tp", "--tp=1", ranks=4)
        self.assertIn("trainer ranks cannot hold what an engine's would: model.embed_tokens.weight", block)
        self.assertIn("1, 2, 4", block)

    def test_ranks_that_disagree(self):
        for first, others, ranks, fragments in ((["--trainers=1"], ["--trainers=2"], 3, ("--trainers 1", "--trainers 2")),
                                                (["--trainers=2"], ["--trainers=1"], 3, ("--trainers 1", "--trainers 2")),
                                                (["--trainers=2"], ["--trainers=2", "--source-layout=whole"], 3, ("--source-layout fsdp", "--source-layout whole"))):
            with self.subTest(first=first, others=others):
                job = ["update", "--initial", self.one, "--target", self.two, "--json", self.path("report.json")]
                program = cli_update.PROGRAM
                done = run([cli_update.MPIEXEC, "-n", 1, program, *job, *first, ":", "-n", ranks - 1, program, *job, *others])
                self.one_block(done, CONFIG)
                for fragment in fragments:
                    self.assertIn(fragment, done.stderr)
                self.assertEqual(self.report(self.path("report.json"))["updates"], [])


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    cli_update.PROGRAM, cli_update.MPIEXEC = os.path.abspath(sys.argv.pop(1)), sys.argv.pop(1)
    unittest.main()
