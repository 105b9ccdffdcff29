#!/usr/bin/env python3
"""`weightcast update` and `bench` under mpirun, as a user meets them: results, bad input, and ranks that die.

usage: cli_update.py PROGRAM MPIEXEC [Success|BadInput|Faults|unittest arguments]
ctest runs it with the environment that mpiexec wants on a small machine (WEIGHTCAST_MPI_ENVIRONMENT).
"""

import itertools
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import trace_checks
import workplace
from workplace import data_of, header_of, read_safetensors, run, unfolded, write_safetensors

HERE = os.path.dirname(os.path.abspath(__file__))
CHECK_REPORT = os.path.join(HERE, "..", "interop", "check_report.py")
PROGRAM, MPIEXEC = "", ""
LAYERS, STAGES = ["engine", "scheduler", "tp_worker", "model_runner"], ["prepare", "stage", "verify", "vote", "commit"]
USAGE, BAD_DATA, NO_INPUT, CANT_CREATE, IO_ERROR, MISMATCH, CONFIG, DEADLINE = 64, 65, 66, 73, 74, 76, 78, 124


def offline(*arguments):
    return run([PROGRAM, *arguments])


def start(ranks, *arguments, **keywords):
    return workplace.start([MPIEXEC, "-n", ranks, PROGRAM, *arguments], **keywords)


def mpirun(ranks, *arguments, **keywords):
    return run([MPIEXEC, "-n", ranks, PROGRAM, *arguments], **keywords)


def write_checkpoint(folder, text, data):
    write_safetensors(os.path.join(folder, "model.safetensors"), text, data)


