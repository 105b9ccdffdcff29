#!/usr/bin/env python3
"""The scripts around `weightcast bench`: plot_bench.py, baseline_model.py, baseline_torch.py, jobs/bench_gpu.sh.

usage: bench_tools.py PROGRAM MPIEXEC [Tables|Cuts|Jobs|Baseline|unittest arguments]
Exit status 77: everything that was asked for needs PyTorch, and there is none.
"""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import unittest

from check_report import problems_of

ROOT = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
TOOLS = os.path.join(ROOT, "tools")
sys.path.insert(0, TOOLS)
import baseline_model  # noqa: E402

PROGRAM, MPIEXEC = "", ""
USAGE, BAD_DATA, NO_INPUT, UNAVAILABLE, CONFIG = 64, 65, 66, 69, 78


def run(*arguments, timeout=120):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WEIGHTCAST_", "OMPI_COMM", "PMIX_", "SLURM_"))}
    return subprocess.run(list(map(str, arguments)), env=environment, text=True, timeout=timeout, stdin=subprocess.DEVNULL,
                          capture_output=True, check=False)


class InFolder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="weightcast-bench-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def write(self, name, content):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(content if isinstance(content, str) else json.dumps(content))
        return path


def row(median_ms, **changes):
    """A row of Llama-3.2-1B; `changes` are keys of the schema."""
    model_bytes = 2471628800
    return {"model": "llama-3.2-1b", "model_bytes": model_bytes, "device": "cuda", "transport": "direct", "method": "sharded",
            "granularity": "model", "tp": 1, "dp": 1, "verify": "all", "cold_s": 1.25e-3 * median_ms,
            "median_s": 1e-3 * median_ms, "min_s": 0.875e-3 * median_ms, "max_s": 1.125e-3 * median_ms,
            "p99_s": 1.125e-3 * median_ms, "model_GBps": model_bytes / median_ms / 1e6, "egress_bytes": model_bytes,
            "staging_bytes": 0, "wrong": 0, "ceiling_GBps": 400.0,
            "ratio_to_ceiling": model_bytes / median_ms / 1e6 / 400, **changes}


def report(rows, gpus, **changes):
    """What `bench` writes when rank i is on GPU gpus[i] (None: in host memory)."""
    ranks = [{"rank": rank, "role": "engine" if rank else "trainer", "host": "node",
              "gpu": None if gpu is None else f"{gpu} NVIDIA H200 0000:{gpu}B:00.0"} for rank, gpu in enumerate(gpus)]
    return {"schema": "weightcast.report/1", "command": "bench", "ok": True, "exit_code": 0,
            "versions": {"weightcast": "1", "mpi": "1", "nccl": "1", "cuda": "1", "hdf5": "1"}, "rows": rows, "ranks": ranks,
            "error": None, **changes}


