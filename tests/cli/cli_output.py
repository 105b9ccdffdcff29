"""Tests where the program's output goes: pipes, links and devices, two jobs that write one name, limits, interrupts.

usage: cli_output.py PROGRAM MPIEXEC [unittest arguments]

These environment variables repeat the random tests more often:
  WEIGHTCAST_RACES       pairs of jobs that write one name at once, of each kind
  WEIGHTCAST_LIMITS      limits on the size of files
  WEIGHTCAST_INTERRUPTS  interrupts in each phase; from 2 on by Ctrl-C to mpirun and with 2.5 GB of weights instead
                         of 0.3 GB and SIGTERM to each rank
"""

import fcntl
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import workplace

CANT_CREATE, IO_ERROR, BUSY, DEADLINE = 73, 74, 75, 124
PROGRAM = MPIEXEC = None
TEMPORARY = ".tmp."


def times(variable, default):
    return int(os.environ.get(variable, default))


def command(*arguments):
    return [PROGRAM, *map(str, arguments)]


def mpirun(ranks, *arguments):
    return [MPIEXEC, "--oversubscribe", "-n", str(ranks), *command(*arguments)]


def environment(**extra):
    return {k: v for k, v in os.environ.items() if not k.startswith("WEIGHTCAST_")} | extra


def run(line, env=None, **keywords):
    return subprocess.run(line, env=env or environment(), text=True, capture_output=True, timeout=120, check=False, **keywords)


def update(*arguments, ranks=2, model="tiny"):
    return mpirun(ranks, "update", "--model", model, "--initial=synth:1", "--target=synth:2", "--device=host", *arguments)


def over_tcp(line):
    """Open MPI without its own files in shared memory."""
    return [line[0], "--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include", "lo", *line[1:]]


class Workplace(workplace.Workplace):
    def succeeds(self, line, **keywords):
        done = run(line, **keywords)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done

    def fails(self, status, line, **keywords):
        done = run(line, **keywords)
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        self.assertEqual(done.stderr.count("weightcast: error: "), 1, done.stderr)
        return done.stderr

    def unfinished(self):
        return [os.path.join(folder, name) for folder, folders, names in os.walk(self.folder) for name in folders + names
                if TEMPORARY in name]

    def synth(self, name, seed, *more):
        return command("synth", "--model=tiny", "--seed", seed, "--output", self.path(name), *more)

    def digest(self, name):
        """Of all tensors of a checkpoint or snapshot; fails when it is not whole."""
        return [line.split()[-1] for line in self.succeeds(command("inspect", "--digest", self.path(name))).stdout.splitlines()]


