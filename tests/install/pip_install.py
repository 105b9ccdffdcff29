#!/usr/bin/env python3
"""`pip install` of tools/python into a fresh venv, used from elsewhere: with the library named, inside the package, and
not there; and what `python -m weightcast` says of each. Exit code 77: this Python makes no venv, or setuptools is neither on PyPI nor here.

usage: pip_install.py LIBRARY MPIEXEC
"""

import ctypes.util
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

    def says(status, texts, **environment):
        """`python -m weightcast`"""
        got, output = run(python, "-m", "weightcast", **environment)
        assert got == status and all(text in output for text in texts), f"{environment}: {got}\n{output}"

    has_mpi4py = run(python, "-c", "import mpi4py")[0] == 0
    usable = (0, "\nusable") if has_mpi4py else (69, "pip install mpi4py")
    # Nowhere: what to do about it.
    says(66, ["libweightcast  not usable", "libweightcast.so.1 is not there: looked for", "name it in WEIGHTCAST_LIBRARY"])
    says(66, ["WEIGHTCAST_LIBRARY is /no/such/file, which is not there"], WEIGHTCAST_LIBRARY="/no/such/file")
    says(66, [f"WEIGHTCAST_LIBRARY is {folder}, which is a folder"], WEIGHTCAST_LIBRARY=folder)
    broken = pathlib.Path(folder) / "broken.so"
    broken.write_bytes(b"not a library")
    says(69, [f"{broken} cannot be loaded"], WEIGHTCAST_LIBRARY="broken.so")  # from where it runs
    libc = ctypes.util.find_library("c")
    says(69, ["is another library than this package needs", "undefined symbol: wc_version"],
         WEIGHTCAST_LIBRARY=next(line.split()[-1] for line in open("/proc/self/maps") if line.rstrip().endswith(libc)))
    # Named; and the package is of the library's version.
    _, output = run(python, "-c", "import importlib.metadata as m; print(m.version('weightcast'))")
    version = output.strip()
    says(usable[0], [f"weightcast     {version}, {venv}", f"libweightcast  {version}, {LIBRARY} (named by WEIGHTCAST_LIBRARY)",
                     "its MPI", "CUDA", usable[1]], WEIGHTCAST_LIBRARY=str(LIBRARY))
    says(usable[0], [f"weightcast     {version}, {SOURCE}"], WEIGHTCAST_LIBRARY=str(LIBRARY), PYTHONPATH=str(SOURCE))
    # With an mpi4py of another MPI.
    other = pathlib.Path(folder) / "other/mpi4py"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("__version__ = '9.9'\nclass rc: pass\n")
    (other / "MPI.py").write_text("def Get_library_version(): return 'MPICH Version: 4.2.0'\n")
    says(78, ["mpi4py         9.9, MPICH", "use two MPI libraries"], WEIGHTCAST_LIBRARY=str(LIBRARY), PYTHONPATH=str(other.parent))
    # Inside the package.
    _, output = run(python, "-c", "import weightcast; print(weightcast.__file__)")
    shutil.copy(LIBRARY, pathlib.Path(output.strip()).parent / "libweightcast.so.1")
    says(usable[0], [f"libweightcast  {version}, {venv}", "(inside the package)", usable[1]])
    if run(python, "-c", "import mpi4py, numpy")[0] != 0:
        print("mpi4py or numpy is not there (Debian: python3-mpi4py, python3-numpy): no update")
    else:
        expect("received", MPIEXEC, "--oversubscribe", "-n", "2", python, "-m", "mpi4py", "-c", UPDATE)
print("pip install: as expected")
