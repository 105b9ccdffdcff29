#!/usr/bin/env python3
"""Mistakes that people make, a row each: what is there, what is asked, how it ends. Every error says what it is about and
what to do, in one block with few words.

usage: cli_mistakes.py PROGRAM MPIEXEC [unittest arguments]
"""

import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import unittest
import zipfile

import workplace
from workplace import write_safetensors

PROGRAM, MPIEXEC = "", ""
USAGE, BAD_DATA, NO_INPUT, CANT_CREATE, IO_ERROR, CONFIG = 64, 65, 66, 73, 74, 78
MOST_CHARACTERS = 200  # of a line of a message, without the names of files
NOBODY = 65534


def zipped(name, content=b"x"):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr(name, content)
    return memory.getvalue()


def tarred(mode):
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode=mode) as archive:
        archive.addfile(tarfile.TarInfo("model/model.safetensors"))
    return memory.getvalue()


GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
TORCH = zipped("archive/data.pkl")
OLD_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + b"\x80\x02M\xe9\x03."
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 227200\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
SAFETENSORS_WANTED = "safetensors|save_pretrained"

# What a file holds, what it is called in the message, what the hint says.
FILES = [
    ("gguf", GGUF, "is a GGUF file", "gguf_file"),
    ("torch", TORCH, r"is a PyTorch checkpoint \(a pickle\)", "save_pretrained"),
    ("old torch", OLD_TORCH, r"is a PyTorch checkpoint \(a pickle\)", "save_pretrained"),
    ("flax", b"\x82\xa6params\x81\xa5embed\xc7\x00\x01", "is a Flax checkpoint", "from_flax"),
    ("npz", zipped("w.npy"), "is arrays of numpy", "save_file"),
    ("npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'", "is arrays of numpy", "save_file"),
    ("onnx", b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:" + bytes(50), "is an ONNX model", "safetensors"),
    ("zip", zipped("model/model.safetensors"), "is an archive", "unpack"),
    ("tar", tarred("w"), "is an archive", "unpack"),
    ("tar.gz", tarred("w:gz"), "is an archive", "unpack"),
    ("tar.xz", tarred("w:xz"), "is an archive", "unpack"),
    ("tar.bz2", tarred("w:bz2"), "is an archive", "unpack"),
    ("lfs", LFS, "is a Git LFS pointer", "git lfs pull"),
    ("html", HTML, "is a web page", "logged in"),
    ("refusal", b'{"error":"Repository not found"}', "is an answer of a server that refused", "logged in"),
    ("empty", b"", "is empty", "download or write it again"),
    ("few bytes", b"12345", 'begins with the text "12345"', "name a safetensors file"),
    ("text", b"not weights\nat all" * 9, 'begins with the text "not weights"', "name a safetensors file"),
    ("zeros", bytes(4096), "begins with zeros", "name a safetensors file"),
    ("program", b"\x7fELF" + bytes(60), "begins with the bytes 7f 45 4c 46", "name a safetensors file"),
]

# Names in a folder, what it is said to hold, what the hint says.
FOLDERS = [
    (["model-q4.gguf"], "a GGUF file", "gguf_file"),
    (["pytorch_model.bin"], "a PyTorch checkpoint", "save_pretrained"),
    (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "a PyTorch checkpoint", "save_pretrained"),
    (["last.ckpt"], "a PyTorch checkpoint", "save_pretrained"),
    (["consolidated.00.pth", "params.json"], "a checkpoint in Meta's format", "convert_llama_weights_to_hf"),
    (["flax_model.msgpack"], "a Flax checkpoint", "from_flax"),
    (["tf_model.h5"], "a TensorFlow or Keras checkpoint", "from_tf"),
    (["saved_model.pb", "variables/variables.index"], "a TensorFlow or Keras checkpoint", "from_tf"),
    ([".metadata", "__0_0.distcp", "__1_0.distcp"], "a distributed checkpoint of PyTorch", "accelerate merge-weights"),
    (["pytorch_model_fsdp_0/.metadata"], "a distributed checkpoint of PyTorch", "accelerate merge-weights"),
    (["zero_to_fp32.py", "latest", "global_step100/mp_rank_00_model_states.pt"], "a checkpoint of DeepSpeed", "zero_to_fp32.py"),
    (["latest_checkpointed_iteration.txt", "iter_0000100/mp_rank_00/model_optim_rng.pt"], "a checkpoint of Megatron", "export_ckpt"),
    (["_CHECKPOINT_METADATA", "d/x"], "a checkpoint of Orbax", "safetensors"),
    (["onnx/model.onnx"], "an ONNX model", "safetensors"),
    (["weights.npz"], "arrays of numpy", "safetensors"),
    (["model.tar.gz"], "an archive", "unpack"),
]

# A path that is none, what the hint says.
PATHS = [
    ("org/name", "hf download org/name --local-dir"),
    ("meta-llama/Llama-3.2-1B", "hf download meta-llama/Llama-3.2-1B --local-dir"),
    ("https://huggingface.co/org/name/tree/main", "hf download org/name --local-dir"),
    ("s3://bucket/model", "an address is not a path"),
    ("~/models/one", "not expanded ~"),
    ("$MODELS/one", r"not expanded the \$"),
    ("onne/model.safetensors", "did you mean one/model.safetensors"),
    ("one/model.safetensor", "did you mean one/model.safetensors"),
    ("one/nothing/at/all", "there is no nothing in one"),
    ("nothing", "there is no nothing in this folder"),
    ("one ", "a blank"),
    ("tiny", "weightcast synth --model tiny"),
    ("synth:7", "weightcast synth writes"),
]

# Arguments of update beside --initial, --target and --model; the error; the hint.
OPTIONS = [
    (["--timeout", "0"], "'0' is not a duration that it takes", "more than 0"),
    (["--timeout", "1ms"], "'1ms' is too short", "0.1s at least"),
    (["--timeout=-5s"], "'-5s' is not a duration that it takes", "more than 0"),
    (["--timeout", "25h"], "'25h' is not a duration that it takes", "at most a day"),
    (["--timeout", "nan"], "'nan' is not a duration", "500ms, 60s, 2m or 1h"),
    (["--timeout", "1d"], "'1d' is not a duration", "500ms, 60s, 2m or 1h"),
    (["--tp", "0"], "'0' is not a number", "from 1"),
    (["--tp", "two"], "'two' is not a number", "from 1"),
    (["--tp", "99999999999999999999"], "is not a number", "from 1 to"),
    (["--repeat", "0"], "'0' is not a number", "from 1"),
    (["--truncate", "x"], "'x' is not a number", "from 1"),
    (["--delta-limit", "140%"], "'140%' is not a share", "at most 1"),
    (["--device", "CUDA"], "'CUDA' is not one of", "did you mean cuda"),
    (["--commit", "inplace"], "'inplace' is not one of", "did you mean in-place"),
    (["--tensor-parallel", "2"], "'--tensor-parallel'", "did you mean --tp"),
    (["--tensor_parallel_size=2"], "'--tensor_parallel_size=2'", "did you mean --tp"),
    (["--TP", "2"], "'--TP'", "did you mean --tp"),
    (["-tp", "2"], "'-tp'", "did you mean --tp"),
    (["\u2014tp", "2"], "'\u2014tp'", "did you mean --tp"),
    (["--repeats", "2"], "'--repeats'", "did you mean --repeat"),
    (["--taget=x"], "'--taget=x'", "did you mean --target"),
    (["--shard-size", "1G"], "'--shard-size'", "an option of synth"),
    (["--ceiling"], "'--ceiling'", "an option of bench"),
    (["--np", "3"], "'--np'", "mpirun -n"),
    (["extra"], "'extra' is one too many", "write mpirun -n RANKS weightcast update --initial"),
    (["--tp", "2", "--tp", "2"], "--tp is given twice", "leave one"),
    (["--tp"], "required argument for option '--tp' is missing", "--help"),
    (["--tp", "--dp"], "--tp has no value: --dp follows", "write --tp N"),
    (["--json", "x", "--trace", "x"], "--json and --trace name one file", "a name of its own"),
]

# What a config.json lacks or has, the error.
CONFIGS = [
    ({"hidden_size": None}, '"hidden_size" is missing'),
    ({"num_hidden_layers": None}, '"num_hidden_layers" is missing'),
    ({"vocab_size": None}, '"vocab_size" is missing'),
    ({"hidden_size": "64"}, '"hidden_size" must be a whole number'),
    ({"hidden_size": -1}, '"hidden_size" must be a whole number'),
    ({"architectures": {}}, '"architectures" must be an array'),
    ({"architectures": None, "model_type": None}, "the family is unknown"),
    ({"num_attention_heads": 7}, "is not a multiple of"),
]


class Mistakes(workplace.Workplace):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.one = os.path.join(cls.shared, "one")
        done = workplace.run([PROGRAM, "synth", "--model", "tiny", "--output", cls.one])
        assert done.returncode == 0, done.stderr
        with open(os.path.join(cls.one, "config.json"), encoding="utf-8") as file:
            cls.config = json.load(file)

    def ends(self, status, error, hint, *arguments, command=(), **keywords):
        """The program, run in this test's folder, ends with that status and one block of few words."""
        done = workplace.run([*command, PROGRAM, *arguments], cwd=self.folder, **keywords)
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        block = re.search(r"weightcast: error: (.*)\n  kind   .*\(exit status \d+\)\n(?:  where  .*\n)?  fix    (.*)", done.stderr)
        self.assertIsNotNone(block, done.stderr)
        self.assertEqual(done.stderr.count("weightcast: error: "), 1, done.stderr)
        self.assertRegex(block[1], error)
        self.assertRegex(block[2], hint)
        for line in block.groups():
            self.assertLessEqual(len(line.replace(self.folder, "")), MOST_CHARACTERS, line)
        return done

    def put(self, name, content=b""):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "wb") as file:
            file.write(content)
        return name

    def as_nobody(self):
        """What comes before a command that is to run without root's rights."""
        command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        if os.geteuid() != 0:
            return []
        if shutil.which("setpriv") is None or subprocess.run([*command, PROGRAM, "--version"], capture_output=True, check=False).returncode != 0:
            self.skipTest("needs setpriv, and a program that everybody may run")
        os.chmod(self.folder, 0o755)
        return command

    # --- what is given -----------------------------------------------------------------------------------------------

    def test_files_of_other_kinds(self):
        for name, content, error, hint in FILES:
            with self.subTest(name):
                self.ends(BAD_DATA, error, hint, "inspect", self.put("file", content))
                shutil.copy(os.path.join(self.one, "config.json"), self.folder)
                os.rename(self.path("file"), self.path("model.safetensors"))
                self.ends(BAD_DATA, error, hint, "plan", "--checkpoint", self.folder)

    def test_folders_of_other_kinds(self):
        for i, (names, error, hint) in enumerate(FOLDERS):
            with self.subTest(error):
                folder = str(i)
                for name in ["config.json", *names]:
                    self.put(os.path.join(folder, name))
                self.ends(NO_INPUT, f"neither model.safetensors nor .*: it holds {error}", hint, "plan", "--checkpoint", folder)

    def test_folders_with_nothing_to_take(self):
        os.makedirs(self.path("empty"))
        self.ends(NO_INPUT, "empty is empty", "check the path", "inspect", "empty")
        self.put("tokens/tokenizer.json")
        self.ends(NO_INPUT, "neither .*, only tokenizer.json", "with its weights", "inspect", "tokens")
        self.put("lora/adapter_config.json")
        self.put("lora/adapter_model.safetensors")
        self.ends(NO_INPUT, "holds an adapter", r"merge_and_unload\(\)", "inspect", "lora")
        self.put("run/checkpoint-500/model.safetensors")
        self.ends(NO_INPUT, "folders in it have them: checkpoint-500", "name one of them, like run/checkpoint-500", "inspect", "run")
        self.put("hub/models--org--name/snapshots/a/config.json")
        self.ends(NO_INPUT, "folders in it have them: models--org--name", "like hub/models--org--name", "inspect", "hub")
        self.put("hub/models--org--name/snapshots/b/config.json")
        self.ends(NO_INPUT, "has 2 snapshots", "name the folder of one snapshot", "inspect", "hub/models--org--name")
        self.put("broken/models--org--name/refs/main")
        self.put("broken/models--org--name/blobs/x")
        self.ends(NO_INPUT, "its download did not end", "download the model again", "inspect", "broken/models--org--name")

    def test_shards_that_are_missing(self):
        done = workplace.run([PROGRAM, "synth", "--model", "tiny", "--output", "cut", "--shard-size", "100K"], cwd=self.folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        shards = sorted(name for name in os.listdir(self.path("cut")) if name.endswith(".safetensors"))
        for name in shards[1:]:
            os.remove(self.path("cut", name))
        error = f"{len(shards) - 1} of the {len(shards)} files that it lists are missing: {shards[1]}"
        for path in ("cut", "cut/model.safetensors.index.json"):
            self.ends(NO_INPUT, error, "download the missing files", "inspect", path)

    def test_files_that_were_cut_off(self):
        with open(os.path.join(self.one, "model.safetensors"), "rb") as file:
            whole = file.read()
        again = "download or copy it again"
        self.ends(BAD_DATA, "truncated: 1000 of 224128 bytes of data are missing", again, "inspect", self.put("x", whole[:-1000]))
        self.ends(BAD_DATA, "has only 100 bytes: it is truncated", again, "inspect", self.put("x", whole[:100]))

    def test_json_in_place_of_weights(self):
        self.ends(BAD_DATA, "is neither weights nor an index of files with weights", "name the folder of the checkpoint, ", "inspect", os.path.join(self.one, "config.json"))
        self.put("tokenizer.json", b'{"version": "1.0"}')
        self.ends(BAD_DATA, "is neither weights nor an index of files with weights", "name the folder of the checkpoint, ", "inspect", "tokenizer.json")

    def test_paths_that_are_none(self):
        shutil.copytree(self.one, self.path("one"))
        for path, hint in PATHS:
            with self.subTest(path):
                self.ends(NO_INPUT, "^cannot open " + re.escape(path) + ": No such file", hint, "plan", "--checkpoint", path)
                self.ends(NO_INPUT, "^cannot open " + re.escape(path) + ": No such file", hint, "inspect", path)

    def test_links_to_nothing(self):
        os.makedirs(self.path("linked"))
        os.symlink("../../blobs/abc", self.path("linked", "model.safetensors"))
        self.ends(NO_INPUT, "is a link to ../../blobs/abc, which is not there", "download it again", "inspect", "linked")

    def test_models_that_are_none(self):
        self.ends(USAGE, "neither a known model shape", "did you mean tiny", "plan", "--model", "tinny")
        self.ends(NO_INPUT, "cannot open org/name", "hf download org/name", "plan", "--model", "org/name")
        os.makedirs(self.path("empty"))
        self.ends(NO_INPUT, "empty has no config.json", "put the config.json of its model there", "plan", "--model", "empty")
        for changes, error in CONFIGS:
            with self.subTest(error):
                config = {k: v for k, v in {**self.config, **changes}.items() if v is not None}
                self.put("config.json", json.dumps(config).encode())
                self.ends(BAD_DATA, error, "take the config.json", "plan", "--model", "config.json")
        for text in (b"", b"{", b"[]", b"{'model_type': 'llama'}"):
            self.ends(BAD_DATA, "config.json", "take the config.json", "plan", "--model", self.put("config.json", text))

    def test_no_right_to_read(self):
        nobody = self.as_nobody()
        shutil.copytree(self.one, self.path("one"))
        os.chmod(self.path("one", "model.safetensors"), 0)
        right = f"user {NOBODY if nobody else os.geteuid()} needs the right to read it"
        self.ends(NO_INPUT, "cannot open one/model.safetensors: Permission denied", right, "inspect", "one", command=nobody)
        os.chmod(self.path("one"), 0)
        self.addCleanup(os.chmod, self.path("one"), 0o755)
        self.ends(NO_INPUT, "cannot open one: Permission denied", right, "inspect", "one", command=nobody)
        self.ends(NO_INPUT, "cannot open one/config.json: Permission denied", right, "plan", "--model", "one/config.json", command=nobody)

    # --- what is asked -----------------------------------------------------------------------------------------------

    def test_options(self):
        for arguments, error, hint in OPTIONS:
            with self.subTest(arguments):
                self.ends(USAGE, error, hint, "update", "--initial=synth:1", "--target=synth:2", "--model=tiny", *arguments)
        self.ends(USAGE, "'synth:x' names no seed", "like synth:7", "update", "--initial=synth:x", "--target=synth:2", "--model=tiny")
        self.ends(USAGE, "'1Q' is not a size", "256M", "synth", "--model=tiny", "--output=x", "--shard-size=1Q")
        self.ends(USAGE, "'200%' is not a share", "at most 1", "bench", "--model=tiny", "--changed=200%")
        self.ends(USAGE, "'one' is one too many", "write weightcast plan --checkpoint DIR", "plan", "one")
        self.ends(USAGE, "synth needs --output", "write weightcast synth --model SHAPE --output DIR", "synth", "--model=tiny")

    def test_commands(self):
        self.ends(USAGE, "'updat' is not a command", "did you mean update", "updat")
        self.ends(USAGE, "'transfer' is not a command", "commands are bench, ", "transfer")
        self.ends(USAGE, "a command is missing before --tp", "weightcast COMMAND", "--tp", "2")

    def test_help_however_it_is_asked_for(self):
        def text(*arguments):
            done = workplace.run([PROGRAM, *arguments], cwd=self.folder)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            return done.stdout

        overview = text("--help")
        for arguments in (["-h"], ["help"], ["help", "help"]):
            self.assertEqual(text(*arguments), overview)
        for code in ("  0  ok", " 64  wrong usage", " 78  bad configuration", "124  deadline passed"):
            self.assertIn(code, overview)
        self.assertIn("tiny", overview)
        for arguments in (["update", "-h"], ["update", "help"], ["help", "update"], ["update", "--tp=2", "-h"]):
            self.assertEqual(text(*arguments), text("update", "--help"))
        self.assertEqual(text("version"), text("--version"))
        self.put("help", GGUF)
        self.ends(BAD_DATA, "help is a GGUF file", "gguf_file", "inspect", "help")

    # --- before the work ---------------------------------------------------------------------------------------------

    def test_outputs_that_cannot_be_made(self):
        snapshot = ["snapshot", "--checkpoint", self.one, "--output"]
        synth = ["synth", "--model", "tiny", "--output"]
        self.put("file")
        self.put("folder/file")
        self.ends(CANT_CREATE, "No such file", "the folder exists", *snapshot, "no/such/x.h5")
        self.ends(CANT_CREATE, "it is a folder", "name a file", *snapshot, "folder")
        self.ends(CANT_CREATE, "is there already", "--force", *snapshot, "file")
        self.ends(CANT_CREATE, "a file has that name", "another name", *synth, "file")
        self.ends(CANT_CREATE, "there is one already", "--force", *synth, "folder")
        os.chmod(self.path("folder"), 0o555)
        nobody = self.as_nobody()
        self.ends(CANT_CREATE, "Permission denied", "may be written", *synth, "folder/new", command=nobody)

    def test_outputs_that_have_no_room(self):
        disk = self.small_disk()
        needs = r"needs 224 kB, but its file system has [\d.]+ kB left"
        self.ends(IO_ERROR, needs, "free some space", "synth", "--model", "tiny", "--output", os.path.join(disk, "x"))
        self.assertEqual(os.listdir(disk), [])

    def update(self, *arguments, ranks=2):
        return ["update", "--initial=synth:1", "--target=synth:2", "--model=tiny", "--device=host", *arguments], {"command": [MPIEXEC, "-n", ranks]}

    def test_without_mpirun(self):
        for command in (["update", "--initial=synth:1", "--target=synth:2", "--model=tiny"], ["bench", "--model=tiny"]):
            self.ends(CONFIG, "one rank alone, but this takes 1 trainer", "mpirun -n 2", *command)
            self.ends(CONFIG, "there is no mpirun in PATH", "openmpi-bin", *command, env={"PATH": self.folder})

    def test_numbers_of_ranks(self):
        for ranks, more, error, hint in ((2, ["--tp=2"], "2 ranks are not 1 trainer", "mpirun -n 3"), (4, ["--dp=2"], "4 ranks are not", "mpirun -n 3"),
                                         (2, ["--trainers=2"], "2 ranks are not 2 trainer ranks", "mpirun -n 3")):
            arguments, keywords = self.update(*more, ranks=ranks)
            self.ends(CONFIG, error, hint, *arguments, **keywords)

    def test_memory_that_there_is_not(self):
        """Refused before anything is loaded: by far more than any machine has, in the shape of a large model."""
        large = {**self.config, "num_hidden_layers": 60, "hidden_size": 32768, "intermediate_size": 131072, "num_attention_heads": 256,
                 "head_dim": 128, "num_key_value_heads": 8}
        self.put("large.json", json.dumps(large).encode())
        arguments, keywords = self.update("--model=large.json")
        arguments.remove("--model=tiny")
        self.ends(CONFIG, r"the weights of 2 ranks here need [\d.]+ TB, but ", "--commit in-place", *arguments, **keywords)
        self.ends(CONFIG, r"the weights of 2 ranks here need [\d.]+ TB, but ", "fewer replicas", "bench", "--device=host", "--model=tiny,large.json",
                  **keywords)

    def test_the_second_of_two(self):
        """Is looked at before the first is worked on."""
        _, keywords = self.update()
        done = self.ends(USAGE, '"nope" is neither', "name one of", "bench", "--device=host", "--model=tiny,nope", **keywords)
        self.assertEqual(done.stdout, "")
        self.put("gguf/x.gguf")
        for first, second in ((self.one, "gguf"), ("gguf", self.one)):
            self.ends(NO_INPUT, "a GGUF file", "gguf_file", "update", "--initial", first, "--target", second, "--device=host", **keywords)
            self.ends(2, "a GGUF file", "gguf_file", "verify", first, second)

    def test_snapshots_that_have_no_room(self):
        disk = self.small_disk()
        arguments, keywords = self.update("--snapshot", os.path.join(disk, "x.h5"))
        done = self.ends(IO_ERROR, "x.h5 needs 224 kB", "free some space", *arguments, **keywords)
        self.assertNotIn("committed", done.stdout)
        self.assertEqual(os.listdir(disk), [])


if __name__ == "__main__":
    PROGRAM, MPIEXEC = os.path.abspath(sys.argv[1]), sys.argv[2]
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
