#!/usr/bin/env python3
"""The batch scripts of jobs/ under a real Slurm: two virtual nodes of tools/slurm_sandbox.sh.

usage: slurm_jobs.py PROGRAM [Jobs|Endings|BadInput|unittest arguments]
Exit status 77: there is no Slurm here, or no right to make namespaces; the reason is printed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
SANDBOX = os.path.join(ROOT, "tools", "slurm_sandbox.sh")
CHECK_REPORT = os.path.join(HERE, "..", "interop", "check_report.py")
PROGRAM = ""
USAGE, NO_INPUT, CONFIG, DEADLINE, SKIPPED = 64, 66, 78, 124, 77
# What a site's MPI would be told: the network between the virtual nodes is the loopback device.
NETWORK = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,vader,tcp", "OMPI_MCA_btl_tcp_if_include": "lo",
           "OMPI_MCA_oob_tcp_if_include": "lo", "OMPI_MCA_mpi_yield_when_idle": "1"}
ENDLESS = "--model tiny --repeat 1000000 --granularity parameter --timeout 15s"


def processes_with(text):
    """Ids of processes whose command line or environment has `text`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for part in ("cmdline", "environ"):
            try:
                with open(f"/proc/{pid}/{part}", "rb") as file:
                    if text.encode() in file.read() and int(pid) != os.getpid():
                        found.append(int(pid))
                        break
            except OSError:
                pass
    return found