class Tables(InFolder):
    PLOT = os.path.join(TOOLS, "plot_bench.py")
    TORCH = {"transport": "torch", "verify": "none", "ceiling_GBps": None, "ratio_to_ceiling": None}

    def plot(self, *arguments):
        return run(sys.executable, self.PLOT, *arguments)

    def reports(self):
        contents = {
            "link.json": report([row(6.4, verify="none"), row(8.0), row(12.8, transport="nccl", method="broadcast", wrong=3)], [0, 1]),
            "torch.json": report([row(16.0, method="seed", granularity="parameter", **self.TORCH),
                                  row(10.0, method="packed", **self.TORCH)], [0, 1]),
            "split.json": report([row(4.0, tp=2), row(160.0, tp=2, granularity="parameter")], [0, 0, 1]),
            "host.json": report([row(640.0, device="host", ceiling_GBps=None, ratio_to_ceiling=None)], [None, None]),
        }
        for name, content in contents.items():
            self.assertEqual(problems_of(content), [], name)
        return [self.write(name, content) for name, content in contents.items()]

    def test_table(self):
        done = self.plot("--markdown", *self.reports())
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        # Worked out by hand: 2.4716288 GB; the ceiling of 400 GB/s is 6.179 ms.
        self.assertEqual(done.stdout.split("\n\n")[0].splitlines()[2:], [
            "| llama-3.2-1b, 2.47 GB, tp 1 across the link | *one plain copy: the ceiling* | | 6.18 | | 400.0 | 1 | |",
            "|  | direct, verified | 10.00 | 8.00 | 7.00 to 9.00 | 309.0 | 0.772 | 0 |",
            "|  | direct, movement alone | 8.00 | 6.40 | 5.60 to 7.20 | 386.2 | 0.965 | 0 |",
            "|  | nccl broadcast, verified | 16.00 | 12.80 | 11.20 to 14.40 | 193.1 | 0.483 | **3** |",
            "|  | PyTorch packed, movement alone | 12.50 | 10.00 | 8.75 to 11.25 | 247.2 | 0.618 | 0 |",
            "|  | PyTorch seed, movement alone | 20.00 | 16.00 | 14.00 to 18.00 | 154.5 | 0.386 | 0 |",
            "| llama-3.2-1b, 2.47 GB, tp 1 in host memory | direct, verified | 800.0 | 640.0 | 560.0 to 720.0 | 3.86 |  | 0 |",
            "| llama-3.2-1b, 2.47 GB, tp 2 with one engine on the trainer's GPU | *one plain copy: the ceiling* | | 6.18 | | "
            "400.0 | 1 | |",
            "|  | direct, verified | 5.00 | 4.00 | 3.50 to 4.50 | 617.9 | 1.545 | 0 |",
            "|  | direct, a call per parameter, verified | 200.0 | 160.0 | 140.0 to 180.0 | 15.45 | 0.039 | 0 |"])
        self.assertIn("NVIDIA H200, host memory", done.stdout)

    def test_several_trainer_ranks(self):
        for gpus, where in (([0, 1, 0, 1], "beside them"), ([0, 1, 2, 3], "across the links"), ([0, 1, 1, 2], "partly beside them"),
                            ([None] * 4, "in host memory")):
            content = report([row(4.0, tp=2, trainers=2, source_layout="fsdp")], gpus)
            content["ranks"][1]["role"] = "trainer"
            self.assertEqual(problems_of(content), [])
            self.assertIn(f" tp 2 from 2 trainer ranks {where} |", self.plot(self.write("report.json", content)).stdout)

    def test_the_later_report_of_a_row_counts(self):
        first, second = (self.write(f"{ms}.json", report([row(ms)], [0, 0])) for ms in (8.0, 4.0))
        table = self.plot(first, second).stdout
        self.assertIn("| 4.00 |", table)
        self.assertNotIn("| 8.00 |", table)
        self.assertIn("tp 1 on the trainer's GPU", table)

    def test_readme(self):
        paths = self.reports()
        readme = self.write("README.md", "before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
        table = self.plot("--markdown", *paths).stdout
        for _ in range(2):  # again: the same
            self.assertEqual(self.plot("--readme", readme, *paths).returncode, 0)
            with open(readme, encoding="utf-8") as file:
                self.assertEqual(file.read(), f"before\n<!-- bench:begin -->\n\n{table}\n<!-- bench:end -->\nafter\n")
        for bad in ("no lines", "<!-- bench:end --><!-- bench:begin -->", "<!-- bench:begin -->" * 2 + "<!-- bench:end -->"):
            readme = self.write("README.md", bad)
            self.assertEqual(self.plot("--readme", readme, *paths).returncode, CONFIG)
            with open(readme, encoding="utf-8") as file:
                self.assertEqual(file.read(), bad)

    def test_bad_input(self):
        self.assertEqual(self.plot().returncode, USAGE)
        self.assertEqual(self.plot("--nonsense", "x").returncode, USAGE)
        self.assertEqual(self.plot(os.path.join(self.folder, "missing.json")).returncode, NO_INPUT)
        update = {"schema": "weightcast.report/1", "command": "update", "ok": True}
        for bad in ("", "[]", "{}", update, report([{}], [0, 1]), report([], [0, 1])):
            done = self.plot(self.write("bad.json", bad))
            self.assertEqual(done.returncode, BAD_DATA, bad)
            self.assertNotIn("Traceback", done.stderr)
        failed = report([row(8.0)], [0, 1], ok=False, exit_code=69, error={"code": 69, "stage": None, "rank": 1, "message": "gone"})
        self.assertIn("this run failed: gone", self.plot(self.write("failed.json", failed)).stderr)

    def test_picture(self):
        prefix = os.path.join(self.folder, "bench")
        done = self.plot("--markdown", "--output", prefix, *self.reports())
        self.assertIn("direct, verified", done.stdout)
        if importlib.util.find_spec("matplotlib") is None:
            self.assertEqual(done.returncode, UNAVAILABLE)
            self.assertIn("matplotlib", done.stderr)
            return
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(prefix + ".png", "rb") as file:
            self.assertEqual(file.read(4), b"\x89PNG")
        with open(prefix + ".svg", encoding="utf-8") as file:
            self.assertIn("</svg>", file.read())

    def test_a_whisker_that_leaves_the_picture_is_marked(self):
        if importlib.util.find_spec("matplotlib") is None:
            self.skipTest(f"{sys.executable} has no matplotlib")
        legend = "leaves the panel"
        for slowest_ms, marks in ((9.0, 0), (250.0, 1)):  # of a panel that ends near 10 ms
            prefix = os.path.join(self.folder, f"{slowest_ms}")
            path = self.write("report.json", report([row(6.4), row(8.0, transport="nccl", max_s=1e-3 * slowest_ms)], [0, 1]))
            done = self.plot("--output", prefix, path)
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(prefix + ".svg", encoding="utf-8") as file:
                picture = file.read()  # which has its texts as comments, too
            self.assertEqual((picture.count("<!-- 250.0 -->"), picture.count(legend)), (marks, marks))


class Cuts(InFolder):
    """The baseline cuts and fuses what `weightcast plan` does."""

    def check_model(self, model, tp):
        done = run(PROGRAM, "plan", "--model", model, "--tp", tp, "--all", "--wide")
        parameters = baseline_model.parameters_of(baseline_model.load_config(str(model)))
        if done.returncode != 0:
            self.assertEqual(done.returncode, CONFIG)
            with self.assertRaises(baseline_model.Failure) as refused:
                for parameter in parameters:
                    baseline_model.cut(parameter, tp, 0)
            self.assertEqual(refused.exception.code, CONFIG)
            return
        shapes, first_rows = baseline_model.layout(parameters, tp)
        planned = {name: tuple(map(int, shape.split(", "))) for name, shape in
                   re.findall(r"(?m)^(\S+) +BF16 +\[([\d, ]+)\] ", done.stdout)}
        self.assertEqual(shapes, planned)
        received = [int(x) for x in re.findall(r"(?m)^ +\d+ +(\d+) +\d+ +\d+ +\d+$", done.stdout)]
        self.assertEqual(len(received), tp)
        for t in range(tp):
            size = 0
            for p in parameters:
                dimension, start, length = baseline_model.cut(p, tp, t)
                self.assertLessEqual(start + length, p.shape[dimension])
                held = [length if i == dimension else n for i, n in enumerate(p.shape)]
                self.assertLessEqual(first_rows[p.name] + held[0], shapes[p.engine_tensor][0])
                self.assertEqual(held[1:], list(shapes[p.engine_tensor][1:]))
                elements = 1
                for n in held:
                    elements *= n
                size += 2 * elements
            self.assertEqual(size, received[t], f"rank {t}")

    def test_named_shapes(self):
        for model in baseline_model.SHAPES:
            for tp in (1, 2, 3, 4, 8):
                with self.subTest(model=model, tp=tp):
                    self.check_model(model, tp)

    def test_config_files(self):
        sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8,
                 "num_key_value_heads": 4, "head_dim": 16, "vocab_size": 200}
        for extra in ({"model_type": "llama", "attention_bias": True, "mlp_bias": True}, {"model_type": "qwen2"},
                      {"model_type": "qwen3", "tie_word_embeddings": True, "attention_bias": True}):
            path = self.write("config.json", {**sizes, **extra})
            for tp in (1, 2, 8):
                with self.subTest(extra=extra, tp=tp):
                    self.check_model(path, tp)

    def test_bad_models(self):
        for content, code in (("", BAD_DATA), ("[]", BAD_DATA), ({"model_type": "llama"}, BAD_DATA)):
            with self.assertRaises(baseline_model.Failure) as refused:
                baseline_model.load_config(self.write("config.json", content))
            self.assertEqual(refused.exception.code, code)
        with self.assertRaises(baseline_model.Failure) as refused:
            baseline_model.load_config("llama-9")
        self.assertEqual(refused.exception.code, USAGE)


