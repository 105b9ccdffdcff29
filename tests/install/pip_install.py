#!/usr/bin/env python3
"""`pip install` of tools/python into a fresh venv, used from elsewhere: with the library named, beside the module, and
not there. Exit code 77: this Python makes no venv, or setuptools is neither on PyPI nor here.

usage: pip_install.py LIBRARY MPIEXEC
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

SOURCE = pathlib.Path(__file__).resolve().parents[2] / "tools/python"
LIBRARY, MPIEXEC = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
UPDATE = """
import weightcast
from mpi4py import MPI
import numpy, sys
if MPI.COMM_WORLD.rank == 0:
    with weightcast.Trainer("tiny", timeout_s=20) as trainer:
        shapes = MPI.COMM_WORLD.recv()
        trainer.publish(1, {name: numpy.full(shape, 2, numpy.float32) for name, shape in shapes.items()})
else:
    with weightcast.Engine("tiny", timeout_s=20) as engine:
        layers = {f"model.layers.{layer}.{name}.weight": shape for layer in range(3) for name, shape in {
            "input_layernorm": (64,), "post_attention_layernorm": (64,), "self_attn.q_proj": (64, 64),
            "self_attn.k_proj": (16, 64), "self_attn.v_proj": (16, 64), "self_attn.o_proj": (64, 64),
            "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96)}.items()}
        MPI.COMM_WORLD.send(layers | {"model.embed_tokens.weight": (200, 64), "lm_head.weight": (200, 64),
                                      "model.norm.weight": (64,)}, 0)
        assert engine.receive().version == 1
        with engine.serving() as weights:
            assert (weights["model.norm.weight"].numpy() == 0x4000).all()
        print("received")
"""


def run(*command, **environment):
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "WEIGHTCAST_LIBRARY")}
    done = subprocess.run([str(part) for part in command], text=True, timeout=100, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder, env=env | environment)
    return done.returncode, done.stdout


def expect(text, *command, **environment):
    status, output = run(*command, **environment)
    assert status == 0 and text in output, f"{command}: exit status {status}\n{output}"


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


with tempfile.TemporaryDirectory(prefix="weightcast-pip-") as folder:
    venv, source = pathlib.Path(folder) / "venv", pathlib.Path(folder) / "source"
    # mpi4py is the distribution's, for its MPI.
    status, output = run("/usr/bin/python3", "-m", "venv", "--system-site-packages", venv)
    if status != 0:
        skip(f"no venv (Debian: python3-venv)\n{output}")
    python = venv / "bin/python"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))  # a build leaves files behind
    options = ["--no-deps"]
    if run(python, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "setuptools>=61")[0] != 0:
        if run(python, "-c", "import setuptools, wheel")[0] != 0:
            skip("no PyPI, and no setuptools and wheel here (Debian: python3-setuptools, python3-wheel)")
        options += ["--no-build-isolation", "--no-index"]
    expect("Successfully installed weightcast-", python, "-m", "pip", "install", *options, source)
    print(f"installed with {' '.join(options)}")

    # Nowhere: what to do about it.
    load = "import weightcast\ntry: print(weightcast._library().wc_version().decode(), weightcast.__file__)\n" \
           "except weightcast.WeightcastError as error: print(error.code.name, error)"
    expect("NO_INPUT libweightcast.so is not there", python, "-c", load)
    expect("name it in WEIGHTCAST_LIBRARY", python, "-c", load)
    expect("/no/such/file", python, "-c", load, WEIGHTCAST_LIBRARY="/no/such/file")
    broken = pathlib.Path(folder) / "broken.so"
    broken.write_bytes(b"not a library")
    expect("UNAVAILABLE", python, "-c", load, WEIGHTCAST_LIBRARY=str(broken))
    # Named; and the module is of the library's version.
    _, output = run(python, "-c", "import importlib.metadata as m; print(m.version('weightcast'))")
    expect(f"{output.strip()} {venv}", python, "-c", load, WEIGHTCAST_LIBRARY=str(LIBRARY))
    # Beside the module.
    _, output = run(python, "-c", "import weightcast; print(weightcast.__file__)")
    shutil.copy(LIBRARY, pathlib.Path(output.strip()).parent / "libweightcast.so.1")
    expect(str(venv), python, "-c", load)
    if run(python, "-c", "import mpi4py, numpy")[0] != 0:
        print("mpi4py or numpy is not there (Debian: python3-mpi4py, python3-numpy): no update")
    else:
        expect("received", MPIEXEC, "--oversubscribe", "-n", "2", python, "-m", "mpi4py", "-c", UPDATE)
print("pip install: as expected")
