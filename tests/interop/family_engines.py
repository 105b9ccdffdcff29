#!/usr/bin/env python3
"""Engine tensors of every family, byte by byte: rank 0 publishes a checkpoint that transformers has written, and every engine
rank holds what engine_oracle.py says of it, padding included. First and second version; tp 1, 2 and 4, and
ranks that own experts.
Exit code 77: a package is not there.

usage: mpiexec -n 5 python3 family_engines.py [VARIANT ...]
"""

import pathlib
import sys
import tempfile
import traceback

import family_models as models  # first: it says so when a package is missing

import engine_oracle

try:
    from mpi4py import MPI
except ImportError as error:
    print(f"skipped: {error} (WEIGHTCAST_TORCH_PYTHON in tests/README.md names a Python that has it)")
    sys.exit(77)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools/python"))
import weightcast  # noqa: E402

COMM = MPI.COMM_WORLD
TRAINER = COMM.rank == 0


def compare(at, served, expected):
    """Lists what differs."""
    problems = [f"no {name}" for name in expected.keys() - served.keys()]
    problems += [f"{name} is unexpected" for name in served.keys() - expected.keys()]
    for name in expected.keys() & served.keys():
        held, wanted = served[name].numpy(), expected[name]
        if held.shape != wanted.shape:
            problems.append(f"{name} has {held.shape}, expected {wanted.shape}")
        elif held.view(wanted.dtype).tobytes() != wanted.tobytes():
            problems.append(f"{name} has other bytes")
    return [f"{at}: {problem}" for problem in sorted(problems)]


def exchange(folder, config, tp, ep):
    """Two versions, to the ranks that take part; returns what is wrong on any of them."""
    group = COMM.Split(0 if COMM.rank <= tp else MPI.UNDEFINED, COMM.rank)
    if group == MPI.COMM_NULL:
        return []
    problems, at = [], f"tp {tp}, ep {ep}, " + ("trainer" if TRAINER else f"rank {group.rank - 1}")
    options = {"comm": group, "timeout_s": 30} | {"expert_parallel": ep > 1}
    try:
        with (weightcast.Trainer if TRAINER else weightcast.Engine)(folder / "1" / "config.json", **options) as end:
            for version in (1, 2):
                tensors = models.text_tensors(folder / str(version), models.torch.bfloat16)
                if TRAINER:
                    published = models.read_tensors(folder / str(version))
                    end.publish(version, {text: tensor for name, tensor in published.items() if (text := models.text_name(name))})
                elif end.receive():  # else the trainer says why there is none
                    arrays = {name: models.bits(tensor) for name, tensor in tensors.items()}
                    expected = engine_oracle.engine_tensors(config, arrays, tp, ep, group.rank - 1)
                    with end.serving() as served:
                        problems += compare(f"{at}, version {version}", served, expected)
    except weightcast.WeightcastError as error:
        problems.append(f"{at}: {' '.join(error.message.splitlines()[:3])}")
    gathered = group.gather(problems)
    group.Free()
    return sum(gathered, []) if TRAINER else []


def check(variant, form):
    with tempfile.TemporaryDirectory() as mine:
        folder = pathlib.Path(COMM.bcast(mine))
        config = None
        if TRAINER:
            for version in (1, 2):
                config = models.make_checkpoint(variant, version, form, folder / str(version))
        config = COMM.bcast(config)
        problems, runs = [], [(1, 1), (2, 1), (4, 1)] + [(2, 2), (4, 4)] * (variant in models.EXPERTS)
        for tp, ep in runs:
            problems += exchange(folder, config, tp, ep)
        COMM.barrier()
    if TRAINER:
        print(f"{variant}, {form}: "
              + (f"{len(problems)} DIFFERENCES" if problems else "every byte where it belongs at (tp, ep) "
                 + " ".join(f"({tp}, {ep})" for tp, ep in runs)), flush=True)
        print("".join(f"  {problem}\n" for problem in problems[:12]), end="", flush=True)
    return len(problems)


def main():
    failed = 0
    for variant in sys.argv[1:] or models.VARIANTS:
        for form in models.forms(variant):
            try:
                failed += check(variant, form)
            except BaseException:  # the other ranks wait for this one
                traceback.print_exc()
                COMM.Abort(1)
    sys.exit(1 if COMM.bcast(failed) else 0)


if __name__ == "__main__":
    main()
