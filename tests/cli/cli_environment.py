#!/usr/bin/env python3
"""The environment that a job runs in, as a user meets it: launchers, variables of others, limits of a container.

usage: cli_environment.py PROGRAM MPIEXEC [unittest arguments]
"""

import json
import os
import subprocess
import sys
import tempfile
import unittest

import workplace
from workplace import finish

PROGRAM, MPIEXEC = "", ""
USAGE, UNAVAILABLE, CONFIG = 64, 69, 78
UPDATE = ["update", "--initial", "synth:1", "--target", "synth:2", "--device", "host"]
SERVICE = {f"WEIGHTCAST_{end}": "10.0.0.1" for end in (
    "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP", "PORT_80_TCP_ADDR", "PORT_80_TCP_PORT",
    "PORT_80_TCP_PROTO")}


def start(command, **keywords):
    return workplace.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keywords)


def run(*command, **keywords):
    return workplace.run(command, **keywords)


def parent_of(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None


class Launching(workplace.Workplace):
    def one_block(self, text):
        self.assertEqual(text.count("weightcast: error:"), 1, text)
        return text

    def test_help_and_version_are_printed_once(self):
        for arguments in (["--version"], ["--help"], ["-h"], ["help"], ["update", "-h"], ["plan", "--help"]):
            alone, together = run(PROGRAM, *arguments), run(MPIEXEC, "-n", 2, PROGRAM, *arguments)
            self.assertEqual((alone.returncode, together.returncode), (0, 0), together.stderr)
            self.assertNotEqual(alone.stdout, "")
            self.assertEqual(together.stdout, alone.stdout)

    def test_a_program_beside_another_has_its_own_first_rank(self):
        beside = run(MPIEXEC, "-n", 2, "true", ":", "-n", 2, PROGRAM, "--version")
        self.assertEqual((beside.returncode, beside.stdout), (0, run(PROGRAM, "--version").stdout))
        beside = run(MPIEXEC, "-n", 1, "true", ":", "-n", 1, PROGRAM, "plan", "--model", "tiny")
        self.assertEqual((beside.returncode, beside.stderr), (0, ""))

    def test_one_rank_commands_are_refused_on_several(self):
        done = run(MPIEXEC, "-n", 2, PROGRAM, "synth", "--model", "tiny", "--output", self.path("two"))
        self.assertEqual(done.returncode, USAGE)
        self.assertIn("synth runs on one rank", self.one_block(done.stderr))
        self.assertFalse(os.path.exists(self.path("two")))

    def cores_of_ranks(self, *binding):
        """How many each of two ranks may use, once they are at work."""
        policy = os.environ.pop("OMPI_MCA_hwloc_base_binding_policy", None)
        bench = ["bench", "--model", "tiny", "--device", "host", "--repeat", 1000000, "--timeout", "5s"]
        job = start([MPIEXEC, *binding, "-n", 2, PROGRAM, *bench])
        if policy is not None:
            os.environ["OMPI_MCA_hwloc_base_binding_policy"] = policy
        try:
            for line in job.stdout:  # they are at work when the table has its head
                if "#wrong" in line:
                    break
            ranks = [int(name) for name in os.listdir("/proc") if name.isdigit() and parent_of(name) == job.pid]
            return [len(os.sched_getaffinity(rank)) for rank in ranks]
        finally:
            job.terminate()
            job.communicate()

    def test_a_rank_is_bound_to_one_core_by_who_asks_for_it_only(self):
        cores = len(os.sched_getaffinity(0))
        if cores == 1:
            self.skipTest("one core")
        self.assertEqual(self.cores_of_ranks(), [cores, cores])
        self.assertEqual(self.cores_of_ranks("--bind-to", "core"), [1, 1])
        self.assertEqual(self.cores_of_ranks("--map-by", "slot"), [1, 1])

    def test_what_a_rank_starts_runs(self):
        script = f"""
import os, subprocess, sys
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    for command in (["synth", "--model", "tiny", "--output", "model"], ["snapshot", "--checkpoint", "model", "--output", "model.h5"],
                    ["verify", "model", "model.h5"], ["inspect", "model"], ["plan", "--model", "tiny"], ["--version"]):
        done = subprocess.run([{PROGRAM!r}, *command], capture_output=True, text=True)
        print(command[0], done.returncode, len(done.stdout) > 0, done.stderr)
"""
        done = run(MPIEXEC, "-n", 2, sys.executable, "-c", script, cwd=self.folder)
        commands = ("synth", "snapshot", "verify", "inspect", "plan", "--version")
        self.assertEqual(done.stdout.split("\n")[:-1], [f"{command} 0 True " for command in commands])

    def astray(self, variables, *arguments):
        """What three ranks say and report that are started with these variables, with {} for their rank."""
        jobs = [start([PROGRAM, *UPDATE, "--model", "tiny", *arguments], env={k: v.format(i) for k, v in variables.items()})
                for i in range(3)]
        done = [finish(job) for job in jobs]
        self.assertEqual([one.returncode for one in done], [CONFIG] * 3)
        self.assertEqual([one.stdout for one in done], [""] * 3)
        self.assertEqual([one.stderr for one in done[1:]], [""] * 2)
        return self.one_block(done[0].stderr)

    def test_ranks_of_another_launcher_say_so_once(self):
        for variables in ({"PMI_RANK": "{}", "PMI_SIZE": "3"}, {"MV2_COMM_WORLD_RANK": "{}", "MV2_COMM_WORLD_SIZE": "3"}):
            report = self.path("report.json")
            block = self.astray(variables, "--json", report)
            self.assertIn("has started 3 ranks", block)
            self.assertIn("mpirun -n 3", block)
            with open(report, encoding="utf-8") as file:
                self.assertIn("has started 3 ranks", json.load(file)["error"]["message"])
        self.assertIn("srun --mpi=pmix", self.astray({"SLURM_PROCID": "{}", "SLURM_STEP_NUM_TASKS": "3"}))

    def test_one_rank_of_another_launcher_is_one_rank(self):
        for variables in ({"PMI_RANK": "0", "PMI_SIZE": "1"}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}, {}):
            done = run(PROGRAM, *UPDATE, "--model", "tiny", env=variables)
            self.assertEqual(done.returncode, CONFIG)
            self.assertIn("one rank alone", self.one_block(done.stderr))


