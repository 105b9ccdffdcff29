#!/usr/bin/env python3
"""Versions on disk as deltas: `weightcast snapshot --delta`, and everything that reads a snapshot, given a chain of them.

usage: cli_snapshot_delta.py PROGRAM MPIEXEC [unittest arguments]
"""

import json
import os
import random
import re
import shutil
import sys
import unittest

import cli_update
from cli_update import BAD_DATA, CANT_CREATE, MISMATCH, NO_INPUT, USAGE, offline
from workplace import read_safetensors, write_safetensors

# Can be cut for tp 1, 2, 3 and 6.
SHAPE = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96,
         "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 8, "vocab_size": 384, "tie_word_embeddings": True,
         "torch_dtype": "bfloat16"}


def change(folder, into, share, seed):
    """A copy of a checkpoint in which about that share of the elements has another bit."""
    shutil.copytree(folder, into)
    path = os.path.join(into, "model.safetensors")
    with open(path, "rb") as file:
        data = bytearray(file.read())
    begin = 8 + int.from_bytes(data[:8], "little")
    chosen, elements = random.Random(seed), (len(data) - begin) // 2
    for element in chosen.sample(range(elements), max(1, int(elements * share))):
        data[begin + 2 * element + chosen.randrange(2)] ^= 1 << chosen.randrange(8)
    with open(path, "wb") as file:
        file.write(data)
    return into