class Jobs(unittest.TestCase):
    SCRIPT = os.path.join(ROOT, "jobs", "bench_gpu.sh")

    def commands(self, gpus, *arguments):
        done = run("bash", self.SCRIPT, "--dry-run", "--gpus", gpus, "--weightcast", PROGRAM, "--output", "/out", *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = [line.removeprefix("== ").split(": ", 1) for line in done.stdout.splitlines()]
        return {name: shlex.split(command) for name, command in lines}

    def test_every_command_is_one_that_the_program_takes(self):
        for gpus in (1, 2, 3, 4, 8):
            commands = self.commands(gpus)
            for name, command in commands.items():
                ranks = int(command[command.index("-n") + 1])
                options = dict(zip(command, command[1:]))
                placement = options["--gpus"].split(",")
                self.assertEqual(len(placement), ranks, name)
                self.assertLess(max(map(int, placement)), gpus, name)
                self.assertEqual(ranks, int(options.get("--trainers", 1)) + int(options["--tp"]) * int(options.get("--dp", 1)), name)
                if "nccl" in command or "torch" in name:
                    self.assertEqual(len(set(placement)), ranks, name)
                if PROGRAM in command:
                    done = run(*command[command.index(PROGRAM):], "--print-config")
                    self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("split-tp8-direct", commands)
        self.assertIn("trainers8-beside-tp8-direct", commands)
        self.assertIn("trainers4-link-tp4-direct", commands)
        self.assertIn("link-tp2-dp3-nccl", commands)
        self.assertIn("link-tp1-dp7-direct", commands)

    def test_choices(self):
        self.assertEqual(list(self.commands(2, "--only", "link-tp1-d*")), ["link-tp1-direct", "link-tp1-direct-parameter"])
        self.assertFalse([name for name in self.commands(4, "--no-baseline") if "torch" in name])
        for arguments in (["--gpus", "0"], ["--gpus"], ["--nonsense"], ["--limit", "x", "--gpus", "1"]):
            self.assertEqual(run("bash", self.SCRIPT, "--dry-run", *arguments).returncode, USAGE, arguments)


class Baseline(InFolder):
    SCRIPT = os.path.join(TOOLS, "baseline_torch.py")

    def setUp(self):
        super().setUp()
        if importlib.util.find_spec("torch") is None:
            self.skipTest(f"{sys.executable} has no torch")

    def test_every_method_moves_every_byte(self):
        for ranks in (2, 3):
            path = os.path.join(self.folder, "report.json")
            done = run(MPIEXEC, "-n", ranks, sys.executable, self.SCRIPT, "--model", "tiny", "--backend", "gloo", "--repeat", 2,
                       "--warmup", 0, "--json", path)
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            self.assertEqual(problems_of(content), [])
            self.assertEqual([(r["method"], r["tp"], r["wrong"]) for r in content["rows"]],
                             [(method, ranks - 1, 0) for method in ("seed", "per-parameter", "packed")])
            self.assertEqual(done.stdout.count("\ntiny "), 3)

    def test_bad_input(self):
        for arguments, code in ((["--model=tiny", "--nonsense"], USAGE), (["--model=tinny"], USAGE), (["--model=tiny", "--tp=4"], CONFIG),
                                (["--model=smollm2-135m", "--tp=2"], CONFIG), (["--model=tiny", "--gpus=0,0,0"], CONFIG)):
            done = run(MPIEXEC, "-n", 3, sys.executable, self.SCRIPT, "--backend=gloo", *arguments)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertEqual(done.stderr.count("baseline_torch: error: "), 1, done.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    PROGRAM, MPIEXEC = (os.path.abspath(path) for path in sys.argv[1:3])
    ran = unittest.main(argv=[sys.argv[0], *sys.argv[3:]], exit=False, verbosity=2).result
    if ran.wasSuccessful() and ran.testsRun and len(ran.skipped) == ran.testsRun:
        print("skipped:", ran.skipped[0][1])
        sys.exit(77)
    sys.exit(not ran.wasSuccessful())
