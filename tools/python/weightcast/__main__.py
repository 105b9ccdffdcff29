"""python3 -m weightcast: what is there, from where, in which version, and whether it can be used together.

MPI is not initialised. Exit code 0: usable; otherwise the last lines, on stderr, say what is missing and what to do, and the
exit code is that of the program weightcast: 66 no library, 69 a library or mpi4py that cannot be loaded, 78 two MPI libraries.
"""

import argparse
import importlib.metadata
import pathlib
import platform
import sys
from typing import Callable

from . import Code, WeightcastError, __version__
from ._library import expect_same_mpi, find, library


def _row(name: str, *text: str) -> None:
    print(f"{name:<15}{', '.join(text)}")


def _short(mpi: str) -> str:
    """"Open MPI v4.1.4" of what an MPI library says of itself at length."""
    return mpi.partition(",")[0].partition("\n")[0].rstrip("\0")


def _say_library() -> None:
    try:
        place, loaded = find(), library()
    except WeightcastError:
        _row("libweightcast", "not usable")
        raise
    version = loaded.wc_version().decode()
    _row("libweightcast", version, f"{place.path} ({place.why})")
    _row("  its MPI", _short(loaded.wc_mpi_library().decode()))
    _row("  its GPUs", loaded.wc_gpu_libraries().decode())
    if version != __version__:
        raise WeightcastError(Code.CONFIG, f"the Python package is {__version__} and libweightcast.so.1 is {version}\n"
                              "take both from one version of weightcast")


def _say_mpi4py() -> None:
    try:
        import mpi4py
        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        _row("mpi4py", "not usable")
        raise WeightcastError(Code.UNAVAILABLE, f"mpi4py cannot be used: {error}\npip install mpi4py, or take the "
                              "distribution's python3-mpi4py") from error
    theirs = MPI.Get_library_version()
    _row("mpi4py", mpi4py.__version__, _short(theirs), mpi4py.__file__)
    expect_same_mpi(theirs)


def _say_tensors() -> None:
    for name in ("numpy", "torch"):
        try:
            _row(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            _row(name, "not installed")


def main() -> int:
    """Prints all of it; returns the exit code."""
    argparse.ArgumentParser(prog="python3 -m weightcast", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    _row("weightcast", __version__, str(pathlib.Path(__file__).resolve().parent))
    _row("Python", platform.python_version(), sys.executable)
    problems: list[WeightcastError] = []
    parts: tuple[Callable[[], None], ...] = (_say_library, _say_tensors, _say_mpi4py)
    for part in parts:
        try:
            part()
        except WeightcastError as problem:
            problems.append(problem)
    if not problems:
        print("usable")
        return 0
    sys.stdout.flush()
    for message in dict.fromkeys(problem.message for problem in problems):
        print(f"weightcast: {message}", file=sys.stderr)
    return int(problems[0].code)


if __name__ == "__main__":
    sys.exit(main())