class Variables(unittest.TestCase):
    def test_those_of_a_service_are_ignored(self):
        self.assertEqual(run(PROGRAM, "plan", "--model", "tiny", env=SERVICE).returncode, 0)
        self.assertEqual(run(MPIEXEC, "-n", 3, PROGRAM, *UPDATE, "--model", "tiny", env=SERVICE).returncode, 0)

    def test_misspelt_options_are_not(self):
        for variable, meant in (("WEIGHTCAST_TIMOUT", "WEIGHTCAST_TIMEOUT"), ("WEIGHTCAST_TRANSPRT", "WEIGHTCAST_TRANSPORT")):
            done = run(PROGRAM, "plan", "--model", "tiny", env={**SERVICE, variable: "1"})
            self.assertEqual(done.returncode, CONFIG)
            self.assertIn(f"did you mean {meant}?", done.stderr)

    def test_misspelt_commands_and_options(self):
        for arguments, meant in ((["udpate"], "update"), (["plan", "--modle", "tiny"], "--model"), (["help", "plam"], "plan")):
            done = run(PROGRAM, *arguments)
            self.assertEqual(done.returncode, USAGE)
            self.assertIn(f"did you mean {meant}?", done.stderr)


class ControlGroup:
    """A control group with a limit, for as long as a test; skipped where none can be made."""

    def __init__(self, test, limit):
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            groups = {name: path for line in file for _, names, path in [line.strip().split(":", 2)] for name in names.split(",")}
        if "memory" in groups:
            parent, setting = "/sys/fs/cgroup/memory" + groups["memory"], "memory.limit_in_bytes"
        else:
            parent, setting = "/sys/fs/cgroup", "memory.max"
        self.folder = f"{parent}/weightcast-test-{os.getpid()}-{limit}"
        try:
            os.mkdir(self.folder)
            test.addCleanup(self.remove)
            with open(f"{self.folder}/{setting}", "w", encoding="utf-8") as file:
                file.write(str(limit))
            with open(f"{self.folder}/cgroup.procs", encoding="utf-8"):
                pass
        except OSError as error:
            test.skipTest(f"no control group can be made here: {error}")

    def enter(self):
        with open(f"{self.folder}/cgroup.procs", "w", encoding="utf-8") as file:
            file.write(str(os.getpid()))

    def remove(self):
        for _ in range(100):  # its last process may be on its way out
            try:
                return os.rmdir(self.folder)
            except OSError:
                subprocess.run(["sleep", "0.05"], check=False)
        raise AssertionError(f"{self.folder} is still in use")