class Deltas(cli_update.Workplace):
    """Four versions: v0.h5 whole, v1.h5, v2.h5 and v3.h5 each a delta against the one before."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.chain = os.path.join(cls.shared, "chain")
        os.mkdir(cls.chain)
        shape = os.path.join(cls.shared, "shape.json")
        with open(shape, "w", encoding="utf-8") as file:
            json.dump(SHAPE, file)
        cls.versions, cls.printed = [os.path.join(cls.shared, "v0")], []
        done = offline("synth", "--model", shape, "--seed", 3, "--output", cls.versions[0])
        assert done.returncode == 0, done.stderr
        for version, share in enumerate((0.02, 0.001, 0.5), 1):
            cls.versions.append(change(cls.versions[-1], os.path.join(cls.shared, f"v{version}"), share, version))
        for version, folder in enumerate(cls.versions):
            delta = ["--delta", os.path.join(cls.chain, f"v{version - 1}.h5")] if version else []
            done = offline("snapshot", "--checkpoint", folder, "--output", os.path.join(cls.chain, f"v{version}.h5"), *delta)
            assert done.returncode == 0, done.stderr
            cls.printed.append(done.stdout)

    def setUp(self):
        super().setUp()
        self.mine = self.path("mine")  # a chain that may be damaged
        shutil.copytree(self.chain, self.mine)

    def link(self, version, chain=None):
        return os.path.join(chain or self.chain, f"v{version}.h5")

    def delta(self, *arguments):
        return offline("snapshot", "--checkpoint", self.versions[1], *arguments)

    def test_it_says_what_changed(self):
        self.assertNotIn("delta", self.printed[0])
        for version, text in list(enumerate(self.printed))[1:]:
            counted = re.search(r"a delta against (\S+) \(digest (\w{32})\): (\d+) of (\d+) elements changed \(([\d.]+) %\), "
                                r"in (\d+) of (\d+) parameters; .* \((\d+) bytes\)\n", text)
            self.assertIsNotNone(counted, text)
            before, after = (read_safetensors(os.path.join(self.versions[v], "model.safetensors")) for v in (version - 1, version))
            changed = {name: sum(a[i:i + 2] != b[i:i + 2] for i in range(0, len(a), 2))
                       for name, a, b in ((name, before[name][2], after[name][2]) for name in before)}
            total = sum(len(data) // 2 for _, _, data in before.values())
            self.assertEqual(counted.group(1), self.link(version - 1))
            self.assertIn(f"digest {counted.group(2)}\n", self.printed[version - 1])
            self.assertEqual([int(n) for n in counted.group(3, 4, 6, 7)],
                             [sum(changed.values()), total, sum(n > 0 for n in changed.values()), len(before)])
            self.assertAlmostEqual(float(counted.group(5)), 100 * sum(changed.values()) / total, delta=0.1)
            self.assertLess(int(counted.group(8)), os.path.getsize(self.link(version)))

    def test_every_reader_takes_a_chain_for_its_last_version(self):
        for version, folder in enumerate(self.versions):
            done = offline("verify", self.link(version), folder)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            done = offline("inspect", "--digest", self.link(version))
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertIn(re.search(r"digest \w{32}\n", self.printed[version]).group(), done.stdout)
            self.assertEqual("a delta against" in done.stderr, version > 0)
        self.assertIn(f"3 deltas in the chain, down to {self.link(0)}", offline("inspect", self.link(3)).stderr)
        done = offline("verify", self.link(2), self.link(3))
        self.assertEqual(done.returncode, 1)
        self.assertIn("first difference at element", done.stdout)

    def test_updates_from_and_to_a_chain_at_any_tp(self):
        whole = self.path("whole.h5")
        self.assertEqual(offline("snapshot", "--checkpoint", self.versions[0], "--output", whole).returncode, 0)
        for tp, initial, target, last in ((1, self.link(3), self.versions[0], 0), (3, self.link(3), self.versions[0], 0),
                                          (2, self.link(1), self.link(3), 3), (3, self.versions[0], self.link(2), 2),
                                          (2, self.link(2), "synth:3", 0)):
            with self.subTest(tp=tp, initial=initial, target=target):
                out = self.path("out.h5")
                report, text = self.update(1 + tp, "--tp", tp, "--snapshot", out, "--force", initial=initial, target=target)
                self.assertIn(f"{report['model']['parameters']} of {report['model']['parameters']} parameters verified\n", text)
                self.assertIn(f"digest {report['verify']['digest']}\n", self.printed[last])
                done = offline("verify", out, self.versions[last])
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                if last == 0:
                    self.same_snapshot(whole, out)
        # What was served first is served again: the chain's last version, twice over two trainer ranks.
        report, _ = self.update(4, "--tp=2", "--trainers=2", "--repeat=2", "--snapshot", self.path("out.h5"), "--force",
                                initial=self.link(3), target=self.versions[0])
        self.assertIn(f"digest {report['verify']['digest']}\n", self.printed[3])
        self.assertEqual(offline("verify", self.path("out.h5"), self.versions[3]).returncode, 0)

    def refused_everywhere(self, status, *fragments):
        """v3.h5 of the chain that may be damaged is refused by whoever would serve it, and by who would build on it."""
        for tp in (1, 3):
            block = self.refused(status, "--tp", tp, ranks=tp + 1, initial=self.link(3, self.mine), target=self.versions[0])
            for fragment in fragments:
                self.assertIn(fragment, block)
        self.refused(status, "--tp=1", ranks=2, initial=self.versions[0], target=self.link(3, self.mine))
        done = self.delta("--output", self.path("mine", "new.h5"), "--delta", self.link(3, self.mine))
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertFalse(os.path.exists(self.path("mine", "new.h5")))
        done = offline("inspect", "--digest", self.link(3, self.mine))
        self.assertEqual(done.returncode, status, done.stderr)

    def test_a_missing_base(self):
        os.remove(self.link(1, self.mine))
        self.refused_everywhere(NO_INPUT, f"the base of {self.link(2, self.mine)}", f"cannot open {self.link(1, self.mine)}")
        self.assertEqual(offline("verify", self.link(3, self.mine), self.versions[3]).returncode, 2)

    def test_a_wrong_base(self):
        digests = [re.search(r"digest (\w{32})\n", text).group(1) for text in self.printed]
        done = offline("snapshot", "--checkpoint", self.versions[2], "--output", self.link(1, self.mine), "--force")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.refused_everywhere(BAD_DATA, f"{self.link(2, self.mine)} was made against", digests[1],
                                f"{self.link(1, self.mine)} has {digests[2]}")

    def test_a_damaged_entry_is_never_served(self):
        for version in (0, 1, 3):
            with self.subTest(version=version):
                shutil.rmtree(self.mine)
                shutil.copytree(self.chain, self.mine)
                path = self.link(version, self.mine)
                with open(path, "rb") as file:
                    data = bytearray(file.read())
                data[-2] ^= 0x40  # the end of what the last parameter has: a value, of the base or of a delta
                with open(path, "wb") as file:
                    file.write(data)
                done = offline("inspect", "--digest", path)
                self.assertEqual(done.returncode, MISMATCH, done.stderr)
                if version == 3:
                    self.refused_everywhere(MISMATCH, "snapshot " + path, "but the file says")
                    continue
                # What is later may have set that element anew: then it is whole.
                self.assertIn(path, self.refused(MISMATCH, "--tp=2", initial=path, target=self.versions[0]))
                done = self.delta("--output", self.path("mine", "new.h5"), "--delta", path)
                self.assertEqual(done.returncode, MISMATCH, done.stderr)
                self.assertRegex(done.stderr, re.escape(path) + r": \S+ has the digest \w{32}, but the file says")
                self.assertFalse(os.path.exists(self.path("mine", "new.h5")))

    def test_what_cannot_be_a_delta(self):
        out = self.path("mine", "new.h5")
        for status, arguments, fragments in (
                (NO_INPUT, ["--output", out, "--delta", self.path("none.h5")], ["cannot open", "none.h5"]),
                (BAD_DATA, ["--output", out, "--delta", os.path.join(self.versions[0], "config.json")], ["is not an HDF5 file"]),
                (USAGE, ["--output", self.path("new.h5"), "--delta", self.link(1, self.mine)], ["not in the folder of"]),
                (CANT_CREATE, ["--output", self.link(1, self.mine), "--delta", self.link(1, self.mine)], ["--force"]),
                (CANT_CREATE, ["--output", self.link(1, self.mine), "--delta", self.link(2, self.mine), "--force"], ["is made of it"])):
            with self.subTest(arguments=arguments):
                done = self.delta(*arguments)
                self.assertEqual(done.returncode, status, done.stderr)
                for fragment in fragments:
                    self.assertIn(fragment, done.stderr)
                self.assertEqual(sorted(os.listdir(self.mine)), [f"v{v}.h5" for v in range(4)])
        shutil.copy(self.one + ".h5", self.mine)
        done = self.delta("--output", out, "--delta", self.path("mine", "one.h5"))
        self.assertEqual(done.returncode, BAD_DATA, done.stderr)
        self.assertIn("only the base has lm_head.weight", done.stderr)
        self.assertFalse(os.path.exists(out))

    def test_a_type_that_differs(self):
        wide = shutil.copytree(self.versions[0], self.path("wide"))
        tensors = read_safetensors(os.path.join(wide, "model.safetensors"))
        widened = {name: ("F32", shape, b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2)))
                   for name, (_, shape, data) in tensors.items()}
        write_safetensors(os.path.join(wide, "model.safetensors"), json.dumps(cli_update.header_of(widened)), cli_update.data_of(widened))
        with open(os.path.join(wide, "config.json"), encoding="utf-8") as file:
            config = {**json.load(file), "torch_dtype": "float32"}
        with open(os.path.join(wide, "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file)
        done = offline("snapshot", "--checkpoint", wide, "--output", self.path("mine", "new.h5"), "--delta", self.link(0, self.mine))
        self.assertEqual(done.returncode, BAD_DATA, done.stderr)
        self.assertRegex(done.stderr, r"model.embed_tokens.weight is F32 \[384, 48\], in the base BF16 \[384, 48\]")
        block = self.refused(BAD_DATA, "--tp=2", initial=self.link(3), target=wide)
        self.assertIn("model.embed_tokens.weight", block)

    def test_a_large_delta_is_written_and_said(self):
        other = self.path("other")
        self.assertEqual(offline("synth", "--model", os.path.join(self.shared, "shape.json"), "--seed=4", "--output", other).returncode, 0)
        done = offline("snapshot", "--checkpoint", other, "--output", self.path("mine", "new.h5"), "--delta", self.link(3, self.mine))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"\((100|99\.\d*) %\)")
        self.assertIn("larger than the weights", done.stderr)
        self.assertEqual(offline("verify", self.path("mine", "new.h5"), other).returncode, 0)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    cli_update.PROGRAM, cli_update.MPIEXEC = os.path.abspath(sys.argv.pop(1)), sys.argv.pop(1)
    unittest.main()