class Workplace(workplace.Workplace):
    """For all tests two checkpoints of the shape `tiny` and their snapshots."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.one, cls.two = os.path.join(cls.shared, "one"), os.path.join(cls.shared, "two")
        for folder, seed, shard_size in ((cls.one, 1, "5G"), (cls.two, 2, "100K")):
            done = offline("synth", "--model=tiny", "--seed", seed, "--shard-size", shard_size, "--output", folder)
            assert done.returncode == 0, done.stderr
            done = offline("snapshot", "--checkpoint", folder, "--output", folder + ".h5")
            assert done.returncode == 0, done.stderr

    def report(self, path):
        checked = subprocess.run([sys.executable, CHECK_REPORT, path], text=True, capture_output=True, check=False)
        self.assertEqual(checked.returncode, 0, checked.stderr)
        with open(path, encoding="utf-8") as file:
            return json.load(file)

    def no_leftovers(self):
        left = [name for _, _, names in os.walk(self.folder) for name in names if ".tmp." in name]
        self.assertEqual(left, [])

    def same_snapshot(self, a, b):
        if shutil.which("h5diff"):
            done = subprocess.run(["h5diff", a, b], text=True, capture_output=True, check=False)
            self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)
        done = offline("verify", a, b)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def update(self, ranks, *arguments, initial=None, target=None, **keywords):
        """The report of an update that succeeds, and its standard output."""
        path = self.path("report.json")
        done = mpirun(ranks, "update", "--initial", initial or self.one, "--target", target or self.two, "--json", path,
                      *arguments, **keywords)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertNotIn("weightcast: error", done.stderr)
        report = self.report(path)
        self.assertTrue(report["ok"])
        self.no_leftovers()
        return report, done.stdout

    def refused(self, status, *arguments, ranks=3, initial=None, target=None, reported=True, **keywords):
        """The error block of an update that must end with `status`, one block, a report, and nothing else written."""
        outputs = tempfile.mkdtemp(dir=self.folder)
        report, snapshot = os.path.join(outputs, "report.json"), os.path.join(outputs, "out.h5")
        done = mpirun(ranks, "update", "--initial", initial or self.one, "--target", target or self.two, "--json", report,
                      "--snapshot", snapshot, *arguments, **keywords)
        self.one_block(done, status)
        self.assertEqual(os.listdir(outputs), ["report.json"] if reported else [])
        if reported:
            content = self.report(report)
            self.assertFalse(content["ok"])
            self.assertEqual(content["error"]["code"], status)
            if content["error"]["stage"] == "load":
                world = content["world"]
                self.assertEqual((world["trainers"] + world["tp"] * world["dp"], content["method"]), (ranks, "sharded"))
            self.assertEqual([u for u in content["updates"] if u["result"] == "committed"], [])
        self.no_leftovers()
        return done.stderr

    def one_block(self, done, status):
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        self.assertEqual(done.stderr.count("weightcast: error: "), 1, done.stderr)
        self.assertIn(f"(exit status {status})", done.stderr)
        self.assertRegex(done.stderr, r"(?m)^  where  rank \d+, host ")


class Success(Workplace):
    def test_every_way_leads_to_the_same_weights(self):
        digests = set()
        for tp, dp, transport, method, granularity, commit, verify in (
                (1, 1, "mpi", "sharded", "model", "swap", "all"),
                (2, 1, "mpi", "broadcast", "parameter", "swap", "all"),
                (4, 1, "direct", "sharded", "model", "in-place", "all"),
                (8, 1, "mpi", "sharded", "model", "swap", "all"),
                (1, 2, "mpi", "broadcast", "model", "in-place", "none"),
                (2, 2, "mpi", "sharded", "parameter", "in-place", "all"),
                (2, 2, "direct", "sharded", "parameter", "swap", "sample"),
                (4, 2, "mpi", "broadcast", "model", "swap", "all")):
            choice = {"transport": transport, "method": method, "granularity": granularity, "commit": commit}
            with self.subTest(tp=tp, dp=dp, verify=verify, **choice):
                snapshot = self.path("out.h5")
                report, text = self.update(1 + tp * dp, "--tp", tp, "--dp", dp, "--verify", verify, "--snapshot", snapshot, "--force",
                                           *(f"--{k}={v}" for k, v in choice.items()))
                self.same_snapshot(self.two + ".h5", snapshot)
                self.assertLessEqual(choice.items(), report.items())
                self.assertEqual(report["world"], {"trainer": 1, "trainers": 1, "tp": tp, "dp": dp})
                self.assertEqual((report["source_layout"], report["updates"][0]["trainer_egress_bytes"]),
                                 ("whole", [report["updates"][0]["egress_bytes"]]))
                self.assertEqual(report["model"], {"family": "llama", "parameters": 30, "bytes": 224128})
                self.assertEqual([u["result"] for u in report["updates"]], ["committed"])
                self.assertEqual([r["role"] for r in report["ranks"]], ["trainer"] + ["engine"] * tp * dp)
                self.assertEqual([layer["layer"] for layer in report["layers"]], LAYERS)
                self.assertEqual([stage["layer"] for stage in report["stages"]], STAGES)
                self.assertEqual({layer["calls"] for layer in report["layers"] + report["stages"]}, {30 if granularity == "parameter" else 1})
                self.assertEqual(text.count("# engine "), 2 if granularity == "parameter" else 0)  # cold and warm
                if verify == "all":
                    self.assertIn("30 of 30 parameters verified\n", text)
                    self.assertEqual(report["verify"]["mismatched"], 0)
                    digests.add(report["verify"]["digest"])
                else:
                    self.assertNotIn("30 of 30", text)
        self.assertEqual(len(digests), 1, "the digest depends on how the weights were cut")

    def test_repeat_alternates(self):
        for repeat, last, commit in ((3, self.two, "swap"), (2, self.one, "in-place")):
            snapshot = self.path(f"{repeat}.h5")
            report, _ = self.update(3, "--repeat", repeat, "--commit", commit, "--snapshot", snapshot)
            self.assertEqual([(u["id"], u["version"]) for u in report["updates"]], [(i, i + 1) for i in range(1, repeat + 1)])
            self.same_snapshot(last + ".h5", snapshot)

    def test_readers_see_whole_versions(self):
        for tp, dp, commit, granularity in ((1, 1, "swap", "model"), (2, 1, "in-place", "model"), (2, 2, "swap", "parameter")):
            with self.subTest(tp=tp, dp=dp, commit=commit, granularity=granularity):
                report, text = self.update(1 + tp * dp, "--tp", tp, "--dp", dp, "--repeat=5", "--readers=2",
                                           f"--commit={commit}", f"--granularity={granularity}")
                readers = report["readers"]
                self.assertEqual((readers["count"], readers["mixed"], readers["stale"]), (2, 0, 0))
                self.assertGreaterEqual(readers["reads"], 2)
                self.assertEqual([layer["layer"] for layer in readers["layers"]], LAYERS)
                self.assertEqual([u["result"] for u in report["updates"]], ["committed"] * 5)
                self.assertIn("# 2 readers per engine: ", text)

    def test_scrubs_beside_readers(self):
        for tp, dp, commit, granularity, repeat, every in ((1, 1, "in-place", "model", 3, 1), (2, 1, "swap", "parameter", 5, 2),
                                                           (2, 2, "swap", "model", 4, 5)):
            with self.subTest(tp=tp, dp=dp, every=every):
                report, _ = self.update(1 + tp * dp, "--tp", tp, "--dp", dp, "--repeat", repeat, "--scrub", every,
                                        "--readers=2", f"--commit={commit}", f"--granularity={granularity}")
                self.assertEqual(report["summary"]["scrubs"], repeat // every)
                self.assertEqual(report["summary"]["scrub_s"] is None, repeat < every)
                self.assertEqual((report["readers"]["mixed"], report["readers"]["stale"]), (0, 0))
        report, text = self.update(2, "--scrub=1", "--verify=none")
        self.assertNotIn("scrubs", report["summary"])
        self.assertRegex(text, r"(?m)^# note: nothing is scrubbed: only --verify all ")
        self.assertNotIn("scrubs", self.update(2)[0]["summary"])

    def test_made_up_weights_are_those_of_synth(self):
        report, _ = self.update(3, "--model=tiny", "--transport=mpi", "--snapshot", self.path("out.h5"), initial="synth:1", target="synth:2")
        self.same_snapshot(self.two + ".h5", self.path("out.h5"))
        self.assertEqual(report["transport"], "mpi")

    def test_sample_is_before_and_after(self):
        report, text = self.update(3, "--verify=sample", "--truncate=10")
        text = unfolded(text)
        self.assertRegex(text, r"(?m)^# sample: 12 parameters x 10 rows equal to .*one before the update, and initial and target differ")
        self.assertRegex(text, r"(?m)^# sample: 12 parameters x 10 rows equal to .*two after the update$")
        self.assertEqual((report["verify"]["mode"], report["verify"]["parameters"]), ("sample", 12))

    def test_preflight_moves_nothing(self):
        done = mpirun(3, "update", "--preflight")
        self.assertEqual(done.returncode, 0, done.stderr)
        for rank, role in ((0, "trainer"), (1, "engine"), (2, "engine")):
            self.assertRegex(done.stdout, rf"(?m)^ +{rank} +{role} ")
        self.assertRegex(done.stdout, r"(?m)^  direct +usable$")
        self.assertRegex(done.stdout, r"(?m)^  mpi +usable$")

    def test_preflight_checks_the_transport(self):
        self.assertEqual(mpirun(3, "update", "--preflight", "--transport=mpi").returncode, 0)
        done = mpirun(3, "update", "--preflight", "--transport=nccl")
        self.assertEqual(done.returncode, CONFIG, done.stderr)
        self.assertEqual(done.stderr.count("weightcast: error: no transport can be used. nccl: rank 0: "), 1, done.stderr)
        self.assertRegex(done.stdout, r"(?m)^  mpi +usable$")

    def test_options_from_variables_and_a_file(self):
        config = self.write("settings.ini", "transport = mpi\nmethod = broadcast\nrepeat = 2\n")
        report, _ = self.update(3, "--config", config, env={"WEIGHTCAST_METHOD": "sharded"})
        self.assertEqual((report["transport"], report["method"], len(report["updates"])), ("mpi", "sharded", 2))

    def test_output_is_replaced(self):
        self.write("out.h5", "something else")
        self.write("report.json", "something else")
        self.update(3, "--snapshot", self.path("out.h5"), "--force")  # reports need none
        self.same_snapshot(self.two + ".h5", self.path("out.h5"))

    def test_bench_sends_what_plan_says(self):
        # A shape in which 8 ranks share no key/value head, and one in which they do.
        with open(os.path.join(self.one, "config.json"), encoding="utf-8") as file:
            wide = {**json.load(file), "num_key_value_heads": 8, "num_hidden_layers": 1, "hidden_size": 256, "intermediate_size": 4096}
        for shape, worlds in (("tiny", ((1, 1), (4, 2), (8, 1))), (self.write("wide.json", json.dumps(wide)), ((2, 1), (4, 1), (8, 1), (2, 2)))):
            for tp, dp in worlds:
                with self.subTest(shape=shape, tp=tp, dp=dp):
                    plan = offline("plan", "--model", shape, "--tp", tp, "--dp", dp).stdout
                    egress = int(re.search(r"(?m)^trainer egress +(\d+) bytes", plan).group(1))
                    replication = re.search(r"(?m)^replication adds +(\d+) bytes", plan)
                    done = mpirun(1 + tp * dp, "bench", "--model", shape, "--tp", tp, "--dp", dp, "--transport=mpi", "--method=sharded",
                                  "--repeat=2", "--warmup=0", "--json", self.path("bench.json"))
                    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                    row, = self.report(self.path("bench.json"))["rows"]
                    self.assertEqual(row["egress_bytes"], egress)
                    self.assertEqual(row["egress_bytes"], row["model_bytes"] + int(replication.group(1) if replication else 0))
                    if shape != "tiny":
                        self.assertEqual(f"{row['egress_bytes'] / row['model_bytes']:.2f}", "1.00")
                    self.assertEqual((row["tp"], row["dp"], row["wrong"]), (tp, dp, 0))

    def test_bench_prints_a_row_for_each_combination(self):
        done = mpirun(3, "bench", "--model=tiny", "--transport=mpi,direct", "--method=sharded,broadcast", "--granularity=model,parameter",
                      "--repeat=3", "--warmup=1", "--ceiling", "--wide", "--json", self.path("bench.json"))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        rows = self.report(self.path("bench.json"))["rows"]
        combinations = {(r["transport"], r["method"], r["granularity"]) for r in rows}
        self.assertEqual(combinations, {(t, m, g) for t, m in (("mpi", "sharded"), ("mpi", "broadcast"), ("direct", "sharded"))
                                        for g in ("model", "parameter")})
        self.assertEqual(len(rows), 6)
        for row in rows:
            self.assertLessEqual(row["min_s"], row["median_s"])
            self.assertLessEqual(row["median_s"], row["max_s"])
            self.assertAlmostEqual(row["ratio_to_ceiling"] * row["ceiling_GBps"] / row["model_GBps"], 1, delta=1e-3)  # four digits
            self.assertEqual((row["verify"], row["wrong"], row["group_warmup"]), ("all", 0, True))
            self.assertEqual("layers" in row, row["granularity"] == "parameter")
            for layer in row.get("layers", []) + row.get("stages", []):
                self.assertEqual((layer["cold"]["calls"], layer["warm"]["calls"]), (30, 120))  # 3 timed, 1 before the last
                self.assertLessEqual(layer["warm"]["own_median_s"], layer["warm"]["p99_s"])
                self.assertIn(f" {layer['layer']} ", done.stdout)
        lines = done.stdout.splitlines()
        header = next(line for line in lines if line.startswith("model "))
        self.assertEqual(header.split(), ["model", "size", "transport", "method", "unit", "verify", "cold", "median", "min", "max", "p99",
                                          "GB/s", "egress", "staging", "#wrong", "ceiling", "ratio"])
        self.assertEqual(len([line for line in lines if line.startswith("tiny ")]), 6)
        done = mpirun(2, "bench", "--model=tiny", "--transport=mpi", "--verify=none,all", "--repeat=1", "--group-warmup=off", "--json",
                      self.path("bench.json"))
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = self.report(self.path("bench.json"))["rows"]
        self.assertEqual([(row["verify"], row["ceiling_GBps"], row["ratio_to_ceiling"], row["group_warmup"]) for row in rows],
                         [("none", None, None, False), ("all", None, None, False)])


class BadInput(Workplace):
    def damaged(self, change):
        """A copy of checkpoint one whose single file was rewritten by change(folder, tensors)."""
        folder = tempfile.mkdtemp(dir=self.folder)
        shutil.copy(os.path.join(self.one, "config.json"), folder)
        change(folder, read_safetensors(os.path.join(self.one, "model.safetensors")))
        return folder

    def test_malformed_checkpoints(self):
        norm = "model.norm.weight"

        def rewrite(edit):
            def change(folder, tensors):
                header = header_of(tensors)
                edit(header)
                write_checkpoint(folder, json.dumps(header), data_of(tensors))
            return change

        def truncated(folder, tensors):
            write_checkpoint(folder, json.dumps(header_of(tensors)), data_of(tensors)[:-1])

        def overlong(folder, tensors):
            write_checkpoint(folder, json.dumps(header_of(tensors)), data_of(tensors) + b"x")

        def overlap(header):
            header[norm]["data_offsets"] = [n - 2 for n in header[norm]["data_offsets"]]

        def twice(folder, tensors):
            text = json.dumps(header_of(tensors))
            entry = re.search(rf'"{norm}": {{[^}}]*}}', text).group(0)
            write_checkpoint(folder, text[:-1] + ", " + entry + "}", data_of(tensors))

        def overflow(header):
            header[norm]["shape"] = [2**62, 2**62]

        def almost_overflow(header):
            header[norm]["shape"] = [2**63, 2]  # x 16 bits wraps to a small number

        def cut_header(folder, tensors):
            write_checkpoint(folder, json.dumps(header_of(tensors)), data_of(tensors))
            os.truncate(os.path.join(folder, "model.safetensors"), 100)

        def huge_header(folder, _):
            with open(os.path.join(folder, "model.safetensors"), "wb") as file:
                file.write(struct.pack("<Q", 2**63) + b"{}")

        def empty(folder, _):
            write_checkpoint(folder, "", b"")
            os.truncate(os.path.join(folder, "model.safetensors"), 0)

        def index(target):
            def change(folder, tensors):
                write_checkpoint(os.path.dirname(folder), json.dumps(header_of(tensors)), data_of(tensors))
                with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
                    json.dump({"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, target)}, file)
            return change

        cases = (
            ("truncated", truncated, BAD_DATA, ("byte", "truncated")),
            ("overlong", overlong, BAD_DATA, ("byte",)),
            ("overlapping", rewrite(overlap), BAD_DATA, ("byte", norm)),
            ("duplicate name", twice, BAD_DATA, ("byte", norm)),
            ("wrong dtype", rewrite(lambda h: h[norm].update(dtype="I16")), BAD_DATA, (norm, "I16", "BF16")),
            ("unknown dtype", rewrite(lambda h: h[norm].update(dtype="BF17")), BAD_DATA, ("byte", "BF17")),
            ("wrong shape", rewrite(lambda h: h[norm].update(shape=[2, 32])), BAD_DATA, (norm, "[2, 32]", "[64]")),
            ("overflowing", rewrite(overflow), BAD_DATA, ("byte", norm)),
            ("almost overflowing", rewrite(almost_overflow), BAD_DATA, ("byte", norm)),
            ("header cut off", cut_header, BAD_DATA, ("model.safetensors",)),
            ("header too large", huge_header, BAD_DATA, ("model.safetensors",)),
            ("empty", empty, BAD_DATA, ("model.safetensors",)),
            ("path escape", index("../model.safetensors"), BAD_DATA, ("../model.safetensors", "index.json")),
            ("absolute path", index(os.path.join(self.one, "model.safetensors")), BAD_DATA, ("index.json",)),
            ("missing shard", index("model-00001-of-00001.safetensors"), NO_INPUT, ("model-00001-of-00001.safetensors",)),
        )
        for name, change, status, fragments in cases:
            with self.subTest(name):
                folder = self.damaged(change)
                block = self.refused(status, target=folder)
                for fragment in (folder, "stage load", *fragments):
                    self.assertIn(fragment, block)
        with self.subTest("initial"):
            self.assertIn(norm, self.refused(BAD_DATA, initial=self.damaged(rewrite(overlap))))

    def test_missing_and_extra_parameters_are_each_named(self):
        gone, extra = ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"), ("surplus", "model.layers.3.input_layernorm.weight")

        def change(folder, tensors):
            for name in gone:
                del tensors[name]
            tensors.update(dict.fromkeys(extra, ("BF16", [2], bytes(4))))
            write_checkpoint(folder, json.dumps(header_of(tensors)), data_of(tensors))

        for where in ("initial", "target"):
            block = self.refused(BAD_DATA, **{where: self.damaged(change)})
            for name in (*gone, *extra):
                self.assertIn(name, block)

    def test_initial_and_target_of_different_shape(self):
        with open(os.path.join(self.one, "config.json"), encoding="utf-8") as file:
            config = {**json.load(file), "intermediate_size": 128}
        other = self.path("other")
        self.assertEqual(offline("synth", "--model", self.write("other.json", json.dumps(config)), "--output", other).returncode, 0)
        for pair in ({"initial": other}, {"target": other}):
            block = self.refused(BAD_DATA, **pair)
            self.assertIn("model.layers.0.mlp.gate_proj.weight", block)
            self.assertIn("[128, 64]", block)
            self.assertIn("[96, 64]", block)

    def test_bad_configs(self):
        for text, status in (("{", BAD_DATA), ('{"model_type": "llama"}', BAD_DATA), ('{"architectures": ["MambaForCausalLM"], "model_type": "mamba"}', CONFIG)):
            def change(folder, tensors, text=text):
                write_checkpoint(folder, json.dumps(header_of(tensors)), data_of(tensors))
                with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
                    file.write(text)
            self.assertIn("config.json", self.refused(status, target=self.damaged(change)))

    def test_tp_that_does_not_divide_costs_no_memory(self):
        limit = 200 << 20  # less than one copy of the model
        block = self.refused(CONFIG, "--model=smollm2-135m", "--tp=2", initial="synth:1", target="synth:2",
                             preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
        self.assertIn("model.layers.0.self_attn.q_proj.weight", block)
        self.assertIn("tp 1, 3", block)

    def test_wrong_number_of_ranks(self):
        for ranks, arguments in ((3, ["--tp=3"]), (3, ["--tp=1"]), (4, ["--dp=2"]), (1, [])):
            with self.subTest(ranks=ranks, arguments=arguments):
                self.assertIn("mpirun -n", self.refused(CONFIG, *arguments, ranks=ranks))

    def test_missing_input(self):
        for where in ("initial", "target"):
            self.assertIn("/no/such/path", self.refused(NO_INPUT, **{where: "/no/such/path"}))
        folder = self.damaged(lambda folder, _: None)  # config.json alone
        self.assertIn(folder, self.refused(NO_INPUT, target=folder))

    def test_a_path_that_is_not_text(self):
        block = self.refused(NO_INPUT, "--model=tiny", target=b"/no/such/\xff\x1b[31m".decode(errors="surrogateescape"), errors="replace")
        self.assertNotIn("\x1b", block)

    def test_impossible_choices(self):
        for arguments, fragment in ((["--transport=nccl"], "nccl"), (["--transport=direct", "--method=broadcast"], "broadcast"),
                                    (["--device=cuda"], "--device host"), (["--gpus=0,1"], "--gpus")):
            self.assertIn(fragment, self.refused(CONFIG, *arguments))

    def test_wrong_usage(self):
        for arguments in (["--nonsense"], ["--transport=pigeon"], ["--timeout=0s"], ["surplus"]):
            self.refused(USAGE, *arguments, reported=False)
        self.assertIn("--model", self.refused(USAGE, initial="synth:1", target="synth:2", reported=False))

    def test_a_config_file_with_a_typo(self):
        config = self.write("settings.ini", "transport = mpi\ntimeuot = 3s\n")
        block = self.refused(CONFIG, "--config", config, reported=False)
        self.assertIn("timeuot", block)
        self.assertIn(config, block)

    def test_an_unknown_variable(self):
        self.assertIn("WEIGHTCAST_TIMEUOT", self.refused(CONFIG, env={"WEIGHTCAST_TIMEUOT": "3s"}, reported=False))

    def test_a_sample_that_proves_nothing(self):
        self.assertIn("proves nothing", self.refused(MISMATCH, "--verify=sample", target=self.one))

    def test_outputs_that_cannot_be_created(self):
        plain = self.write("plain", "")
        for option, wrong in (("--snapshot", os.path.join(plain, "x")), ("--snapshot", self.path("no", "such", "x")),
                              ("--json", self.path("no", "such", "x")), ("--json", "/dev/full/x"), ("--trace", os.path.join(plain, "x"))):
            with self.subTest(option=option, wrong=wrong):
                done = mpirun(3, "update", "--initial", self.one, "--target", self.two, option, wrong)
                self.one_block(done, CANT_CREATE)
                self.assertIn(wrong, done.stderr)
                self.assertNotIn("committed", done.stdout)
        self.assertEqual(os.listdir(self.folder), ["plain"])

    def test_a_full_disk(self):
        disk = self.small_disk()
        for option, arguments in (("--snapshot", []), ("--json", ["--repeat=400"])):  # a report of more than 64 kB
            with self.subTest(option):
                done = mpirun(3, "update", "--initial", self.one, "--target", self.two, *arguments, option, os.path.join(disk, "x"))
                self.one_block(done, IO_ERROR)
                self.assertIn(disk, done.stderr)
                self.assertEqual(os.listdir(disk), [])


class Faults(Workplace):
    """Ranks that die or stop while updates run."""

    def begin(self, *arguments, ranks=3, trainers=1):
        """A job that updates for ever, some updates after its start."""
        self.report_path = self.path("report.json")
        out, err = (open(self.path(name), "w", encoding="utf-8") for name in ("stdout", "stderr"))
        with out, err:
            job = start(ranks, "update", "--initial", self.one, "--target", self.two, "--repeat=1000000", "--json", self.report_path,
                        "--trainers", trainers, *arguments, stdout=out, stderr=err)
        self.addCleanup(self.end, job)
        until = time.monotonic() + 60
        while not re.search(r"(?m)^ +3 +4 +committed", self.text("stdout")):
            self.assertIsNone(job.poll(), self.text("stderr"))
            self.assertLess(time.monotonic(), until, "no updates within a minute")
            time.sleep(0.05)
        return job

    def text(self, name):
        with open(self.path(name), encoding="utf-8") as file:
            return file.read()

    def trace(self):
        """What --trace=trace.json has written."""
        trace = json.loads(self.text("trace.json"))
        self.assertEqual(trace_checks.problems_of(trace), [])
        return trace

    def processes(self):
        """{rank: pid} of this test's ranks that live; mpirun itself has the rank None."""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    if self.report_path.encode() not in file.read():
                        continue
                with open(f"/proc/{pid}/environ", "rb") as file:
                    rank = re.search(rb"(?:^|\0)OMPI_COMM_WORLD_RANK=(\d+)", file.read())
            except OSError:
                continue
            found[int(rank.group(1)) if rank else None] = int(pid)
        return found

    def end(self, job):
        if job.poll() is None:
            job.terminate()
            job.wait()
        for pid in self.processes().values():
            os.kill(pid, signal.SIGKILL)

    def everybody_is_gone(self):
        until = time.monotonic() + 10
        while self.processes() and time.monotonic() < until:
            time.sleep(0.1)
        self.assertEqual(self.processes(), {})

    def test_a_killed_rank_ends_the_job(self):
        for rank, trainers in ((0, 1), (2, 1), (1, 2)):
            with self.subTest(rank=rank, trainers=trainers):
                job = self.begin(trainers=trainers)
                os.kill(self.processes()[rank], signal.SIGKILL)
                self.assertNotEqual(job.wait(timeout=30), 0)
                self.everybody_is_gone()
                self.no_leftovers()

    def flip_bits_of(self, rank, pattern, job):
        """Flips bits of a tensor in a rank's slots, where it is `pattern` now, until the job ends."""
        pid = self.processes()[rank]
        with open(f"/proc/{pid}/maps", encoding="utf-8") as file:
            maps = [line.split()[:2] for line in file]
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            places = []
            for first, end in (map(lambda text: int(text, 16), span.split("-")) for span, may in maps if may == "rw-p"):
                try:
                    memory.seek(first)
                    places += [first + found.start() for found in re.finditer(re.escape(pattern), memory.read(end - first))]
                except OSError:  # a device's
                    continue
            places = [place for place in places if place % 256 == 0]  # tensors of slots begin there, what is MPI's hardly
            self.assertNotEqual(places, [])
            try:
                for at in itertools.cycle(range(len(pattern))):
                    for place in places:
                        memory.seek(place + at)
                        byte, = memory.read(1)
                        memory.seek(place + at)
                        memory.write(bytes([byte ^ 1]))
                    if job.poll() is not None:
                        return
            except (OSError, ValueError):  # it has ended
                return

    def test_memory_that_changes_after_the_commit_ends_the_job(self):
        name = "model.norm.weight"
        pattern = read_safetensors(os.path.join(self.one, "model.safetensors"))[name][2]
        stages = []
        # direct digests each block as it writes it: what changes after that, only a scrub sees. mpi digests what has arrived
        # in VERIFY, which then finds most flips, before the commit.
        while "scrub" not in stages and len(stages) < 10:
            job = self.begin("--scrub=1", "--transport=direct", f"--trace={self.path('trace.json')}")
            self.flip_bits_of(2, pattern, job)
            self.assertEqual(job.wait(timeout=30), MISMATCH, self.text("stderr"))
            report = self.report(self.path("report.json"))
            self.assertEqual((report["error"]["code"], report["error"]["rank"]), (MISMATCH, 2))
            stages.append(report["error"]["stage"])
            self.assertEqual(self.text("stderr").count("weightcast: error: "), 1)
            self.assertEqual(sorted(trace_checks.names_of(self.trace(), "process_name")), [0, 1, 2])
            for tracks in trace_checks.tracks_of(self.trace()).values():  # an update that failed in the last calls
                calls = [e for name, spans in tracks.items() if trace_checks.plain(name) in trace_checks.PATH for e in spans]
                self.assertEqual({e["args"]["update"] for e in calls if "failed" in e["args"]},
                                 {len(report["updates"])} if stages[-1] == "verify" else set())
        self.assertIn("scrub", stages)
        self.assertRegex(report["error"]["message"], rf"{name} of version \d+ is not what was committed")
        self.assertIn("publish a whole version", self.text("stderr"))
        self.assertGreater(report["summary"]["scrubs"], 0)

    def test_a_stopped_rank_is_named_when_the_deadline_has_passed(self):
        for rank, transport, trainers in ((2, "mpi", 1), (1, "direct", 1), (0, "mpi", 1), (1, "mpi", 2)):
            with self.subTest(rank=rank, transport=transport, trainers=trainers):
                if os.path.exists(self.path("report.json")):
                    os.remove(self.path("report.json"))
                job = self.begin("--timeout=2s", "--transport", transport, f"--trace={self.path('trace.json')}", trainers=trainers)
                os.kill(self.processes()[rank], signal.SIGSTOP)
                self.assertEqual(job.wait(timeout=60), DEADLINE, self.text("stderr"))
                block = self.text("stderr")
                blocks = block.split("weightcast: error: ")[1:]
                if rank == 0 and len(blocks) == 2:  # mpirun woke the trainer before it killed it: it may complain, too
                    self.assertRegex(blocks.pop(1), r"where  rank 0, host |did not answer in time")
                self.assertEqual(len(blocks), 1, block)
                self.assertRegex(block, rf"weightcast: error: .*\brank {rank}\b")
                self.assertRegex(block, rf"(?m)^  where  rank {rank}, .*{'trainer' if rank < trainers else 'engine'}, stage ")
                self.everybody_is_gone()
                if rank != 0:  # the trainer is well and writes the report
                    error = self.report(self.report_path)["error"]
                    self.assertEqual((error["code"], error["rank"]), (DEADLINE, rank))
                    self.no_leftovers()
                    trace = self.trace()  # what the trainer knows itself
                    self.assertEqual(list(trace_checks.names_of(trace, "process_name")), [0])
                    self.assertIn("trainer", map(trace_checks.plain, trace_checks.tracks_of(trace)[0]))
                elif os.path.exists(self.report_path):  # mpirun woke the trainer before it killed it
                    self.report(self.report_path)

    def test_a_signal_ends_the_job_between_updates(self):
        """One rank is told, all leave; SIGUSR1 to mpirun goes to every rank."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # mpirun inherits it, if who started this had blocked it
        for target, number, trainers in ((1, signal.SIGUSR1, 1), (0, signal.SIGTERM, 1), (1, signal.SIGINT, 1), (None, signal.SIGUSR1, 1),
                                         (1, signal.SIGUSR1, 2)):
            with self.subTest(rank=target, signal=number, trainers=trainers):
                job = self.begin(trainers=trainers)
                os.kill(self.processes()[target], number)
                self.assertEqual(job.wait(timeout=30), DEADLINE, self.text("stderr"))
                self.everybody_is_gone()
                self.no_leftovers()
                report = self.report(self.report_path)
                self.assertEqual({u["result"] for u in report["updates"]}, {"committed"})
                self.assertIn(f"stopped by {number.name} after {len(report['updates'])} updates", report["error"]["message"])
                self.assertEqual(self.text("stderr").count("weightcast: error: "), 1, self.text("stderr"))
                os.remove(self.report_path)

    def test_an_interrupt_leaves_no_processes(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number):
                job = self.begin()
                job.send_signal(number)
                self.assertNotEqual(job.wait(timeout=30), 0)
                self.everybody_is_gone()
                self.no_leftovers()


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    PROGRAM, MPIEXEC = os.path.abspath(sys.argv.pop(1)), sys.argv.pop(1)
    unittest.main()
