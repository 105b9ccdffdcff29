#!/usr/bin/env python3
"""A rank that is stopped (SIGSTOP) at a random moment, from its start to its end: the job is over soon after the timeout,
a report names the rank, and nothing is left.

usage: cli_stopped.py PROGRAM MPIEXEC
WEIGHTCAST_STOP_SEEDS (1 by default): how many moments to try on each rank of three shapes.
WEIGHTCAST_STOP_LATE (10 by default, seconds): how late is too late; mpirun itself needs 1 to 2 s on a machine that is not busy.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

TIMEOUT_S, MPIRUN_S = 3, float(os.environ.get("WEIGHTCAST_STOP_LATE", "10"))
SHAPES = ((3, ["--tp", "2"]), (3, ["--dp", "2"]), (2, []))
TRANSPORTS = ("mpi", "direct")


def environment(**extra):
    # A rank that is stopped while it holds the lock of PMIx's shared memory keeps mpirun itself waiting: see engine/serving.md.
    return {**{name: value for name, value in os.environ.items() if not name.startswith("WEIGHTCAST_")}, "PMIX_MCA_gds": "hash", **extra}


def ranks_of(folder):
    """{rank: pid} of the processes that write to `folder`."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            variables = open(f"/proc/{pid}/environ", "rb").read().split(b"\0")
            name = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            continue
        if f"STOP_TEST={folder}".encode() not in variables or os.path.basename(name) != "weightcast":
            continue
        for variable in variables:
            if variable.startswith(b"OMPI_COMM_WORLD_RANK="):
                found[int(variable.split(b"=")[1])] = int(pid)
    return found


def shared_memory():
    return {name for name in os.listdir("/dev/shm") if "vader" in name or "osc" in name or "weightcast" in name}


def try_once(program, mpiexec, seed, target, folder):
    """What was wrong, and a line that says how it went."""
    dice = random.Random(1000 * seed + target)
    ranks, shape = SHAPES[seed % len(SHAPES)]
    target %= ranks
    transport = dice.choice(TRANSPORTS)
    report = os.path.join(folder, f"report-{seed}-{target}.json")
    job = subprocess.Popen([mpiexec, "-n", str(ranks), os.path.abspath(program), "update", "--model=tiny", "--initial=synth:1", "--target=synth:2",
                            f"--timeout={TIMEOUT_S}s", "--repeat=100000", "--transport", transport, *shape, "--json", report],
                           env=environment(STOP_TEST=folder, CUDA_VISIBLE_DEVICES=""), stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 20
        while target not in (found := ranks_of(folder)) and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(dice.choice((0.03, 0.3, 1.5)) * dice.random())  # starting, loading or updating
        try:
            os.kill(found[target], signal.SIGSTOP)
        except ProcessLookupError:
            raise RuntimeError("the job has ended too early: " + "".join(job.communicate())[-3000:]) from None
        stopped = time.monotonic()
        output, errors = job.communicate(timeout=60)
        seconds = time.monotonic() - stopped
    finally:
        left = ranks_of(folder)
        for pid in left.values():
            os.kill(pid, signal.SIGKILL)
    error = None
    if os.path.exists(report):
        with open(report, encoding="utf-8") as file:
            error = json.load(file)["error"]
    wrong = []
    if job.returncode == 0:
        wrong.append("it ended well")
    if seconds > TIMEOUT_S + MPIRUN_S:
        wrong.append("too late")
    if error is None:
        wrong.append("no report")
    elif error["rank"] != target:
        wrong.append("another rank is named")
    if left:
        wrong.append(f"left running: {left}")
    line = (f"seed {seed} rank {target} of {ranks} {transport}: exit {job.returncode} after {seconds:.2f} s, "
            f"report {error and (error['code'], error['stage'], error['rank'])}")
    return wrong, line, output + errors


def main(program, mpiexec):
    seeds = int(os.environ.get("WEIGHTCAST_STOP_SEEDS", "1"))
    before, failed, longest = shared_memory(), 0, 0.0
    with tempfile.TemporaryDirectory(prefix="weightcast-stopped-") as folder:
        for seed in range(seeds * len(SHAPES)):
            for target in range(SHAPES[seed % len(SHAPES)][0]):
                wrong, line, text = try_once(program, mpiexec, seed, target, folder)
                longest = max(longest, float(line.split(" after ")[1].split()[0]))
                print(line, "WRONG: " + ", ".join(wrong) if wrong else "", flush=True)
                if wrong:
                    failed += 1
                    print(text[-3000:])
        left = sorted(shared_memory() - before)
        temporary = [name for name in os.listdir(folder) if ".tmp" in name]
        print(f"{failed} wrong; the longest took {longest:.2f} s of {TIMEOUT_S + MPIRUN_S}; left in /dev/shm: {left}; temporary files: {temporary}")
    return 1 if failed or left or temporary else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(os.path.abspath(sys.argv[1]), sys.argv[2]))
