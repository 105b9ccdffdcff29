#!/usr/bin/env python3
"""The subcommands that need no MPI, as a user meets them: results, exit statuses, messages, and what is left on disk.

usage: cli_offline.py PROGRAM [unittest arguments]
"""

import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import unittest

import workplace
from workplace import data_of, header_of, write_safetensors

PROGRAM = ""
USAGE, BAD_DATA, NO_INPUT, CANT_CREATE, IO_ERROR, MISMATCH, CONFIG = 64, 65, 66, 73, 74, 76, 78


def run(*arguments, **keywords):
    return workplace.run([PROGRAM, *arguments], **keywords)


def tensor_file(folder):
    return os.path.join(folder, "model.safetensors")


def data_range(path, name):
    """First and last byte (exclusive) of a tensor in a safetensors file."""
    with open(path, "rb") as file:
        length, = struct.unpack("<Q", file.read(8))
        begin, end = json.loads(file.read(length))[name]["data_offsets"]
    return 8 + length + begin, 8 + length + end


def flip_bit(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


class Offline(workplace.Workplace):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.one = os.path.join(cls.shared, "one")
        cls.two = os.path.join(cls.shared, "two")
        for folder, seed in ((cls.one, 1), (cls.two, 2)):
            done = run("synth", "--model", "tiny", "--seed", seed, "--output", folder)
            assert done.returncode == 0, done.stderr
        cls.h5 = os.path.join(cls.shared, "one.h5")
        done = run("snapshot", "--checkpoint", cls.one, "--output", cls.h5)
        assert done.returncode == 0, done.stderr

    def copy_of_one(self):
        return shutil.copytree(self.one, self.path("copy"))

    def succeeds(self, *arguments, **keywords):
        done = run(*arguments, **keywords)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stderr, "")
        return done.stdout

    def fails(self, status, *arguments, **keywords):
        """The error block of a run that must end with `status` and one such block."""
        done = run(*arguments, **keywords)
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        self.assertEqual(done.stderr.count("weightcast: error: "), 1, done.stderr)
        self.assertTrue(done.stderr.startswith("weightcast: error: "), done.stderr)
        self.assertIn(f"(exit status {status})", done.stderr)
        return done.stderr

    # --- the program -------------------------------------------------------------------------------------------------

    def test_version_names_every_library(self):
        text = self.succeeds("--version")
        for name in ("weightcast", "MPI", "NCCL", "CUDA", "HDF5"):
            self.assertRegex(text, rf"(?m)^{name} +\S")

    def test_help(self):
        overview = self.succeeds("--help")
        for command in ("update", "bench", "plan", "verify", "snapshot", "inspect", "synth"):
            self.assertIn(f"\n  {command}", overview)
            self.assertIn(f"weightcast {command}", self.succeeds(command, "--help"))

    def test_no_command_and_unknown_command(self):
        self.fails(USAGE)
        self.assertIn("'synht'", self.fails(USAGE, "synht"))

    def test_only_rank_0_reports_and_all_ranks_agree(self):
        texts = []
        for rank in ("0", "1"):
            done = run("update", "--nonsense", env={"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": "2"})
            self.assertEqual(done.returncode, USAGE)
            texts.append(done.stdout + done.stderr)
        self.assertNotEqual(texts[0], "")
        self.assertEqual(texts[1], "")

    def test_a_full_standard_output_is_an_error(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run([PROGRAM, "plan", "--model", "tiny"], stdout=full, stderr=subprocess.PIPE, text=True,
                                  timeout=60, check=False)
        self.assertEqual(done.returncode, IO_ERROR)
        self.assertIn("standard output", done.stderr)

    def test_control_bytes_do_not_reach_the_terminal(self):
        self.assertNotIn("\x1b", self.fails(NO_INPUT, "inspect", "/no\x1b[31m/such"))

    # --- options -----------------------------------------------------------------------------------------------------

    def test_precedence_and_origins(self):
        config = self.write("settings.ini", "# ours\ntp = 1\ndp = 5\nmodel = tiny\n")
        text = self.succeeds("plan", "--config", config, "--tp", "2", "--print-config", env={"WEIGHTCAST_DP": "3"})
        self.assertRegex(text, r"(?m)^tp = 2 +# command line$")
        self.assertRegex(text, r"(?m)^dp = 3 +# WEIGHTCAST_DP$")
        self.assertRegex(text, rf"(?m)^model = tiny +# {re.escape(config)}$")
        self.assertRegex(text, r"(?m)^# checkpoint +# not set$")
        text = self.succeeds("synth", "--print-config")
        self.assertRegex(text, r"(?m)^shard-size = 5G +# default$")
        again = self.write("again.ini", text)
        self.assertRegex(self.succeeds("synth", "--config", again, "--print-config"), r"(?m)^seed = 1 +# .*again\.ini$")

    def test_a_file_works_as_well_as_the_command_line(self):
        config = self.write("settings.ini", "model = tiny\ntp = 2\ntimeout = 5s\n")  # timeout is an option of update
        self.assertEqual(self.succeeds("plan", "--config", config), self.succeeds("plan", "--model=tiny", "--tp=2"))
        self.assertEqual(self.succeeds("plan", env={"WEIGHTCAST_CONFIG": config, "WEIGHTCAST_REPEAT": "3"}),
                         self.succeeds("plan", "--model", "tiny", "--tp", "2"))

    def test_plan_of_several_trainer_ranks(self):
        whole = self.succeeds("plan", "--model=tiny", "--tp=2")
        self.assertEqual(self.succeeds("plan", "--model=tiny", "--tp=2", "--trainers=1", "--source-layout=fsdp"), whole)
        self.assertNotIn("sent bytes", whole)
        egress = re.search(r"trainer egress +(.+)", whole).group(1)
        total = None
        for layout, trainers in (("whole", 3), ("fsdp", 3), ("fsdp", 5), ("tp", 2)):
            text = self.succeeds("plan", "--model=tiny", "--tp=2", f"--trainers={trainers}", f"--source-layout={layout}", "--all")
            self.assertEqual(re.search(r"trainer egress +(.+)", text).group(1), egress)
            table = text[text.index("sent bytes"):].splitlines()
            rows = [re.match(r" *(\d+) +(\d+) +(\d+) +\d+(?: |$)", line) for line in table]
            rows = [list(map(int, row.groups())) for row in rows if row]
            self.assertEqual([row[0] for row in rows], list(range(trainers)))
            sent = sum(row[2] for row in rows)
            total = total or sent
            self.assertEqual(sent, total, "who has it does not change how much is sent")
        self.fails(CONFIG, "plan", "--model=tiny", "--trainers=7", "--source-layout=tp")
        self.fails(USAGE, "plan", "--model=tiny", "--trainers=0")
        self.fails(USAGE, "plan", "--model=tiny", "--source-layout=custom")

    def test_a_typo_in_the_file(self):
        config = self.write("settings.ini", "model = tiny\ntpp = 2\n")
        block = self.fails(CONFIG, "plan", "--config", config)
        self.assertIn("'tpp'", block)
        self.assertIn(config, block)
        self.fails(CONFIG, "plan", "--config", self.write("broken.ini", "model tiny\n"))
        self.fails(CONFIG, "plan", "--config", self.write("sections.ini", "[plan]\nmodel = tiny\n"))
        self.fails(NO_INPUT, "plan", "--config", self.path("missing.ini"))

    def test_an_unknown_variable(self):
        self.assertIn("WEIGHTCAST_TIMEUOT", self.fails(CONFIG, "plan", "--model=tiny", env={"WEIGHTCAST_TIMEUOT": "3s"}))

    def test_abbreviations_and_unknown_options(self):
        for arguments in (["--mod", "tiny"], ["--model", "tiny", "--repeat", "2"], ["--model=tiny", "--model=tiny"],
                          ["--model=tiny", "surplus"], ["--model"], ["-m", "tiny"]):
            self.fails(USAGE, "plan", *arguments)

    def test_bad_values_name_their_origin(self):
        self.assertIn("--tp (command line): 'two'", self.fails(USAGE, "plan", "--model=tiny", "--tp=two"))
        self.assertIn("--tp (WEIGHTCAST_TP): '0'", self.fails(CONFIG, "plan", "--model=tiny", env={"WEIGHTCAST_TP": "0"}))
        self.fails(USAGE, "synth", "--model=tiny", "--output", self.path("x"), "--shard-size=5X")
        self.fails(USAGE, "synth", "--model=tiny", "--output", self.path("x"), "--shard-size=0")
        self.fails(USAGE, "synth", "--model=tiny", "--output", self.path("x"), "--seed=-1")
        self.assertEqual(os.listdir(self.folder), [])

    def test_missing_options(self):
        for arguments in (["plan"], ["plan", "--model=tiny", "--checkpoint", self.one], ["synth", "--model=tiny"], ["inspect"],
                          ["synth", "--output", self.path("x")], ["snapshot", "--checkpoint", self.one],
                          ["snapshot", "--output", self.path("x.h5")], ["update", "--initial=synth"]):
            self.fails(USAGE, *arguments)

    # --- plan --------------------------------------------------------------------------------------------------------

    def test_plan_of_a_large_model_in_little_memory(self):
        with subprocess.Popen([PROGRAM, "plan", "--model=llama-3.1-8b", "--tp=16"], stdout=subprocess.PIPE, text=True) as child:
            text = child.stdout.read()
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(child.returncode, 0)
        self.assertLess(usage.ru_maxrss, 64 << 10)  # KiB
        self.assertIn("16060522496", text)
        self.assertIn("proven", text)

    def test_plan_of_a_checkpoint(self):
        self.assertEqual(self.succeeds("plan", "--checkpoint", self.one), self.succeeds("plan", "--model=tiny"))

    def test_plan_refuses_what_does_not_divide(self):
        block = self.fails(CONFIG, "plan", "--model=smollm2-135m", "--tp=2")
        self.assertIn("2", block)
        self.assertIn("model.layers.0.self_attn", block)

    def test_plan_of_nothing(self):
        self.assertIn("llama-3.2-1b", self.fails(USAGE, "plan", "--model=llama-9"))
        copy = self.copy_of_one()
        os.remove(tensor_file(copy))
        self.fails(NO_INPUT, "plan", "--checkpoint", copy)

    # --- synth -------------------------------------------------------------------------------------------------------

    def test_synth_depends_on_the_seed_only(self):
        self.succeeds("synth", "--model=tiny", "--seed=1", "--output", self.path("a"))
        self.succeeds("synth", "--model", os.path.join(self.one, "config.json"), "--shard-size=100K", "--output", self.path("b"))
        self.assertTrue(os.path.exists(self.path("b", "model.safetensors.index.json")))
        self.succeeds("verify", self.one, self.path("a"))
        self.succeeds("verify", self.one, self.path("b"))
        with open(tensor_file(self.one), "rb") as x, open(tensor_file(self.path("a")), "rb") as y:
            self.assertEqual(x.read(), y.read())
        self.assertEqual(run("verify", self.one, self.two).returncode, 1)

    def test_synth_cannot_create(self):
        plain = self.write("plain", "")
        block = self.fails(CANT_CREATE, "synth", "--model=tiny", "--output", os.path.join(plain, "out"))
        self.assertIn(plain, block)

    def test_a_full_disk_leaves_nothing(self):
        disk = self.small_disk()
        self.fails(IO_ERROR, "synth", "--model=tiny", "--output", os.path.join(disk, "out"))
        self.assertEqual([name for _, _, names in os.walk(disk) for name in names if "safetensors" in name], [])
        self.fails(IO_ERROR, "snapshot", "--checkpoint", self.one, "--output", os.path.join(disk, "out.h5"))
        self.assertEqual([name for name in os.listdir(disk) if "h5" in name], [])

    # --- inspect -----------------------------------------------------------------------------------------------------

    def test_inspect_lists_every_tensor(self):
        for path in (self.one, tensor_file(self.one), self.h5):
            text = self.succeeds("inspect", path)
            self.assertRegex(text, r"(?m)^model\.norm\.weight +BF16 \[\d+\] +\d+$")
        with_digests = [self.succeeds("inspect", path, "--digest") for path in (self.one, tensor_file(self.one), self.h5)]
        self.assertEqual(len(set(with_digests)), 1)
        self.assertRegex(with_digests[0], r"(?m)^model\.norm\.weight .* [0-9a-f]{32}$")
        self.assertNotEqual(with_digests[0], self.succeeds("inspect", self.two, "--digest"))

    def test_inspect_bad_input(self):
        self.assertIn("/no/such/path", self.fails(NO_INPUT, "inspect", "/no/such/path"))
        self.fails(BAD_DATA, "inspect", self.write("empty.safetensors", ""))
        self.fails(BAD_DATA, "inspect", self.write("text.safetensors", "this is no tensor file at all"))
        with open(self.path("signature.h5"), "wb") as file:
            file.write(b"\x89HDF\r\n\x1a\n" + bytes(100))
        self.fails(BAD_DATA, "inspect", self.path("signature.h5"))
        copy = self.copy_of_one()
        os.truncate(tensor_file(copy), os.path.getsize(tensor_file(copy)) - 1)
        self.assertIn("model.safetensors", self.fails(BAD_DATA, "inspect", copy))

    def test_inspect_finds_a_flipped_bit_in_a_snapshot(self):
        damaged = shutil.copy(self.h5, self.path("damaged.h5"))
        begin, end = data_range(tensor_file(self.one), "model.norm.weight")
        with open(tensor_file(self.one), "rb") as file:
            file.seek(begin)
            needle = file.read(end - begin)
        with open(damaged, "rb") as file:
            flip_bit(damaged, file.read().index(needle) + 5)
        self.assertIn("model.norm.weight", self.fails(MISMATCH, "inspect", damaged, "--digest"))

    # --- verify ------------------------------------------------------------------------------------------------------

    def test_verify_same_in_any_format(self):
        for path in (self.one, tensor_file(self.one), self.h5):
            self.assertIn("the same", self.succeeds("verify", self.one, path))
            self.assertIn("the same", self.succeeds("verify", path, self.h5))

    def test_verify_names_the_first_difference(self):
        copy = self.copy_of_one()
        begin, _ = data_range(tensor_file(copy), "model.norm.weight")
        flip_bit(tensor_file(copy), begin + 14)  # the low byte of element 7
        begin, end = data_range(tensor_file(copy), "model.embed_tokens.weight")
        flip_bit(tensor_file(copy), end - 1)  # sorted before model.norm, so this one is first
        done = run("verify", self.one, copy)
        self.assertEqual((done.returncode, done.stderr), (1, ""))
        shape = re.search(r"model\.embed_tokens\.weight +BF16 \[(\d+), (\d+)\]", self.succeeds("inspect", self.one))
        rows, columns = map(int, shape.groups())
        self.assertRegex(done.stdout, r"(?m)^model\.embed_tokens\.weight: first difference at element "
                                      rf"{rows * columns - 1} \[{rows - 1}, {columns - 1}\]: "
                                      r"A has \S+ \(0x[0-9a-f]{4}\), B has \S+ \(0x[0-9a-f]{4}\)$")
        flip_bit(tensor_file(copy), end - 1)
        done = run("verify", copy, self.h5)
        self.assertEqual(done.returncode, 1)
        self.assertIn("model.norm.weight: first difference at element 7 [7]:", done.stdout)

    def test_verify_names_every_missing_and_other_tensor(self):
        def save(name, tensors):
            write_safetensors(self.path(name), json.dumps(header_of(tensors)), data_of(tensors))
            return self.path(name)
        a = save("a.safetensors", {"w": ("F32", [2], bytes(8)), "x": ("U8", [2], b"ab"), "y": ("U8", [4], b"abcd")})
        b = save("b.safetensors", {"w": ("F32", [2], bytes(8)), "y": ("U8", [2, 2], b"abcd"), "z": ("I16", [1], b"ab"),
                                   "zz": ("I16", [], b"ab")})
        done = run("verify", a, b)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout.splitlines(), ["only in A: x U8 [2]", "y: A has U8 [4], B has U8 [2, 2]", "only in B: z I16 [1]",
                                                    "only in B: zz I16 []", "different"])
        c = save("c.safetensors", {"w": ("F32", [2], bytes(8)), "x": ("U8", [2], b"aB"), "y": ("U8", [4], b"abcd")})
        done = run("verify", a, c)
        self.assertEqual(done.stdout.splitlines(), ["x: first difference at element 1 [1]: A has 0x62, B has 0x42", "different"])

    def test_verify_trouble_is_2(self):
        self.fails(2, "verify", self.one, "/no/such/path")
        self.fails(2, "verify", self.one)
        self.fails(2, "verify", self.one, self.one, self.one)
        self.fails(2, "verify", self.one, self.one, "--nonsense")
        self.fails(2, "verify", self.one, self.write("empty.safetensors", ""))
        self.fails(2, "verify", self.one, self.one, env={"WEIGHTCAST_TIMEUOT": "1s"})

    # --- snapshot ----------------------------------------------------------------------------------------------------

    def test_snapshot_is_reproducible_but_for_its_user_block(self):
        self.succeeds("snapshot", "--checkpoint", self.one, "--output", self.path("again.h5"))
        with open(self.h5, "rb") as x, open(self.path("again.h5"), "rb") as y:
            self.assertEqual(x.read()[4096:], y.read()[4096:])
        self.assertEqual(os.listdir(self.folder), ["again.h5"])

    def test_snapshot_agrees_with_the_hdf5_tools(self):
        if shutil.which("h5diff") is None:
            self.skipTest("h5diff is not installed")
        self.succeeds("snapshot", "--checkpoint", self.two, "--output", self.path("two.h5"))
        self.succeeds("snapshot", "--checkpoint", self.one, "--output", self.path("one.h5"))
        self.assertEqual(subprocess.run(["h5diff", self.h5, self.path("one.h5")], check=False).returncode, 0)
        self.assertEqual(subprocess.run(["h5diff", "-q", self.h5, self.path("two.h5")], check=False).returncode, 1)

    def test_snapshot_bad_input_leaves_nothing(self):
        output = self.path("out", "x.h5")
        os.mkdir(self.path("out"))
        self.fails(NO_INPUT, "snapshot", "--checkpoint", self.copy_without("model.safetensors"), "--output", output)
        copy = self.copy_of_one()
        os.truncate(tensor_file(copy), 1000)
        self.fails(BAD_DATA, "snapshot", "--checkpoint", copy, "--output", output)
        self.assertEqual(os.listdir(self.path("out")), [])
        plain = self.write("plain", "")
        self.fails(CANT_CREATE, "snapshot", "--checkpoint", self.one, "--output", os.path.join(plain, "x.h5"))
        self.fails(CANT_CREATE, "snapshot", "--checkpoint", self.one, "--output", self.path("no", "such", "x.h5"))
        self.fails(CANT_CREATE, "snapshot", "--checkpoint", self.one, "--output", "/dev/full/x.h5")

    def copy_without(self, name):
        folder = shutil.copytree(self.one, self.path("without"))
        os.remove(os.path.join(folder, name))
        return folder

    def test_snapshot_of_a_checkpoint_without_or_with_another_config(self):
        # Without config.json there is no model: the path is no named shape either.
        done = run("snapshot", "--checkpoint", self.copy_without("config.json"), "--output", self.path("x.h5"))
        self.assertIn(done.returncode, (USAGE, NO_INPUT))
        copy = self.copy_of_one()
        config = os.path.join(copy, "config.json")
        with open(config, encoding="utf-8") as file:
            settings = json.load(file)
        settings["num_hidden_layers"] += 1
        with open(config, "w", encoding="utf-8") as file:
            json.dump(settings, file)
        layer = settings["num_hidden_layers"] - 1
        self.assertIn(f"model.layers.{layer}.", self.fails(BAD_DATA, "snapshot", "--checkpoint", copy, "--output", self.path("x.h5")))
        self.assertFalse(os.path.exists(self.path("x.h5")))

    # --- terminal ----------------------------------------------------------------------------------------------------

    def test_short_work_shows_no_progress_on_a_terminal(self):
        master, slave = pty.openpty()
        done = subprocess.run([PROGRAM, "verify", self.one, self.h5], stderr=slave, stdout=subprocess.DEVNULL, timeout=60,
                              check=False)
        os.close(slave)
        os.set_blocking(master, False)
        try:
            shown = os.read(master, 1000)
        except OSError:
            shown = b""
        os.close(master)
        self.assertEqual((done.returncode, shown), (0, b""))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    PROGRAM = os.path.abspath(sys.argv.pop(1))
    unittest.main()
