#!/usr/bin/env python3
"""Plans for every family, executed: with the bytes of checkpoints that transformers has written, every engine tensor of every
rank has to be what engine_oracle.py says. The oracle itself must bring every element of a checkpoint to some rank, and
planted defects have to be found. tp 1 to 8, experts in groups, too. Exit code 77: this Python lacks a package.

usage: family_plans.py PLAN_TOOL [VARIANT ...]
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile

import family_models as models  # first: it says so when a package is missing

import engine_oracle

import numpy as np

RUNS = [(1, 1), (2, 1), (4, 1), (8, 1)]
GROUPED = [(2, 2), (4, 2), (4, 4), (8, 2), (8, 4), (8, 8)]


class Difference(Exception):
    """The plan says something else."""


def execute(said, slot_bytes, parameters):
    """A slot full of garbage, into which a rank's shards are written, and zeros where padding is said to be."""
    slot = bytearray(b"\xa5" * slot_bytes)
    for index, source, source_pitch, destination, pitch, size, rows in said["shards"]:
        for row in range(rows):
            at, begin = source + row * source_pitch, destination + row * pitch
            if at + size > len(parameters[index]) or begin + size > slot_bytes:
                raise Difference("a shard is out of bounds")
            slot[begin:begin + size] = parameters[index][at:at + size]
    for begin, size in said["padding"]:
        slot[begin:begin + size] = bytes(size)
    return slot


def compare(answer, arrays, config, tp, ep):
    if "refused" in answer:
        raise Difference(f"refused: {answer['message']}")
    if answer["violation"]:
        raise Difference(f"its own proof fails: {answer['violation']}")
    said = {name: list(shape) for name, shape in answer["parameters"]}
    wrong = sorted(name for name in said.keys() | arrays.keys() if said.get(name) != list(getattr(arrays.get(name), "shape", [None])))
    if wrong:
        raise Difference("other parameters: " + ", ".join(f"{name} {said.get(name)}, not {getattr(arrays.get(name), 'shape', None)}"
                                                         for name in wrong[:6]))
    parameters = [arrays[name].tobytes() for name, _ in answer["parameters"]]
    for rank, plan in enumerate(answer["ranks"]):
        slot = execute(plan, answer["slot_bytes"], parameters)
        expected = engine_oracle.engine_tensors(config, arrays, tp, ep, rank)
        names = {name for name, _, _ in answer["engine_tensors"]}
        if names != expected.keys():
            raise Difference(f"rank {rank}: other engine tensors: {sorted(names ^ expected.keys())[:8]}")
        for name, begin, size in answer["engine_tensors"]:
            if slot[begin:begin + size] != expected[name].tobytes():
                raise Difference(f"rank {rank}: {name} has other bytes ({size} of them, {expected[name].nbytes} expected)")


def check_oracle(config, arrays, tp, ep):
    """Each element, numbered, is held by some rank; what is held and is no padding, by no more than tp ranks."""
    numbered, first = {}, 1
    for name, array in arrays.items():
        numbered[name] = np.arange(first, first + array.size).reshape(array.shape)
        first += array.size
    times = np.zeros(first, int)
    for rank in range(tp):
        for name, held in engine_oracle.engine_tensors(config, numbered, tp, ep, rank).items():
            assert held.dtype == numbered[next(iter(arrays))].dtype, name
            np.add.at(times, held.ravel(), 1)
    assert times[1:].min() >= 1 and times[1:].max() <= tp


def plant(answer, choose):
    """One shard comes from, or goes to, the neighbouring elements, or is lost."""
    answer = json.loads(json.dumps(answer))
    shards = choose.choice(answer["ranks"])["shards"]
    index = choose.randrange(len(shards))
    place = choose.choice((1, 3, None))
    if place is None:
        del shards[index]
    else:
        shards[index][place] += 4
    return answer


def check(tool, variant, form):
    with tempfile.TemporaryDirectory() as folder:
        config = models.make_checkpoint(variant, 1, form, pathlib.Path(folder))
        arrays = {name: models.bits(tensor) for name, tensor in models.text_tensors(pathlib.Path(folder), models.torch.bfloat16).items()}
        whole = json.loads((pathlib.Path(folder) / "config.json").read_text())
    runs = RUNS + GROUPED * (variant in models.EXPERTS)
    for tp, ep in runs:
        check_oracle(config, arrays, tp, ep)
        request = {"config": whole, "layout": "whole", "trainers": 1, "tp": tp, "dp": 1} | ({"ep": ep} if ep > 1 else {})
        tool.stdin.write(json.dumps(request) + "\n")
        tool.stdin.flush()
        answer = json.loads(tool.stdout.readline())
        try:
            compare(answer, arrays, config, tp, ep)
        except Difference as difference:
            raise Difference(f"tp {tp}, ep {ep}: {difference}") from None
        try:
            compare(plant(answer, random.Random(f"{variant} {tp} {ep}")), arrays, config, tp, ep)
        except Difference:
            continue
        raise Difference("a planted defect is not found")
    return len(arrays), len(runs)


def main():
    failed = 0
    with subprocess.Popen([sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tool:
        for variant in sys.argv[2:] or models.VARIANTS:
            for form in models.forms(variant):
                label = f"{variant}, {form}"
                try:
                    print("%s: %d parameters, %d plans fill every slot as expected" % (label, *check(tool, variant, form)), flush=True)
                except Difference as difference:
                    failed += 1
                    print(f"{label}: DIFFERENT: {difference}", flush=True)
        tool.stdin.close()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