class Sandbox(unittest.TestCase):
    """A Slurm for all tests of a class; nothing of it is left afterwards."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="weightcast-slurm-")
        cls.state = os.path.join(cls.folder, "state")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("WEIGHTCAST_", "OMPI_", "PMIX_", "SLURM_", "SBATCH_"))}
        cls.environment = {**clean, **NETWORK, "PROGRAM": PROGRAM, "JOBS": os.path.join(ROOT, "jobs"), "CUDA_VISIBLE_DEVICES": ""}
        up = subprocess.run(["bash", SANDBOX, "up", "--nodes", "2", "--dir", cls.state], env=cls.environment, text=True,
                            timeout=60, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if up.returncode != 0:
            shutil.rmtree(cls.folder)
            print(up.stderr)
            if up.returncode == 69:
                print("skipped:", up.stderr.strip().splitlines()[-1], flush=True)
                os._exit(SKIPPED)
            raise RuntimeError("the sandbox did not start")
        cls.submitted = {}
        cls.environment["SLURM_CONF"] = re.fullmatch(r"export SLURM_CONF=(.*)\n", up.stdout).group(1)

    @classmethod
    def tearDownClass(cls):
        down = subprocess.run(["bash", SANDBOX, "down", "--dir", cls.state], text=True, timeout=60, capture_output=True, check=False)
        left = processes_with(cls.state)
        exists = os.path.exists(cls.state)
        shutil.rmtree(cls.folder)
        assert down.returncode == 0, down.stderr
        assert not left and not exists, f"left: processes {left}, folder {exists}"

    def slurm(self, *command):
        done = subprocess.run(command, env=self.environment, cwd=self.folder, text=True, timeout=30, stdin=subprocess.DEVNULL,
                              capture_output=True, check=False)
        self.assertEqual(done.returncode, 0, f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def submit(self, script, *options, **variables):
        """The id of a new job; `variables` are those at the top of the script."""
        given = {**self.environment, **{k: str(v) for k, v in variables.items()}}
        path = os.path.join(ROOT, "jobs", script + ".sbatch")
        done = subprocess.run(["sbatch", "--parsable", *options, path], env=given, cwd=self.folder, text=True, timeout=30,
                              stdin=subprocess.DEVNULL, capture_output=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        job = done.stdout.strip()
        self.submitted[job] = (script, options, variables)
        return job

    def wait(self, job, seconds=120):
        """(state, exit code) of a job that has ended and left no process."""
        until = time.monotonic() + seconds
        while self.slurm("squeue", "-h", "-o", "%i", "--states=PD,CF,R,CG", "-j", job).strip():
            self.assertLess(time.monotonic(), until, f"job {job} does not end: {self.text(job)}")
            time.sleep(0.2)
        until = time.monotonic() + 5
        while left := [pid for pid in processes_with(f"SLURM_JOB_ID={job}\0") if pid in processes_with(self.state)]:
            self.assertLess(time.monotonic(), until, f"job {job} has left processes {left}")
            time.sleep(0.2)
        shown = self.slurm("scontrol", "show", "job", job)
        return re.search(r"JobState=(\w+)", shown).group(1), int(re.search(r"ExitCode=(\d+)", shown).group(1))

    def find(self, job, kind):
        return next(name for name in os.listdir(self.folder) if name.endswith(f"-{job}{kind}"))

    def text(self, job, lines=200):
        """The last lines that the job has printed."""
        try:
            with open(os.path.join(self.folder, self.find(job, ".out")), encoding="utf-8") as file:
                return "".join(file.readlines()[-lines:])
        except (OSError, StopIteration):
            return ""

    def output(self, job, name="report.json"):
        """A JSON file that the job wrote; a report is checked against the schema."""
        path = os.path.join(self.folder, self.find(job, ""), name)
        self.assertTrue(os.path.exists(path), f"no {name}: {self.text(job)}")
        if name != "run.json":
            checked = subprocess.run([sys.executable, CHECK_REPORT, path], text=True, capture_output=True, check=False)
            self.assertEqual(checked.returncode, 0, checked.stderr)
        with open(path, encoding="utf-8") as file:
            return json.load(file)


class Jobs(Sandbox):
    """Every script, on one node and on two, with mpirun and with srun: COMPLETED, and the reports verified."""

    def completed(self, job):
        """The id of a job when it has ended well. Three of 300 starts of Open MPI 4.1.4 under srun on a busy machine crashed in
        MPI_Init, in btl_tcp (none of 450 with PMIX_MCA_gds=hash, which job.sh sets): such a job gets a second chance."""
        if self.wait(job) != ("COMPLETED", 0) and "failed during shared memory initialization" in self.text(job, 10000):
            script, options, variables = self.submitted[job]
            job = self.submit(script, *options, **variables)
        self.assertEqual(self.wait(job), ("COMPLETED", 0), self.text(job))
        return job

    def check_run(self, job, launcher, nodes):
        run = self.output(job, "run.json")
        self.assertEqual((run["job"], run["launcher"], len(run["nodes"]), run["exit_code"], run["stopped_by"]), (job, launcher, nodes, 0, None))
        self.assertIn("update --preflight", run["commands"][0])
        self.assertLessEqual(run["started"], run["ended"])

    def check_update(self, report, transport):
        self.assertTrue(report["ok"])
        self.assertEqual(report["transport"], transport)
        self.assertEqual((report["verify"]["mode"], report["verify"]["parameters"], report["verify"]["mismatched"]), ("all", 30, 0))
        self.assertEqual({u["result"] for u in report["updates"]}, {"committed"})

    def test_the_cores_of_a_task_reach_its_ranks(self):
        # The virtual nodes do not bind ranks to cores, so this sees what srun is told and not what it does.
        program = os.path.join(self.folder, "program")
        with open(program, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\necho "$SRUN_CPUS_PER_TASK" >>"{self.folder}/cores"\nexec "{PROGRAM}" "$@"\n')
        os.chmod(program, 0o755)
        self.completed(self.submit("update", "--nodes=1", "--ntasks-per-node=3", "--cpus-per-task=2", LAUNCHER="srun", PROGRAM=program,
                                   OPTIONS="--model tiny"))
        with open(os.path.join(self.folder, "cores"), encoding="utf-8") as file:
            self.assertEqual(set(file.read().split("\n")[:-1]), {"2"})

    def test_all(self):
        ways = [(launcher, nodes) for nodes in (1, 2) for launcher in ("mpirun", "srun")]
        # Two replicas of tp 2: on two nodes of three tasks each, one stays beside the trainer.
        tasks = {1: ["--nodes=1", "--ntasks-per-node=5"], 2: ["--nodes=2", "--ntasks-per-node=3"]}
        jobs = [(*way, [self.submit(script, *tasks[way[1]], LAUNCHER=way[0], TP=2, DP=2, MODEL="tiny", OPTIONS=options)
                        for script, options in (("update", "--model tiny --repeat 3"), ("bench", "--repeat 3 --warmup 1"), ("test", ""))])
                for way in ways]
        for launcher, nodes, (update, bench, test) in jobs:
            with self.subTest(launcher=launcher, nodes=nodes):
                # Between two hosts `auto` is mpi, because direct refuses.
                transport = "direct" if nodes == 1 else "mpi"
                update, bench, test = (self.completed(job) for job in (update, bench, test))
                for job in (update, bench, test):
                    self.check_run(job, launcher, nodes)
                report = self.output(update)
                self.check_update(report, transport)
                hosts = self.output(update, "run.json")["nodes"]
                self.assertEqual([r["host"] for r in report["ranks"]], hosts * 5 if nodes == 1 else ["n1", "n1", "n1", "n2", "n2"])
                rows = self.output(bench)["rows"]
                self.assertEqual([(r["transport"], r["wrong"]) for r in rows], [(transport, 0)])
                self.assertIn("job: all passed", self.text(test))
                names = [n for n in os.listdir(os.path.join(self.folder, self.find(test, ""))) if n.endswith(".json") and n != "run.json"]
                self.assertEqual(len(names), 9 if nodes == 1 else 6, names)
                for name in names:
                    self.check_update(self.output(test, name), name.split("-")[0])

    def test_several_trainer_ranks(self):
        tasks = {1: ["--nodes=1", "--ntasks-per-node=4"], 2: ["--nodes=2", "--ntasks-per-node=2"]}
        jobs = [(launcher, nodes, [self.submit(script, *tasks[nodes], LAUNCHER=launcher, TRAINERS=2, TP=2, DP=1, MODEL="tiny", OPTIONS=options)
                                   for script, options in (("update", "--model tiny --repeat 3 --source-layout tp"), ("bench", "--repeat 3"))])
                for launcher, nodes in (("mpirun", 1), ("srun", 2))]
        jobs[0][2].append(self.submit("test", *tasks[1], TRAINERS=2, TP=2, DP=1))
        for launcher, nodes, ids in jobs:
            with self.subTest(launcher=launcher, nodes=nodes):
                ids = [self.completed(job) for job in ids]
                report = self.output(ids[0])
                self.check_update(report, "direct" if nodes == 1 else "mpi")
                self.assertEqual((report["world"]["trainers"], report["source_layout"]), (2, "tp"))
                self.assertEqual([r["role"] for r in report["ranks"]], ["trainer"] * 2 + ["engine"] * 2)
                self.assertEqual([r["host"] for r in report["ranks"]], ["n1"] * 4 if nodes == 1 else ["n1", "n1", "n2", "n2"])
                self.assertEqual([(r["source_layout"], r["wrong"]) for r in self.output(ids[1])["rows"]], [("fsdp", 0)])
                for test in ids[2:]:
                    self.assertIn("job: all passed", self.text(test))
                    names = [n for n in os.listdir(os.path.join(self.folder, self.find(test, ""))) if n.endswith(("-fsdp.json", "-whole.json"))]
                    self.assertEqual(len(names), 18, names)


class Endings(Sandbox):
    """Jobs that are ended: the report says why, and nobody is left."""

    def begin(self, launcher, nodes, *options):
        """A job that updates for ever; on two nodes the trainer and one engine rank share the first, without a warning signal."""
        return self.submit("update", f"--nodes={nodes}", f"--ntasks-per-node={4 - nodes}", "--signal=B:CONT@1", *options,
                           LAUNCHER=launcher, TP=2, OPTIONS=ENDLESS)

    def until_it_updates(self, job):
        until = time.monotonic() + 60
        while not re.search(r"(?m)^ +[3-9]\d* +\d+ +committed", self.text(job)):
            self.assertLess(time.monotonic(), until, self.text(job))
            time.sleep(0.2)

    def check_stopped(self, job, state, name):
        self.assertEqual(self.wait(job, 60), (state, DEADLINE), self.text(job))
        run = self.output(job, "run.json")
        self.assertEqual((run["exit_code"], run["stopped_by"]), (DEADLINE, name))
        report = self.output(job)
        self.assertEqual((report["ok"], report["exit_code"]), (False, DEADLINE))
        self.assertRegex(report["error"]["message"], rf"stopped by {'SIGUSR1' if name == 'SIGUSR1' else 'SIG(USR1|TERM)'} after {len(report['updates'])} updates")
        self.assertEqual({u["result"] for u in report["updates"]}, {"committed"})

    def test_signals(self):
        """SIGUSR1 to the script; a plain scancel; the time limit (its end is moved, because limits are minutes)."""
        limited = {way: self.begin(*way, "--time=1") for way in (("mpirun", 1), ("srun", 2))}
        for job in limited.values():
            self.until_it_updates(job)
            self.slurm("scontrol", "update", f"JobId={job}", "EndTime=now+1")  # Slurm looks every 30 s
        for state, name, command in (("FAILED", "SIGUSR1", ("scancel", "--batch", "--signal=USR1")), ("CANCELLED", "SIGTERM", ("scancel",))):
            jobs = {(launcher, nodes): self.begin(launcher, nodes) for nodes in (1, 2) for launcher in ("mpirun", "srun")}
            for job in jobs.values():
                self.until_it_updates(job)
                self.slurm(*command, job)
            for way, job in jobs.items():
                with self.subTest(state=state, launcher=way[0], nodes=way[1]):
                    if (*way, name) == ("mpirun", 2, "SIGTERM"):
                        # Slurm ends mpirun's daemon on the second node at the same time as the ranks: there may be no report.
                        self.assertEqual(self.wait(job, 30)[0], state)
                        self.assertEqual(self.output(job, "run.json")["stopped_by"], name)
                    else:
                        self.check_stopped(job, state, name)
        for way, job in limited.items():
            with self.subTest(state="TIMEOUT", launcher=way[0], nodes=way[1]):
                self.check_stopped(job, "TIMEOUT", "SIGTERM")

    def test_the_warning_before_the_time_limit(self):
        job = self.submit("update", "--nodes=2", "--ntasks-per-node=1", "--time=1", "--signal=B:USR1@55", LAUNCHER="mpirun", OPTIONS=ENDLESS)
        self.check_stopped(job, "FAILED", "SIGUSR1")

    def test_a_killed_rank(self):
        for launcher in ("mpirun", "srun"):
            with self.subTest(launcher=launcher):
                job = self.begin(launcher, 2)
                self.until_it_updates(job)
                ranks = [pid for pid in processes_with(f"SLURM_JOB_ID={job}\0") if os.path.basename(os.readlink(f"/proc/{pid}/exe")) == os.path.basename(PROGRAM)]
                self.assertEqual(len(ranks), 3)
                os.kill(ranks[-1], signal.SIGKILL)
                state, code = self.wait(job, 60)
                self.assertEqual(state, "FAILED", self.text(job))
                run = self.output(job, "run.json")
                self.assertEqual((run["exit_code"], run["stopped_by"]), (code, None))
                self.assertNotEqual(code, 0)

    def test_a_killed_step(self):
        job = self.begin("srun", 2)
        self.until_it_updates(job)
        self.slurm("scancel", "--signal=KILL", f"{job}.1")  # step 0 was the preflight
        state, code = self.wait(job, 60)
        self.assertEqual(state, "FAILED", self.text(job))
        self.assertEqual(self.output(job, "run.json")["exit_code"], code)


class BadInput(Sandbox):
    """Jobs that cannot work end at once, and say why."""

    def refused(self, status, fragment, *options, script="update", **variables):
        options = options or ("--nodes=1", "--ntasks-per-node=3")
        variables = {"OPTIONS": "--model tiny", **variables}
        job = self.submit(script, *options, **variables)
        self.assertEqual(self.wait(job, 20), ("FAILED", status), self.text(job))
        self.assertIn(fragment, self.text(job))
        self.assertNotIn("committed", self.text(job))
        run = self.output(job, "run.json")
        self.assertEqual(run["exit_code"], status)
        return run

    def test_wrong_task_counts(self):
        self.refused(CONFIG, "the job has 3 tasks on 1 nodes", TP=4)
        self.refused(CONFIG, "the job has 1 tasks on 1 nodes", "--nodes=1", "--ntasks-per-node=1")
        self.refused(CONFIG, "3 engine ranks are not 2 x tp", "--nodes=2", "--ntasks-per-node=2", DP=2)
        self.refused(CONFIG, "3 for trainer ranks leave none for engines", TRAINERS=3)
        self.refused(CONFIG, "2 trainer + 1 x tp 2 engine ranks are 4", TRAINERS=2, TP=2)
        self.refused(CONFIG, "no node with room for replica 2 of tp 3", "--nodes=2", "--ntasks-per-node=5", TP=3, DP=3)

    def test_missing_things(self):
        self.refused(CONFIG, "job: error: ", MODULES="nosuch/1.0")  # no such module, or no module command at all
        self.refused(CONFIG, "cannot load the module nosuch/1.0", MODULES="nosuch/1.0", **{"BASH_FUNC_module%%": "() { false; }"})
        self.refused(NO_INPUT, "there is no program /no/such", PROGRAM="/no/such/weightcast")
        self.refused(NO_INPUT, "cannot open /no/such/model", TARGET="/no/such/model")
        self.refused(USAGE, "LAUNCHER is mpirun or srun, not", LAUNCHER="sh")

    def test_a_transport_that_cannot_serve_these_nodes(self):
        for launcher in ("mpirun", "srun"):
            run = self.refused(CONFIG, "direct: rank 0: the ranks are on several hosts", "--nodes=2", "--ntasks-per-node=2",
                               LAUNCHER=launcher, TP=2, OPTIONS="--model tiny --transport direct")
            self.assertEqual(len(run["commands"]), 1, "the preflight should have ended it")

    def test_the_sandbox_is_up_already(self):
        again = self.slurm("bash", SANDBOX, "up", "--nodes", "2", "--dir", self.state)
        self.assertEqual(again, f"export SLURM_CONF={self.environment['SLURM_CONF']}\n")
        other = os.path.join(self.folder, "other")
        names = self.slurm("bash", SANDBOX, "run", "--nodes", "3", "--dir", other, "--", "sinfo", "-h", "-N", "-o", "%N")
        self.assertEqual(names.split(), ["n1", "n2", "n3"])
        self.assertEqual((os.path.exists(other), processes_with(other)), (False, []))

    def test_outside_of_a_job(self):
        done = subprocess.run(["bash", os.path.join(ROOT, "jobs", "update.sbatch")], env=self.environment, cwd=self.folder, text=True,
                              timeout=30, capture_output=True, check=False)
        self.assertEqual(done.returncode, USAGE)
        self.assertIn("start it with sbatch", done.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    PROGRAM = os.path.abspath(sys.argv.pop(1))
    unittest.main()
