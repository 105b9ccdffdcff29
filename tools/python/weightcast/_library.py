"""libweightcast.so: where it is, its structs and functions (weightcast.h), and what its failures are here."""

import ctypes
import enum
import functools
import os
import pathlib
import re
from typing import Any, NamedTuple, Optional


class Code(enum.IntEnum):
    """Why something failed: the exit codes of the program weightcast."""
    USAGE = 64         # an argument is wrong
    BAD_DATA = 65      # tensors or files do not fit the model
    NO_INPUT = 66      # a file is missing
    UNAVAILABLE = 69   # memory, a GPU, MPI, NCCL or a peer failed
    INTERNAL = 70      # a defect of weightcast
    CANT_CREATE = 73
    IO_ERROR = 74
    BUSY = 75          # try again
    MISMATCH = 76      # bytes arrived that were not sent, and nothing was committed; or see Engine.scrub()
    CONFIG = 78        # ranks do not agree, or the request cannot work
    DEADLINE = 124     # a wait ran out of time


class WeightcastError(Exception):
    """What failed, and what to do about it.

    `code`: a Code. `message`: the text; the same on all ranks of a call that is collective. `lost`: a rank is out of reach,
    and the job is over: call comm.Abort(). Otherwise nothing has changed: mend the cause and go on.
    """

    def __init__(self, code: int, message: str, lost: bool = False) -> None:
        """Raised by this package."""
        super().__init__(message)
        self.code: Code = Code(code)
        self.message: str = message
        self.lost: bool = lost


class Options(ctypes.Structure):
    """wc_options"""
    _fields_ = [("size", ctypes.c_size_t), ("model", ctypes.c_char_p), ("comm_name", ctypes.c_char_p),
                ("comm", ctypes.c_int), ("memory", ctypes.c_int), ("device", ctypes.c_int), ("tp", ctypes.c_uint64),
                ("dp", ctypes.c_uint64), ("slots", ctypes.c_int), ("transport", ctypes.c_char_p),
                ("method", ctypes.c_char_p), ("timeout_s", ctypes.c_double), ("destinations", ctypes.c_void_p),
                ("destination_count", ctypes.c_size_t), ("trainers", ctypes.c_uint64),
                ("source_layout", ctypes.c_char_p), ("sources", ctypes.c_void_p), ("source_count", ctypes.c_size_t),
                ("delta_limit", ctypes.c_double), ("expert_parallel", ctypes.c_int), ("quantize", ctypes.c_char_p)]


class Entry(ctypes.Structure):
    """wc_tensor"""
    _fields_ = [("size", ctypes.c_size_t), ("name", ctypes.c_char_p), ("dtype", ctypes.c_char_p),
                ("shape", ctypes.POINTER(ctypes.c_uint64)), ("dimensions", ctypes.c_size_t), ("data", ctypes.c_void_p),
                ("row_pitch_bytes", ctypes.c_uint64), ("memory", ctypes.c_int), ("device", ctypes.c_int),
                ("strides_bytes", ctypes.POINTER(ctypes.c_int64)), ("offsets", ctypes.POINTER(ctypes.c_uint64)),
                ("full_shape", ctypes.POINTER(ctypes.c_uint64))]


class Outcome(ctypes.Structure):
    """wc_update"""
    _fields_ = [("size", ctypes.c_size_t), ("version", ctypes.c_uint64), ("closed", ctypes.c_int),
                ("digest", ctypes.c_char * 33),
                *((name, ctypes.c_double) for name in
                  ("local_s", "prepare_s", "stage_s", "verify_s", "vote_s", "commit_s")),
                ("egress_bytes", ctypes.c_uint64), ("payload", ctypes.c_int), ("shipped_bytes", ctypes.c_uint64),
                ("changed_elements", ctypes.c_uint64), ("diff_s", ctypes.c_double), ("apply_s", ctypes.c_double)]

    def __init__(self) -> None:
        super().__init__(ctypes.sizeof(Outcome))


HOST, CUDA = 0, 1  # WC_HOST, WC_CUDA


class Place(NamedTuple):
    """Where the library may be, and who says so."""
    path: pathlib.Path
    why: str


def places() -> list[Place]:
    """All places, in the order in which they are tried."""
    named = os.environ.get("WEIGHTCAST_LIBRARY")
    if named:
        return [Place(pathlib.Path(named), "named by WEIGHTCAST_LIBRARY")]
    here = pathlib.Path(__file__).resolve().parent
    folders = [(here, "inside the package"), (here.parent, "beside the package")]
    if len(here.parents) > 2:
        root = here.parents[2]
        folders.append((root, "of this installation"))
        if (root / "CMakePresets.json").exists():  # the source tree
            folders += [(root / f"build/{preset}/lib", f"of the build in build/{preset}") for preset in ("host", "cuda")]
    return [Place(folder / "libweightcast.so.1", why) for folder, why in folders]


