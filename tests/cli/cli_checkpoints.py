#!/usr/bin/env python3
"""Checkpoints as people have them, through every command: what is taken, with what it says, and what stays refused.

usage: cli_checkpoints.py PROGRAM MPIEXEC [unittest arguments]
ctest runs it with the environment that mpiexec wants on a small machine (WEIGHTCAST_MPI_ENVIRONMENT).
"""

import array
import json
import os
import shutil
import sys
import unittest

import workplace
from workplace import data_of, header_of, read_safetensors, unfolded, write_safetensors

PROGRAM, MPIEXEC = "", ""
USAGE, BAD_DATA, NO_INPUT = 64, 65, 66
NORM, HEAD, EMBEDDING = "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"


def run(*arguments, ranks=0):
    return workplace.run([*([MPIEXEC, "-n", ranks] if ranks else []), PROGRAM, *arguments])


def write_tensors(path, tensors, metadata=None):
    write_safetensors(path, json.dumps({"__metadata__": metadata, **header_of(tensors)}), data_of(tensors))


def widened(tensor, noise=0):
    """A BF16 tensor in F32; `noise` goes below what BF16 keeps, and rounds away."""
    _, shape, data = tensor
    return "F32", shape, array.array("I", (x << 16 | noise for x in array.array("H", data))).tobytes()