class Containers(unittest.TestCase):
    # Runs its arguments without the right to read other processes' memory, as seccomp profiles of containers have it:
    # process_vm_readv (310) and process_vm_writev (311) of x86-64 are EPERM.
    NO_PTRACE = """
import ctypes, os, struct, sys
rules = ((0x20, 0, 0, 0), (0x15, 1, 0, 310), (0x15, 0, 1, 311), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000))
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc, program = ctypes.CDLL(None), Program(len(rules), ctypes.addressof(code))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program), 0, 0):
    os._exit(77)
os.execv(sys.argv[1], sys.argv[1:])
"""

    def notes(self, *command, **keywords):
        done = run(*command, "update", "--preflight", "--device", "host", **keywords)
        if done.returncode in (1, 77):
            self.skipTest(f"not possible here: {done.stderr}")
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.split("notes\n")[1].splitlines() if "notes\n" in done.stdout else []

    def test_nothing_to_note(self):
        self.assertEqual(self.notes(MPIEXEC, "-n", 3, PROGRAM), [])

    @unittest.skipUnless(os.uname().machine == "x86_64", "the filter is of x86-64")
    def test_no_right_to_read_other_ranks(self):
        command = (MPIEXEC, "-n", 3, sys.executable, "-c", self.NO_PTRACE, PROGRAM)
        notes = self.notes(*command)
        self.assertEqual(len(notes), 1, notes)
        self.assertIn("set OMPI_MCA_btl_vader_single_copy_mechanism=none", notes[0])
        self.assertEqual(self.notes(*command, env={"OMPI_MCA_btl_vader_single_copy_mechanism": "none"}), [])

    def with_shm(self, size, prepare, env=None):
        script = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && {prepare} exec \"$@\""
        return self.notes("unshare", "-mpf", "--mount-proc", "bash", "-c", script, "bash", MPIEXEC, "-n", 3, PROGRAM, env=env)

    @unittest.skipUnless(os.geteuid() == 0, "needs namespaces")
    def test_shared_memory(self):
        other = "touch /dev/shm/vader_segment.other.0.1.{0,1,2,3} &&"
        self.assertEqual(self.with_shm("64m", ""), [])
        small, shared = self.with_shm("10m", ""), self.with_shm("64m", other)
        self.assertIn("/dev/shm has 10.5 MB for 3 ranks", small[0])
        self.assertIn("another job has files in /dev/shm", shared[0])
        self.assertEqual((len(small), len(shared)), (1, 1))
        self.assertIn("/dev/shm may not be written", self.with_shm("64m", "mount -o remount,ro /dev/shm &&")[0])
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(self.with_shm("10m", other, env={"OMPI_MCA_btl_vader_backing_directory": folder}), [])