def find() -> Place:
    """Where the library is. Code.NO_INPUT when it is nowhere."""
    tried = places()
    for place in tried:
        if place.path.is_file():
            return place._replace(path=place.path.absolute())
    named = tried[0] if len(tried) == 1 else None
    if named is not None:
        raise WeightcastError(Code.NO_INPUT, f"WEIGHTCAST_LIBRARY is {named.path}, which is "
                              + ("a folder" if named.path.is_dir() else "not there")
                              + "\nname libweightcast.so.1 with its path, or unset it")
    raise WeightcastError(Code.NO_INPUT, "libweightcast.so.1 is not there: looked for\n"
                          + "".join(f"  {place.path}\n" for place in tried)
                          + "build it (cmake --build --preset host --target weightcast_capi), and name it in WEIGHTCAST_LIBRARY")


@functools.lru_cache(maxsize=None)
def library() -> Any:
    """The library, loaded. Code.NO_INPUT, or Code.UNAVAILABLE when it cannot be loaded or is another one."""
    path = find().path
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise WeightcastError(Code.UNAVAILABLE, f"{path} cannot be loaded: {error}\nit wants the libraries of the machine "
                              f"where it was built, and its MPI: ldd {path} lists what is missing") from error
    try:
        _declare(loaded)
    except AttributeError as error:
        raise WeightcastError(Code.UNAVAILABLE, f"{path} is another library than this package needs: {error}\ntake "
                              "libweightcast.so.1 and the Python package from one version of weightcast") from error
    return loaded


def _declare(loaded: Any) -> None:
    for text in ("wc_version", "wc_mpi_library", "wc_gpu_libraries", "wc_last_error"):
        getattr(loaded, text).restype = ctypes.c_char_p
    handle, u64, table, update = ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(Entry), ctypes.POINTER(Outcome)
    functions: dict[str, list[Any]] = {
        "wc_trainer_create": [ctypes.POINTER(Options), ctypes.POINTER(handle)],
        "wc_engine_create": [ctypes.POINTER(Options), ctypes.POINTER(handle)],
        "wc_publish": [handle, u64, table, ctypes.c_size_t, update],
        "wc_update_parameter": [handle, u64, table, ctypes.c_int, update],
        "wc_update_parameter_from_distributed": [handle, ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(u64),
                                                 ctypes.c_size_t, ctypes.c_int, update],
        "wc_get_weights_by_parameter_name": [handle, ctypes.c_char_p, u64, ctypes.POINTER(ctypes.c_float),
                                             ctypes.c_size_t, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(u64)],
        "wc_begin": [handle, u64], "wc_put": [handle, table], "wc_commit": [handle, update], "wc_abort": [handle],
        "wc_receive": [handle, ctypes.c_double, update],
        "wc_receive_into": [handle, ctypes.c_double, table, ctypes.c_size_t, update],
        "wc_engine_version": [handle, ctypes.POINTER(u64)], "wc_pin_served": [handle, ctypes.POINTER(handle)],
        "wc_pin_version": [handle, ctypes.POINTER(u64)], "wc_unpin": [handle],
        "wc_engine_tensor_count": [handle, ctypes.POINTER(ctypes.c_size_t)],
        "wc_engine_tensor": [handle, handle, ctypes.c_size_t, table],
        "wc_engine_digest": [handle, ctypes.c_char_p], "wc_scrub": [handle], "wc_trainer_lost": [handle],
        "wc_engine_lost": [handle], "wc_trainer_destroy": [handle], "wc_engine_destroy": [handle]}
    for name, arguments in functions.items():
        getattr(loaded, name).argtypes = arguments
    loaded.wc_unpin.restype = loaded.wc_trainer_destroy.restype = None


def expect_same_mpi(theirs: str) -> None:
    """Code.CONFIG unless mpi4py's MPI library, as it calls itself, is the one that the library uses."""
    mine, theirs = library().wc_mpi_library().decode(), theirs.rstrip("\0")
    if mine != theirs:
        raise WeightcastError(Code.CONFIG, f"libweightcast.so.1 and mpi4py use two MPI libraries:\n  {mine}\n  {theirs}\n"
                              "build mpi4py with the MPI of this machine (pip install --no-binary mpi4py mpi4py), or take "
                              "the distribution's python3-mpi4py")


def usage(message: str) -> WeightcastError:
    """The error of a wrong argument."""
    return WeightcastError(Code.USAGE, message)


def in_words_of_python(text: str) -> str:
    """`text` with the names that the functions of weightcast.h have here."""
    for word, ours in (("wc_trainer_create()", "Trainer()"), ("wc_engine_create()", "Engine()"),
                       ("wc_unpin() them", "leave each `with engine.serving()`"), ("wc_init()", "MPI.Init()"),
                       ("memory = WC_HOST", 'device="cpu"')):
        text = text.replace(word, ours)
    return re.sub(r"\bwc_(\w+\(\))", r"\1", text)


def check(status: int, lost: bool = False) -> None:
    """Raises what the last call of this thread failed with, unless its status is 0."""
    if status:
        raise WeightcastError(status, in_words_of_python(library().wc_last_error().decode(errors="replace")), lost)