class Checkpoints(workplace.Workplace):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.plain = os.path.join(cls.shared, "plain")
        done = run("synth", "--model", "tiny", "--seed", 2, "--output", cls.plain)
        assert done.returncode == 0, done.stderr
        cls.tensors = read_safetensors(os.path.join(cls.plain, "model.safetensors"))
        with open(os.path.join(cls.plain, "config.json"), encoding="utf-8") as file:
            cls.config = json.load(file)

    def make(self, name, tensors=None, config=None, metadata=None, file="model.safetensors", removed=()):
        """A checkpoint: the plain one's tensors or these, its config with what differs."""
        os.makedirs(self.path(name))
        write_tensors(self.path(name, file), self.tensors if tensors is None else tensors, metadata)
        settings = {k: v for k, v in {**self.config, **(config or {})}.items() if k not in removed}
        with open(self.path(name, "config.json"), "w", encoding="utf-8") as out:
            json.dump(settings, out)
        return self.path(name)

    def taken(self, target, *arguments, like=None, says=(), initial="synth:1"):
        """The target goes through every command, and each finds the weights of `like`."""
        like = like or self.plain
        snapshot, report = self.path("updated.h5"), self.path("report.json")
        done = run("update", "--initial", initial, "--target", target, "--tp=2", "--device=host", "--snapshot", snapshot, "--json",
                   report, *arguments, ranks=3)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout.splitlines()[-1], r"^(29 of 29|30 of 30) parameters verified$")
        with open(report, encoding="utf-8") as file:
            notes = json.load(file)["notes"]
        offline = run("snapshot", "--checkpoint", target, "--output", self.path("offline.h5"), *arguments)
        self.assertEqual(offline.returncode, 0, offline.stderr)
        for fragment in says:
            self.assertTrue(any(fragment in note for note in notes), (fragment, notes))
            self.assertIn(fragment, unfolded(done.stdout))
            self.assertIn(fragment, offline.stderr)
        if not says:
            self.assertEqual((notes, offline.stderr), ([], ""))
        self.assertEqual(run("plan", "--checkpoint", target, *arguments).returncode, 0)
        for pair in ((target, snapshot), (snapshot, self.path("offline.h5")), (target, like)):
            same = run("verify", *pair, *arguments)
            self.assertEqual(same.returncode, 0, (pair, same.stdout + same.stderr))
        digests = {run("inspect", path, "--digest", *arguments).stdout for path in (target, snapshot)}
        self.assertEqual(len(digests), 1)
        for path in (snapshot, self.path("offline.h5"), report):
            os.remove(path)

    def refused(self, status, target, *arguments, says=()):
        done = run("update", "--initial", "synth:1", "--target", target, "--tp=2", "--device=host", *arguments, ranks=3)
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        self.assertEqual(done.stderr.count("weightcast: error: "), 1, done.stderr)
        self.assertNotIn("committed", done.stdout)
        for fragment in says:
            self.assertIn(fragment, done.stderr)
        self.assertEqual(run("snapshot", "--checkpoint", target, "--output", self.path("x.h5"), *arguments).returncode, status)
        self.assertFalse(os.path.exists(self.path("x.h5")))
        return done.stderr

    def shards(self, folder, names, index=True):
        """Cuts the plain checkpoint into files of these names."""
        os.makedirs(self.path(folder))
        parts = {name: list(self.tensors)[i::len(names)] for i, name in enumerate(names)}
        for name, tensors in parts.items():
            os.makedirs(os.path.dirname(self.path(folder, name)), exist_ok=True)
            write_tensors(self.path(folder, name), {t: self.tensors[t] for t in tensors})
        shutil.copy(os.path.join(self.plain, "config.json"), self.path(folder))
        if index:
            weight_map = {t: name for name, tensors in parts.items() for t in tensors}
            self.index(folder, weight_map)
        return self.path(folder)

    def index(self, folder, weight_map, total=None):
        total = sum(len(data) for _, _, data in self.tensors.values()) if total is None else total
        with open(self.path(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
            json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, file)

    NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

    # --- files -------------------------------------------------------------------------------------------------------

    def test_a_stale_file_beside_shards(self):
        folder = self.shards("both", self.NAMES)
        self.taken(folder)
        stale = {**self.tensors, NORM: ("BF16", [64], bytes(128))}
        write_tensors(self.path("both", "model.safetensors"), stale)
        says = ("two checkpoints, model.safetensors.index.json and model.safetensors", NORM, "name the one that you mean")
        self.refused(BAD_DATA, folder, says=says)
        self.taken(self.path("both", "model.safetensors.index.json"))
        self.taken(self.path("both", "model.safetensors"), like=self.make("stale", stale))
        write_tensors(self.path("both", "model.safetensors"), self.tensors)
        self.taken(folder, says=("beside it holds the same",))

    def test_shards_in_every_place(self):
        self.taken(self.shards("bare", self.NAMES, index=False), says=("the shards model-*-of-00002.safetensors, without an index",))
        os.remove(self.path("bare", self.NAMES[1]))
        self.refused(NO_INPUT, self.path("bare"), says=(self.NAMES[1],))
        folder = self.shards("deep", ["shards/a.safetensors", "shards/b.safetensors"])
        self.taken(folder)
        os.rename(self.path("deep", "shards"), self.path("outside"))
        os.symlink("../outside", self.path("deep", "shards"))
        self.refused(BAD_DATA, folder, says=("a link out of this one",))
        self.taken(self.make("consolidated", file="consolidated.safetensors"), says=("read from consolidated.safetensors",))

    def test_a_file_and_a_hub_cache_as_the_path(self):
        folder = self.make("folder")
        self.taken(os.path.join(folder, "model.safetensors"))
        shutil.move(folder, self.path("cache", "snapshots", "abc"))
        self.taken(self.path("cache"), says=("the snapshot abc",))
        shutil.copytree(self.path("cache", "snapshots", "abc"), self.path("cache", "snapshots", "def"))
        self.refused(NO_INPUT, self.path("cache"), says=("abc, def",))
        os.remove(self.path("cache", "snapshots", "abc", "config.json"))
        self.refused(NO_INPUT, self.path("cache", "snapshots", "abc", "model.safetensors"), says=("has no config.json",))

    def test_the_index_lists_what_counts(self):
        folder = self.shards("more", self.NAMES)
        write_tensors(self.path("more", "extra.safetensors"), {"surplus": ("U8", [1], b"x"), NORM: self.tensors[NORM]})
        with open(self.path("more", "model.safetensors.index.json"), encoding="utf-8") as file:
            weight_map = json.load(file)["weight_map"]
        without = self.path("more", weight_map[NORM])
        write_tensors(without, {k: v for k, v in read_safetensors(without).items() if k != NORM})
        self.index("more", {**weight_map, NORM: "extra.safetensors"}, total=5)
        self.taken(folder, says=("surplus",))
        write_tensors(self.path("more", "extra.safetensors"), {NORM: self.tensors[NORM]})
        self.taken(folder, says=("warning: total_size",))
        self.index("more", {**weight_map, NORM: "../more/extra.safetensors"})
        self.refused(BAD_DATA, folder, says=("not a file of this folder",))

    def test_what_is_no_weights(self):
        folder = self.make("lfs")
        for text, says in (("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
                           ("<!DOCTYPE html><html></html>", "a web page")):
            with open(self.path("lfs", "model.safetensors"), "w", encoding="utf-8") as file:
                file.write(text)
            self.refused(BAD_DATA, folder, says=(says,))
        adapter = self.make("adapter", file="adapter_model.safetensors")
        self.refused(NO_INPUT, adapter, says=("adapter", "merge"))
        write_tensors(os.path.join(adapter, "model.safetensors"), self.tensors)
        self.taken(adapter, says=("the adapter beside it",))

    def test_metadata_of_numbers(self):
        self.taken(self.make("numbers", metadata={"step": 5, "loss": 1.5, "ema": True, "note": None}))
        self.refused(BAD_DATA, self.make("object", metadata={"step": {}}), says=("step", "an object"))

    # --- tensors -----------------------------------------------------------------------------------------------------

    def test_tied_heads(self):
        tied = {"tie_word_embeddings": True}
        both = {**self.tensors, HEAD: self.tensors[EMBEDDING]}
        alone = {k: v for k, v in both.items() if k != EMBEDDING}
        without = {k: v for k, v in both.items() if k != HEAD}
        like = self.make("without", without, tied)
        self.taken(self.make("both", both, tied), like=like)
        self.taken(self.make("alone", alone, tied), like=like)
        self.taken(self.make("differs", self.tensors, tied), "--ignore=lm_head.*", like=like, says=("left out by --ignore: " + HEAD,))
        self.refused(BAD_DATA, self.path("differs"), says=("differs from",))
        # An index that lists the head, and a shard without it.
        os.makedirs(self.path("listed"))
        write_tensors(self.path("listed", "a.safetensors"), without)
        shutil.copy(self.path("without", "config.json"), self.path("listed"))
        self.index("listed", dict.fromkeys(both, "a.safetensors"))
        self.taken(self.path("listed"), like=like, says=("which was not written",))
        shutil.copy(os.path.join(self.plain, "config.json"), self.path("listed"))
        self.refused(BAD_DATA, self.path("listed"), says=(HEAD + " is missing",))

    def test_buffers_and_bookkeeping(self):
        odd = {**self.tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", [4], bytes(16)),
               "model.layers.0.mlp._extra_state": ("U8", [0], b""), "v_head.summary.weight": ("F32", [1, 64], bytes(256)),
               "model.layers.1.self_attn.k_scale": ("F32", [], bytes(4))}
        self.taken(self.make("odd", odd), says=("inv_freq", "_extra_state, model.layers.1.self_attn.k_scale, v_head.summary.weight"))
        odd["model.visual.patch.weight"] = ("BF16", [1], bytes(2))
        folder = self.make("visual", odd)
        self.refused(BAD_DATA, folder, says=("model.visual.patch.weight is unknown",))
        self.taken(folder, "--ignore=model.visual.*,nothing", says=("left out by --ignore: model.visual.patch.weight",))
        self.refused(USAGE, folder, "--ignore=model.*", says=("which the model needs",))

    def test_prefixes(self):
        def named(name, rename):
            return self.make(name, {rename(k): v for k, v in self.tensors.items()})
        self.taken(named("compiled", lambda k: "_orig_mod." + k), says=("known and stripped",))
        self.taken(named("vlm", lambda k: k.replace("model.", "model.language_model.")), says=("known and stripped",))
        block = self.refused(BAD_DATA, named("unknown", lambda k: "policy." + k), says=('begin with "policy."',))
        self.assertNotIn("is missing", block)

    def test_other_float_types(self):
        def all_of(change):
            return {k: change(v) for k, v in self.tensors.items()}
        f32 = self.make("f32", all_of(lambda t: widened(t, 0x7fff)))
        self.taken(f32, says=("30 of 30 parameters are F32: rounded to the nearest BF16",))
        self.taken(self.make("norms", {k: widened(v) if "norm" in k else v for k, v in self.tensors.items()}),
                   says=("7 of 30 parameters are F32",))
        # What rounding hides is a difference all the same between two files that have it.
        other = self.make("other", all_of(lambda t: widened(t, 0x7ffe)))
        done = run("verify", f32, other)
        self.assertEqual((done.returncode, "first difference at element 0" in done.stdout), (1, True), done.stdout)
        done = run("verify", self.make("half", all_of(lambda t: widened(t, 0x8001))), self.plain)
        self.assertEqual(done.returncode, 1)  # rounded up
        # A model of F32 stays one.
        wide = self.make("wide", all_of(widened), {"torch_dtype": "float32"})
        done = run("update", "--initial=synth:1", "--target", wide, "--tp=2", "--device=host", "--snapshot", self.path("w.h5"), ranks=3)
        self.assertEqual((done.returncode, "note" in done.stdout), (0, False), done.stderr)
        self.assertIn("F32 [64]", run("inspect", self.path("w.h5")).stdout)
        integers = {**self.tensors, NORM: ("I16", *self.tensors[NORM][1:])}
        self.refused(BAD_DATA, self.make("integers", integers), says=(NORM, "I16", "BF16"))

    # --- config.json -------------------------------------------------------------------------------------------------

    def test_configs(self):
        self.taken(self.make("none", removed=("torch_dtype",)), says=("names no dtype: BF16 by the tensors",))
        self.taken(self.make("auto", config={"torch_dtype": "auto"}), says=("names no dtype",))
        self.taken(self.make("two", config={"torch_dtype": "float32", "dtype": "bfloat16"}), says=("names two dtypes: BF16",))
        self.taken(self.make("fsdp", config={"architectures": ["FSDPLlamaForCausalLM"]}), says=("FSDPLlamaForCausalLM is read as llama",))
        self.taken(self.make("infinity", config={"limits": [0.0, float("inf")]}), says=("NaN or Infinity",))
        self.refused(BAD_DATA, self.make("needed", config={"head_dim": float("inf")}), says=("head_dim",))
        self.refused(78, self.make("reward", config={"architectures": ["LlamaForSequenceClassification"]}), says=("architectures",))
        twice = self.make("twice")
        with open(os.path.join(twice, "config.json"), encoding="utf-8") as file:
            text = file.read()
        for key, taken in (("x", True), ("hidden_size", False)):
            with open(os.path.join(twice, "config.json"), "w", encoding="utf-8") as file:
                file.write(text[:-1] + f', "{key}": 64, "{key}": 64}}')
            if taken:
                self.taken(twice, says=('"x" appears twice',))
            else:
                self.refused(BAD_DATA, twice, says=("hidden_size", "appears twice"))

    # --- verify and inspect without a model --------------------------------------------------------------------------

    def test_what_fits_no_model_is_seen_as_stored(self):
        odd = {"w": ("F32", [2], bytes(8)), "x": ("U8", [2], b"ab")}
        a, b = self.make("a", odd), self.make("b", {**odd, "x": ("U8", [2], b"aB")})
        self.assertIn("x ", run("inspect", a).stdout)
        done = run("verify", a, b)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("x: first difference at element 1 [1]: A has 0x62, B has 0x42", done.stdout)
        self.assertIn("seen as stored", done.stderr)
        self.assertEqual(run("verify", a, b, "--ignore=x").returncode, 0)
        self.assertEqual(run("verify", a, b, "--ignore=w").returncode, 1)
        # A file without a config.json is seen as the model of the other one.
        bare = self.path("bare.safetensors")
        write_tensors(bare, {"_orig_mod." + k: widened(v) for k, v in self.tensors.items()})
        self.assertEqual(run("verify", bare, self.plain).returncode, 0)
        self.assertEqual(run("verify", self.plain, bare).returncode, 0)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    PROGRAM, MPIEXEC = os.path.abspath(sys.argv.pop(1)), sys.argv.pop(1)
    unittest.main()