class Leaving(unittest.TestCase):
    # Rank 1 removes the names of its shared memory when the other ranks, which hold the pipe's end, have gone.
    LAST = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int is_last, ending, pipe_end;
__attribute__((constructor)) static void meet(void) {
  const char* const rank = getenv("OMPI_COMM_WORLD_RANK");
  if (rank == NULL) return;
  is_last = strcmp(rank, "1") == 0;
  pipe_end = open(getenv("OTHERS"), (is_last ? O_RDWR : O_WRONLY) | O_CLOEXEC);
  if (!is_last) {
    (void)!write(pipe_end, "x", 1);
    return;
  }
  const int reader = open(getenv("OTHERS"), O_RDONLY | O_CLOEXEC);
  char there[2];
  for (int met = 0; met < 2;) met += read(reader, there, sizeof there);
  close(pipe_end);  // its end for writing: from now on only the others have one
  pipe_end = reader;
}
int MPI_Finalize(void) {
  ending = 1;
  return ((int (*)(void))dlsym(RTLD_NEXT, "PMPI_Finalize"))();
}
int unlink(const char* path) {
  char none;
  if (is_last && ending && strstr(path, "/vader_segment.") != NULL) (void)!read(pipe_end, &none, 1);
  return ((int (*)(const char*))dlsym(RTLD_NEXT, "unlink"))(path);
}
"""

    def test_a_rank_that_leaves_last_finds_its_own(self):
        with tempfile.TemporaryDirectory() as folder:
            library, others = (os.path.join(folder, name) for name in ("last.so", "others"))
            os.mkfifo(others)
            built = subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", library, "-ldl"], input=self.LAST, text=True, timeout=60,
                                   capture_output=True, check=False)
            self.assertEqual(built.returncode, 0, built.stderr)
            done = run(MPIEXEC, "-n", 3, "-x", f"LD_PRELOAD={library}", "-x", f"OTHERS={others}", PROGRAM, *UPDATE, "--model", "tiny")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertNotIn("shared memory initialization", done.stderr)


class Memory(unittest.TestCase):
    COMMAND = [*UPDATE, "--model", "smollm2-135m", "--tp", "3"]  # 2 x 269 MB on the trainer, 6 x 90 MB on the engines

    def update(self, limit, ranks, *arguments):
        group = ControlGroup(self, limit)
        return finish(start([MPIEXEC, "-n", ranks, PROGRAM, *arguments], preexec_fn=group.enter))

    def test_a_limit_that_is_too_low_is_said(self):
        for limit in (600_000_000, 150_000_000):
            with self.subTest(limit), tempfile.TemporaryDirectory() as folder:
                report = os.path.join(folder, "report.json")
                done = self.update(limit, 4, *self.COMMAND, "--json", report)
                self.assertEqual(done.returncode, CONFIG, done.stderr)
                self.assertIn(f"allows {limit // 1_000_000} MB", done.stderr)
                self.assertIn("--memory", done.stderr)
                with open(report, encoding="utf-8") as file:
                    self.assertIn("control group", json.load(file)["error"]["message"])

    def test_a_limit_that_is_not_is_no_limit(self):
        self.assertEqual(self.update(1_100_000_000, 4, *self.COMMAND).returncode, 0)

    def test_preflight_shows_the_limit(self):
        done = self.update(400_000_000, 2, "update", "--preflight", "--device", "host")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count(" of 400 MB"), 2, done.stdout)

    def test_a_limit_of_addresses_is_said(self):
        limit = "ulimit -v 1000000; exec \"$@\""
        done = run(MPIEXEC, "-n", 2, "bash", "-c", limit, "bash", PROGRAM, *UPDATE, "--model", "llama-3.2-1b", "--tp", "1")
        self.assertEqual(done.returncode, UNAVAILABLE, done.stderr)
        self.assertIn("ulimit -v", done.stderr)


if __name__ == "__main__":
    PROGRAM, MPIEXEC = sys.argv[1:3]
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