class Names(Workplace):
    def test_a_report_goes_into_a_pipe_a_device_and_through_links(self):
        os.mkfifo(self.path("pipe"))
        os.symlink("real.json", self.path("link"))
        got = []

        def read():
            with open(self.path("pipe"), encoding="utf-8") as file:
                got.append(file.read())

        reader = threading.Thread(target=read)
        reader.start()
        self.succeeds(update("--json", self.path("pipe"), "--trace", self.path("link")))
        reader.join(10)
        self.assertTrue(json.loads(got[0])["ok"])
        self.assertTrue(stat.S_ISFIFO(os.lstat(self.path("pipe")).st_mode))
        self.assertEqual(os.readlink(self.path("link")), "real.json")
        with open(self.path("real.json"), encoding="utf-8") as file:
            json.load(file)
        try:
            os.mknod(self.path("null"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            self.skipTest("may not make devices")
        self.succeeds(update("--json", self.path("null")))
        self.assertTrue(stat.S_ISCHR(os.lstat(self.path("null")).st_mode))

    def test_a_pipe_that_nobody_reads_does_not_hold_the_job_up(self):
        os.mkfifo(self.path("pipe"))
        self.assertIn("nobody reads", self.fails(CANT_CREATE, update("--json", self.path("pipe"), "--timeout=4s")))

    def test_a_snapshot_and_a_checkpoint_do_not_go_into_a_pipe(self):
        self.succeeds(self.synth("one", 1))
        os.mkfifo(self.path("pipe"))
        for line in (command("snapshot", "--checkpoint", self.path("one"), "--output", self.path("pipe")),
                     update("--snapshot", self.path("pipe")), self.synth("pipe", 1, "--force")):
            self.fails(CANT_CREATE, line)
        self.assertTrue(stat.S_ISFIFO(os.lstat(self.path("pipe")).st_mode))
        self.assertEqual(self.unfinished(), [])

    def test_a_link_to_a_folder_or_a_snapshot_stays_a_link(self):
        os.symlink("real", self.path("link"))
        os.symlink("real.h5", self.path("link.h5"))
        self.succeeds(self.synth("link", 1))
        self.succeeds(command("snapshot", "--checkpoint", self.path("link"), "--output", self.path("link.h5")))
        self.assertEqual(sorted(os.listdir(self.folder)), ["link", "link.h5", "real", "real.h5"])
        self.assertTrue(os.path.islink(self.path("link")) and os.path.islink(self.path("link.h5")))

    def test_what_is_there_is_named_and_replaced_as_a_whole_by_force(self):
        self.succeeds(self.synth("one", 1, "--shard-size=100K"))
        open(self.path("one", "vocab.json"), "w").close()
        self.assertIn("config.json, model-00001-of-00003.safetensors", self.fails(CANT_CREATE, self.synth("one", 2)))
        self.succeeds(self.synth("one", 2, "--force"))
        self.assertEqual(sorted(os.listdir(self.path("one"))), ["config.json", "model.safetensors"])
        snapshot = command("snapshot", "--checkpoint", self.path("one"), "--output", self.path("one.h5"))
        with open(self.path("one.h5"), "w", encoding="utf-8") as file:
            file.write("mine")
        for line in (snapshot, update("--snapshot", self.path("one.h5"))):
            self.assertIn("a file of 4 B is there already", self.fails(CANT_CREATE, line))
            with open(self.path("one.h5"), encoding="utf-8") as file:
                self.assertEqual(file.read(), "mine")
        self.succeeds(snapshot + ["--force"])
        self.succeeds(update("--snapshot", self.path("one.h5"), "--force"))
        self.assertEqual(self.digest("one")[-1], self.digest("one.h5")[-1])
        os.mkdir(self.path("empty"))
        self.succeeds(self.synth("empty", 1))
        self.assertEqual(sorted(os.listdir(self.path("empty"))), ["config.json", "model.safetensors"])

    def test_a_snapshot_that_a_program_has_open_is_in_use(self):
        self.succeeds(self.synth("one", 1))
        self.succeeds(command("snapshot", "--checkpoint", self.path("one"), "--output", self.path("one.h5")))
        inspect = command("inspect", self.path("one.h5"))
        with open(self.path("one.h5"), "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # as HDF5 does that reads
            self.succeeds(inspect)
            fcntl.flock(file, fcntl.LOCK_EX)  # as HDF5 does that writes
            self.assertIn("is in use", self.fails(BUSY, inspect))
            self.assertIn("is in use", self.fails(2, command("verify", self.path("one"), self.path("one.h5"))))
            self.succeeds(inspect, env=environment(HDF5_USE_FILE_LOCKING="FALSE"))
        with open(self.path("one.h5"), "rb+") as file:
            file.truncate(5000)
        self.assertNotIn("in use", self.fails(65, inspect))  # that one is damaged

    def test_a_killed_job_leaves_nothing_for_the_next_one(self):
        line = command("synth", "--model=smollm2-135m", "--output", self.path("one"))
        job = subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL)
        while not self.unfinished():
            self.assertIsNone(job.poll())
        job.kill()
        job.wait()
        self.assertNotEqual(self.unfinished(), [])
        self.succeeds(self.synth("one", 1))
        self.assertEqual(os.listdir(self.folder), ["one"])


class Races(Workplace):
    """Two jobs with the same process ids that write one name: each that exits with 0 has its own weights there."""

    def setUp(self):
        super().setUp()
        apart = ["unshare", "-pf", "--mount-proc"]
        self.apart = apart if run(apart + ["true"]).returncode == 0 else []
        for seed in (1, 2):
            self.succeeds(self.synth(f"seed{seed}", seed))
        self.digests = {seed: self.digest(f"seed{seed}") for seed in (1, 2)}
        self.outcomes = {}
        self.temporary = tempfile.TemporaryDirectory(prefix="w")  # short: sockets are in it
        self.addCleanup(self.temporary.cleanup)

    def race(self, lines, look, locks=None, one_wins=True, may_replace=None):
        """Starts both; `look` tells whose weights are there when both are over."""
        shared = environment(**({"HDF5_USE_FILE_LOCKING": locks} if locks else {}))
        jobs, ended = {}, {}
        for seed in random.sample((1, 2), 2):
            # Open MPI's own files must differ, as in containers; the program's names may not depend on them.
            own = shared | {"TMPDIR": os.path.join(self.temporary.name, str(seed))}
            os.makedirs(own["TMPDIR"], exist_ok=True)
            jobs[seed] = subprocess.Popen(self.apart + lines[seed], env=own, stdout=subprocess.DEVNULL,
                                          stderr=subprocess.PIPE, text=True)
            time.sleep(random.choice((0, 0, 0.002)))
        def wait(seed):
            text = jobs[seed].communicate(timeout=120)[1]
            ended[seed] = (time.time(), jobs[seed].returncode, text)

        waiting = [threading.Thread(target=wait, args=(seed,)) for seed in jobs]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join()
        for _, status, text in ended.values():
            self.assertIn(status, (0, CANT_CREATE), text)
        winners = sorted((at, seed) for seed, (at, status, _) in ended.items() if status == 0)
        self.assertGreaterEqual(len(winners), one_wins, ended)
        # On a busy machine one may be over before the other has begun, which then replaces what is there.
        for at, seed in winners:
            if look() != seed:
                self.assertTrue(may_replace, ended)
                self.assertGreater(os.stat(may_replace).st_ctime, at, ended)
        self.assertEqual(self.unfinished(), [])
        codes = tuple(sorted(status for _, status, _ in ended.values()))
        self.outcomes[codes] = self.outcomes.get(codes, 0) + 1

    def whose(self, name):
        digest = self.digest(name)
        return next((seed for seed in self.digests if self.digests[seed][-2:] == digest[-2:]), None)

    def test_synth(self):
        for i in range(times("WEIGHTCAST_RACES", 4)):
            if i % 2:
                os.mkdir(self.path("out"))
            self.race({seed: self.synth("out", seed, "--shard-size", random.choice(("5G", "100K"))) for seed in (1, 2)},
                      lambda: self.whose("out"))
            shutil.rmtree(self.path("out"))
        print("synth", self.outcomes)

    def test_snapshot(self):
        for i in range(times("WEIGHTCAST_RACES", 4)):
            self.race({seed: command("snapshot", "--checkpoint", self.path(f"seed{seed}"), "--output", self.path("out.h5"))
                       for seed in (1, 2)}, lambda: self.whose("out.h5"), (None, "FALSE", "TRUE")[i % 3])
            os.remove(self.path("out.h5"))
        print("snapshot", self.outcomes)

    def test_report_and_snapshot_of_updates(self):
        """With and without a file that is there before. With two names each job may lose one: then both are told."""
        def of_report():
            with open(self.path("out.json"), encoding="utf-8") as file:
                return len(json.load(file)["updates"])

        def of_snapshot():
            return 3 - self.whose("out.h5")  # one update brings the weights of seed 2, two bring back those of seed 1

        report, snapshot = ["--json", self.path("out.json")], ["--snapshot", self.path("out.h5"), "--force"]
        for i in range(times("WEIGHTCAST_RACES", 3)):
            names = (report, snapshot, report + snapshot)[i % 3]
            self.race({seed: over_tcp(update("--repeat", seed, "--transport=mpi", *names)) for seed in (1, 2)},
                      of_report if names is report else of_snapshot, (None, "FALSE", "TRUE")[i // 3 % 3], len(names) < 5, names[1])
            if i % 4 == 0:
                for name in ("out.json", "out.h5"):
                    if os.path.exists(self.path(name)):
                        os.remove(self.path(name))
        print("update", self.outcomes)


class Limits(Workplace):
    def test_a_limit_on_the_size_of_files_is_an_error_that_leaves_nothing(self):
        self.succeeds(self.synth("one", 1))
        seen = {}
        for seed in range(times("WEIGHTCAST_LIMITS", 4)):
            chance = random.Random(seed)
            out = self.path("out")
            name, line, most = chance.choice((
                ("synth", command("synth", "--model=tiny", "--output", out), 227_000),
                ("shards", command("synth", "--model=tiny", "--shard-size=100K", "--output", out), 100_000),
                ("snapshot", command("snapshot", "--checkpoint", self.path("one"), "--output", out), 1_446_000),
                ("json", update("--json", out), 6000), ("update", update("--snapshot", out), 1_446_000))[seed % 5:][:1])
            limit = chance.randrange(0, most)
            if MPIEXEC in line:  # the limit is for the program: Open MPI's own files are larger
                at = line.index(PROGRAM)
                line = line[:at] + ["prlimit", f"--fsize={limit}"] + line[at:]
                done = run(over_tcp(line))
            else:
                done = run(line, preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
            with self.subTest(seed=seed, kind=name, limit=limit):
                self.assertIn(done.returncode, (CANT_CREATE, IO_ERROR), done.stdout + done.stderr)
                self.assertIn("weightcast: error: ", done.stderr)
                left = os.listdir(self.folder)
                if name == "json" and "out" in left:  # the limit kept something else from being made, and that is reported
                    with open(out, encoding="utf-8") as file:
                        self.assertEqual(json.load(file)["exit_code"], done.returncode)
                    left.remove("out")
                    os.remove(out)
                self.assertEqual(left, ["one"])
            seen[(name, done.returncode)] = seen.get((name, done.returncode), 0) + 1
        print("limits", seen)


class Interrupts(Workplace):
    PHASES = ("load", "update", "snapshot")

    def children(self, pid):
        found = []
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="utf-8") as file:
                found += map(int, file.read().split())
        return found

    def memory(self, pid):
        with open(f"/proc/{pid}/statm", encoding="utf-8") as file:
            return int(file.read().split()[1]) * 4096

    def text(self, name):
        with open(self.path(name), encoding="utf-8") as file:
            return file.read()

    def reached(self, phase, ranks):
        if phase == "load":
            return len(ranks) >= 2 and self.memory(ranks[0]) > 60e6
        return " committed" in self.text("stdout") if phase == "update" else "writing " in self.text("stderr")

    def interrupt(self, phase, model, delay_s, by_launcher):
        """Ctrl-C to mpirun, which tells its ranks a second later; or SIGTERM to each rank."""
        with open(self.path("stdout"), "w") as out, open(self.path("stderr"), "w") as err:
            line = update("--repeat", 1000 if phase == "update" else 1, "--json", self.path("report.json"), "--snapshot",
                          self.path("out.h5"), model=model, ranks=3 if by_launcher else 2)
            job = subprocess.Popen(line, env=environment(), stdout=out, stderr=err, start_new_session=True)
        try:
            end = time.monotonic() + 60
            ranks = []
            while time.monotonic() < end and not self.reached(phase, ranks):
                ranks = sorted(self.children(job.pid))
                self.assertIsNone(job.poll(), self.text("stderr"))
                time.sleep(0.002)
            time.sleep(delay_s)
            if by_launcher:
                job.send_signal(signal.SIGINT)
            else:
                for rank in ranks:
                    os.kill(rank, signal.SIGTERM)
            job.wait(timeout=60)
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
        with open(self.path("report.json"), encoding="utf-8") as file:
            return json.load(file)["error"]

    def left_in_memory(self):
        """Shared memory of Open MPI that nobody uses any more."""
        used = set()
        for process in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{process}/maps", encoding="utf-8") as file:
                    used.update(line.split()[-1] for line in file if "/dev/shm/" in line)
            except OSError:
                pass
        return {name for name in os.listdir("/dev/shm") if name.startswith("vader_segment.")
                and "/dev/shm/" + name not in used}

    def test_a_job_in_each_phase(self):
        count = times("WEIGHTCAST_INTERRUPTS", 1)
        hard = count > 1
        before = self.left_in_memory()
        for phase in self.PHASES:
            said = {}
            for i in range(count):
                with self.subTest(phase=phase, number=i):
                    delay_s = random.uniform(0, 0.5 if phase != "load" else 1) if hard else 0
                    error = self.interrupt(phase, "llama-3.2-1b" if hard else "smollm2-135m", delay_s, hard)
                    self.assertIsNotNone(error)
                    self.assertIn("interrupted", error["message"])
                    stderr = self.text("stderr")
                    self.assertEqual(stderr.count("weightcast: error: "), 1, stderr)
                    self.assertNotIn("more time", stderr)
                    self.assertEqual(self.unfinished(), [])
                    self.assertFalse(os.path.exists(self.path("out.h5")))
                    self.assertEqual(self.left_in_memory() - before, set())
                    said[error["message"]] = said.get(error["message"], 0) + 1
                    os.remove(self.path("report.json"))
            print(phase, said)

    def test_commands_without_mpi(self):
        self.succeeds(command("synth", "--model=smollm2-135m", "--output", self.path("one")))
        for i in range(times("WEIGHTCAST_INTERRUPTS", 1)):
            for line in (command("synth", "--model=smollm2-135m", "--output", self.path("two")),
                         command("snapshot", "--checkpoint", self.path("one"), "--output", self.path("two.h5"))):
                for number in (signal.SIGINT, signal.SIGTERM):
                    job = subprocess.Popen(line, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                    while not self.unfinished():
                        self.assertIsNone(job.poll())
                        time.sleep(0.001)
                    time.sleep(random.uniform(0, 0.05))
                    job.send_signal(number)
                    out, err = job.communicate(timeout=60)
                    self.assertEqual(job.returncode, DEADLINE, out + err)
                    self.assertRegex(err, f"weightcast: error: interrupted: stopped by {number.name} while it wrote .*two")
                    self.assertNotIn("more time", err)
                    self.assertEqual(os.listdir(self.folder), ["one"])


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    PROGRAM, MPIEXEC = os.path.abspath(sys.argv.pop(1)), shutil.which(sys.argv.pop(1))
    unittest.main()
