#!/usr/bin/env python3
"""`weightcast update` on GPUs as a user meets it: results, bad input, and ranks that die. Exits with 77 where there is
no GPU, and says so.

usage: cli_gpu.py PROGRAM MPIEXEC [unittest arguments]
One GPU is enough: where ranks share it, NCCL is told that they are on different hosts (for the function, never for timing).
"""

import json
import os
import re
import subprocess
import sys
import unittest

import cli_update as cli
import workplace


def gpus():
    """Names and bytes of memory."""
    try:
        text = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"],
                              capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [(line.rsplit(",", 1)[0], int(line.rsplit(",", 1)[1]) << 20) for line in text.splitlines()]


class OneGpu(cli.Workplace):
    """What works, and what cannot, with all ranks on one GPU."""

    def update(self, ranks, *arguments):
        report = self.path("report.json")
        done = cli.mpirun(ranks, "update", "--initial", self.one, "--target", self.two, "--json", report, *arguments)
        with open(report, encoding="utf-8") as file:
            return done, json.load(file)

    def refused(self, code, *patterns, ranks=2, arguments=()):
        done, report = self.update(ranks, *arguments)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(done.stderr.count("weightcast: error: "), 1, done.stderr)
        self.assertEqual(report["error"]["code"], code)
        for pattern in patterns:
            self.assertRegex(done.stderr, pattern)

    def test_auto_takes_the_gpu_and_direct(self):
        done, report = self.update(3, "--repeat=3")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual((report["device"], report["transport"]), ("cuda", "direct"))
        self.assertEqual(report["verify"]["mismatched"], 0)
        for rank in report["ranks"]:
            self.assertRegex(rank["gpu"], r"^\d+ .* [0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:")

    def test_trainer_ranks_beside_engine_ranks(self):
        for layout in ("fsdp", "tp", "whole"):
            with self.subTest(layout=layout):
                done, report = self.update(4, "--trainers=2", "--tp=2", "--repeat=3", "--gpus=0,0,0,0", "--source-layout", layout)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual((report["device"], report["transport"], report["source_layout"]), ("cuda", "direct", layout))
                self.assertEqual((report["verify"]["parameters"], report["verify"]["mismatched"]), (30, 0))

    def test_readers_see_whole_versions_from_several_trainer_ranks(self):
        done, report = self.update(4, "--trainers=2", "--tp=2", "--repeat=20", "--gpus=0,0,0,0", "--readers=2")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual((report["readers"]["mixed"], report["readers"]["stale"]), (0, 0))
        self.assertGreater(report["readers"]["reads"], 0)

    def test_nccl_says_that_ranks_share_a_gpu(self):
        self.refused(cli.CONFIG, r"ranks 0 and 1 share a GPU", r"--gpus", arguments=("--transport=nccl", "--gpus=0,0"))

    def test_a_gpu_that_does_not_exist(self):
        self.refused(cli.CONFIG, r"there is no GPU 99: this host has \d+", r"where  rank 1", arguments=("--gpus=0,99",))

    def test_a_gpu_list_that_is_too_short(self):
        self.refused(cli.CONFIG, r"--gpus names 1 GPUs for 2 ranks", arguments=("--gpus=0",))

    def test_no_gpu_is_visible(self):
        done = cli.mpirun(2, "update", "--initial", self.one, "--target", self.two, "--device=cuda", env={"CUDA_VISIBLE_DEVICES": ""})
        self.assertEqual(done.returncode, cli.CONFIG, done.stderr)
        self.assertRegex(done.stderr, "no usable GPU: ")

    def test_out_of_memory_is_known_before_loading(self):
        _, memory = gpus()[0]
        hidden = 4096
        rows = int(0.55 * memory) // 2 // hidden // 64 * 64  # one version fits, two do not
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": 256,
                  "num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "vocab_size": rows,
                  "tie_word_embeddings": True, "torch_dtype": "bfloat16"}
        shape = self.write("config.json", json.dumps(config))
        done = cli.mpirun(2, "update", "--initial=synth:1", "--target=synth:2", "--model", shape, "--gpus=0,0", timeout=300)
        self.assertEqual(done.returncode, cli.CONFIG, done.stderr)
        self.assertRegex(done.stderr, r"the weights of 2 ranks here need .*, but GPU 0 has .* of .* left")
        self.assertIn("--commit in-place", done.stderr)


class Faults(cli.Faults):
    """The host's faults, on a GPU."""

    transport, timeout = "direct", "2s"

    test_memory_that_changes_after_the_commit_ends_the_job = None  # nobody else can write to a GPU's memory

    def begin(self, *arguments, **keywords):
        """With transport and timeout of its own."""
        trace = [word for word in arguments if word.startswith("--trace=")]
        return super().begin("--timeout", self.timeout, "--device=cuda", "--transport", self.transport, *trace, **keywords)


class NcclFaults(Faults):
    """A dead peer is not reported by NCCL: only the deadline finds it."""

    transport, timeout = "nccl", "10s"  # forming the group over sockets takes a few

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.program = cli.PROGRAM
        cli.PROGRAM = os.path.join(cls.shared, "on_a_host_of_its_own")
        with open(cli.PROGRAM, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nexport NCCL_HOSTID=$OMPI_COMM_WORLD_RANK NCCL_SOCKET_IFNAME=lo\nexec {cls.program} "$@"\n')
        os.chmod(cli.PROGRAM, 0o755)

    @classmethod
    def tearDownClass(cls):
        cli.PROGRAM = cls.program
        super().tearDownClass()


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    cli.PROGRAM, cli.MPIEXEC = os.path.abspath(sys.argv.pop(1)), sys.argv.pop(1)
    version = subprocess.run([cli.PROGRAM, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    if not gpus() or re.search(r"(?mi)^\s*cuda\s+not built in", version):
        print("skipped:", "no GPU here" if not gpus() else "built without CUDA")
        sys.exit(77)
    host_only = workplace.environment
    workplace.environment = lambda extra=None: {**host_only(), "CUDA_VISIBLE_DEVICES": "0", **(extra or {})}
    unittest.main()
