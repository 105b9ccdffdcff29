"""Weights from a trainer to engines, all ranks or none: weightcast for Python, over its C interface (weightcast.h).

Rank 0 of an MPI communicator is the trainer, every other rank an engine rank; each in a process of its own:

    with weightcast.Trainer("model/config.json") as trainer:                    # rank 0
        for version, batch in enumerate(batches, 1):
            step(model, batch)
            trainer.publish(version, model.state_dict())                        # fp32 masters are rounded to bf16

    with weightcast.Engine("model/config.json", destinations=model.state_dict()) as engine:   # the others
        while engine.receive():                                                 # until the trainer leaves
            sample(model)                                                       # with the new weights

With `delta_limit=0.4` in everybody's options only what changed is sent after the first version: a few percent of the weights
in a step of reinforcement learning.

A trainer of several ranks, such as one of torch's fully_shard (FSDP2), publishes from all of them, each what it has:

    trainer = weightcast.Trainer("model/config.json", trainers=R)               # ranks 0 ... R-1
    trainer.publish(version, model.state_dict())                                # DTensors; nothing is gathered
    engine = weightcast.Engine("model/config.json", trainers=R, ...)            # the others

Tensors are taken where they are, without copies: torch tensors, numpy arrays, and whatever else has
__cuda_array_interface__ or __array_interface__, of any strides: transposed, reversed, expanded, parts of others. As
destinations all are taken with which no two elements share memory. numpy has no bfloat16: give (array of uint16, "BF16").
Calls that move weights wait for torch's work on the GPU first; whoever uses another library's streams synchronises them
before.

An engine without destinations keeps two versions in memory of its own: see Engine.serving().

Errors are WeightcastError. An update that fails leaves the old version where it was, on all ranks, which all raise the
same error; go on and publish again. Only when a rank is lost (error.lost) is the job over: then call comm.Abort().
Start programs with `python3 -m mpi4py`, so that any other uncaught exception ends all ranks, too.

The library is $WEIGHTCAST_LIBRARY, or libweightcast.so.1 beside this file, or where `cmake --install` or, run from the
source tree, a build in build/host or build/cuda puts it. It must use the MPI library that mpi4py uses. Nothing here is thread-safe, but for
serving(); other Python threads run during all calls.
"""

import contextlib
import ctypes
import enum
import functools
import os
import pathlib
import sys
from typing import NamedTuple, Optional

__all__ = ["Code", "Engine", "Served", "Tensor", "Trainer", "Update", "WeightcastError"]


class Code(enum.IntEnum):
    """Why something failed: the exit codes of the program weightcast."""
    USAGE = 64
    BAD_DATA = 65
    NO_INPUT = 66
    UNAVAILABLE = 69
    INTERNAL = 70
    CANT_CREATE = 73
    IO_ERROR = 74
    BUSY = 75
    MISMATCH = 76
    CONFIG = 78
    DEADLINE = 124


class WeightcastError(Exception):
    """What failed, and what to do about it. `code` is a Code; `lost`: a rank is out of reach, and the job is over."""

    def __init__(self, code, message, lost=False):
        super().__init__(message)
        self.code = Code(code)
        self.message = message
        self.lost = lost


class Update(NamedTuple):
    """How an update went, in seconds of this rank."""
    version: int
    digest: str           # of the whole model; the same on trainer and engines
    local_s: float        # trainer: bringing the tensors together; engine: copying into its destinations
    prepare_s: float
    stage_s: float
    verify_s: float
    vote_s: float
    commit_s: float
    egress_bytes: int     # trainer: what left it
    payload: str = "dense"     # what was sent: "dense" or "delta"
    shipped_bytes: int = 0     # trainer: of the delta that left it
    changed_elements: int = 0  # trainer: units of 16 bits in it
    diff_s: float = 0.0        # trainer: making the delta, beside what local_s has of it
    apply_s: float = 0.0       # engine: writing it to its memory, a part of verify_s

    @property
    def total_s(self):
        """All of it."""
        return self.local_s + self.prepare_s + self.stage_s + self.verify_s + self.vote_s + self.commit_s


class _Options(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("model", ctypes.c_char_p), ("comm_name", ctypes.c_char_p),
                ("comm", ctypes.c_int), ("memory", ctypes.c_int), ("device", ctypes.c_int), ("tp", ctypes.c_uint64),
                ("dp", ctypes.c_uint64), ("slots", ctypes.c_int), ("transport", ctypes.c_char_p),
                ("method", ctypes.c_char_p), ("timeout_s", ctypes.c_double), ("destinations", ctypes.c_void_p),
                ("destination_count", ctypes.c_size_t), ("trainers", ctypes.c_uint64),
                ("source_layout", ctypes.c_char_p), ("sources", ctypes.c_void_p), ("source_count", ctypes.c_size_t),
                ("delta_limit", ctypes.c_double), ("expert_parallel", ctypes.c_int), ("quantize", ctypes.c_char_p)]


class _Tensor(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("name", ctypes.c_char_p), ("dtype", ctypes.c_char_p),
                ("shape", ctypes.POINTER(ctypes.c_uint64)), ("dimensions", ctypes.c_size_t), ("data", ctypes.c_void_p),
                ("row_pitch_bytes", ctypes.c_uint64), ("memory", ctypes.c_int), ("device", ctypes.c_int),
                ("strides_bytes", ctypes.POINTER(ctypes.c_int64)), ("offsets", ctypes.POINTER(ctypes.c_uint64)),
                ("full_shape", ctypes.POINTER(ctypes.c_uint64))]


class _Update(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("version", ctypes.c_uint64), ("closed", ctypes.c_int),
                ("digest", ctypes.c_char * 33),
                *((name, ctypes.c_double) for name in
                  ("local_s", "prepare_s", "stage_s", "verify_s", "vote_s", "commit_s")),
                ("egress_bytes", ctypes.c_uint64), ("payload", ctypes.c_int), ("shipped_bytes", ctypes.c_uint64),
                ("changed_elements", ctypes.c_uint64), ("diff_s", ctypes.c_double), ("apply_s", ctypes.c_double)]

    def __init__(self):
        super().__init__(ctypes.sizeof(_Update))

    def value(self):
        return Update(self.version, self.digest.decode(), self.local_s, self.prepare_s, self.stage_s, self.verify_s,
                      self.vote_s, self.commit_s, self.egress_bytes, "delta" if self.payload else "dense",
                      self.shipped_bytes, self.changed_elements, self.diff_s, self.apply_s)


def _candidates():
    if os.environ.get("WEIGHTCAST_LIBRARY"):
        return [pathlib.Path(os.environ["WEIGHTCAST_LIBRARY"])]
    here = pathlib.Path(__file__).resolve().parent
    folders = [here]
    if len(here.parents) > 1:
        root = here.parents[1]
        folders += [root, root / "build/host/lib", root / "build/cuda/lib"]
    return [folder / "libweightcast.so.1" for folder in folders]


@functools.lru_cache(maxsize=None)
def _library():
    candidates = _candidates()
    path = next((candidate for candidate in candidates if candidate.exists()), None)
    if path is None:
        raise WeightcastError(Code.NO_INPUT, "libweightcast.so is not there: looked for "
                              + ", ".join(map(str, candidates)) + "\nbuild it, or name it in WEIGHTCAST_LIBRARY")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise WeightcastError(Code.UNAVAILABLE, f"{path} cannot be loaded: {error}") from error
    for text in ("wc_version", "wc_mpi_library", "wc_last_error"):
        getattr(library, text).restype = ctypes.c_char_p
    handle, u64, table, update = ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(_Tensor), ctypes.POINTER(_Update)
    for name, arguments in {
            "wc_trainer_create": [ctypes.POINTER(_Options), ctypes.POINTER(handle)],
            "wc_engine_create": [ctypes.POINTER(_Options), ctypes.POINTER(handle)],
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
            "wc_engine_digest": [handle, ctypes.c_char_p], "wc_scrub": [handle], "wc_trainer_lost": [handle], "wc_engine_lost": [handle],
            "wc_trainer_destroy": [handle], "wc_engine_destroy": [handle]}.items():
        getattr(library, name).argtypes = arguments
    library.wc_unpin.restype = library.wc_trainer_destroy.restype = None
    return library


def _check(status, lost=False):
    if status:
        raise WeightcastError(status, _library().wc_last_error().decode(errors="replace"), lost)


_HOST, _CUDA = 0, 1
# What torch and numpy call the dtypes of safetensors.
_TORCH_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64",
                 "float8_e4m3fn": "F8_E4M3"}
_NUMPY_DTYPES = {"<f2": "F16", "<f4": "F32", "<f8": "F64"}
_SIZES = {"F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4, "F64": 8}


def _usage(message):
    return WeightcastError(Code.USAGE, message)


def _local_part(name, value):
    """(what this process has of a DTensor, offsets, full extents). Nothing is communicated."""
    full, coordinate = tuple(value.shape), value.device_mesh.get_coordinate()
    offsets, shape = [0] * len(full), list(full)
    for index, placement in enumerate(value.placements):
        if placement.is_replicate():
            continue
        if type(placement).__name__ != "Shard" or placement.dim > 1:  # Partial, _StridedShard, ...
            raise _usage(f"{name} is a DTensor with the placement {placement!r}: Replicate, Shard(0) and Shard(1) are "
                         f"taken. Call {name}.redistribute(placements=[Shard(0)]) on all its ranks first")
        if coordinate is None:
            continue
        dim, ranks = placement.dim, value.device_mesh.size(index)
        each = -(-shape[dim] // ranks)
        first = min(coordinate[index] * each, shape[dim])
        offsets[dim] += first
        shape[dim] = min(each, shape[dim] - first)
    local = value.to_local()
    if coordinate is None:  # another process's
        offsets, shape = list(full), [0] * len(full)
    if local.numel() == 0 and 0 in shape:  # torch gives it extents of its own
        local = local.new_empty(shape)
    if tuple(local.shape) != tuple(shape):
        raise _usage(f"{name} is a DTensor of which this process has {tuple(local.shape)}, where {value.placements} "
                     f"says {tuple(shape)}")
    return local, offsets, full


def _look_at_torch(name, value):
    """(type, bytes of an element, shape, strides in bytes, address, memory, device) of a torch tensor."""
    layout = str(value.layout)
    if layout != "torch.strided" or value.device.type not in ("cpu", "cuda"):
        raise _usage(f"{name} is a torch tensor of layout {layout} on {value.device}: strided ones on cpu or cuda are "
                     "taken")
    if value.is_neg() or value.is_conj():  # a view whose memory holds something else
        raise _usage(f"{name} is a torch tensor that is negated or conjugated when it is read: give it .resolve_neg() "
                     "and .resolve_conj()")
    size, shape = value.element_size(), tuple(value.shape)
    reach = value.storage_offset() + sum((extent - 1) * stride for extent, stride in zip(shape, value.stride())) + 1
    if 0 not in shape and reach * size > value.untyped_storage().nbytes():  # FSDP takes it away and brings it back
        raise _usage(f"{name} is a torch tensor whose memory was freed or never there: gather it first")
    memory, device = (_CUDA, value.device.index) if value.device.type == "cuda" else (_HOST, 0)
    strides = tuple(size * stride for stride in value.stride())
    return str(value.dtype).rpartition(".")[2], size, shape, strides, value.data_ptr(), memory, device


def _look_at_array(name, value, write):
    """The same of an array of another library; strides are None when it is dense."""
    cuda = getattr(value, "__cuda_array_interface__", None)
    interface = cuda or getattr(value, "__array_interface__", None)
    if interface is None or not isinstance(interface.get("data"), tuple):
        raise _usage(f"{name} is a {type(value).__name__}: a torch tensor, a numpy array or anything with "
                     "__cuda_array_interface__ is taken")
    kind, (address, read_only) = interface["typestr"], interface["data"]
    if kind[0] == ">":
        raise _usage(f"{name} has big-endian elements, of type {kind}: little-endian ones are taken")
    if interface.get("mask") is not None or hasattr(value, "filled"):
        raise _usage(f"{name} is masked: give its data")
    if write and read_only:
        raise _usage(f"{name} cannot be a destination: it is read-only")
    memory, device = (_CUDA, _device_of(value)) if cuda else (_HOST, 0)
    return kind, int(kind[2:] or 0), interface["shape"], interface.get("strides"), address, memory, device


def _look_at(name, value, write):
    """(dtype, shape, strides in bytes or None, address, memory, device) of a tensor of any library."""
    explicit = None
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str):
        value, explicit = value
    torch = hasattr(value, "data_ptr")
    kind, size, *where = _look_at_torch(name, value) if torch else _look_at_array(name, value, write)
    known = (_TORCH_DTYPES if torch else _NUMPY_DTYPES).get(kind)
    bits = kind.startswith(("int", "uint")) if torch else kind[1] in "iuV"  # what a dtype can be said of
    dtype = explicit or known
    if dtype is None or _SIZES.get(dtype, size) != size or (explicit not in (None, known) and not bits):
        raise _usage(f"{name} has elements of type {kind}, which is not {dtype or 'a known floating type'}"
                     + ("" if explicit else '; for bf16 in numpy give (array of uint16, "BF16")'))
    return dtype, *where


def _device_of(value):
    """The GPU of an array that has __cuda_array_interface__ only."""
    device = getattr(value, "device", None)  # cupy
    return int(getattr(device, "id", 0))


class _Table:
    """Tensors as the C interface takes them; lives as long as the call."""

    def __init__(self, tensors, write):
        items = list(tensors.items() if hasattr(tensors, "items") else tensors)
        self.entries = (_Tensor * max(len(items), 1))()
        self.count = len(items)
        self._values = [items]  # keeps their memory alive
        gpus = set()
        for entry, (name, value) in zip(self.entries, items):
            bare = value[0] if isinstance(value, tuple) and len(value) == 2 else value
            if hasattr(bare, "full_tensor"):  # a DTensor: its memory is a part of it
                if write:
                    raise _usage(f"{name} is a {type(bare).__name__}: a destination is this engine rank's own shard, "
                                 f"a plain tensor, such as {name}.to_local()")
                local, offsets, full = _local_part(name, bare)
                value = local if bare is value else (local, value[1])
                entry.offsets = (ctypes.c_uint64 * max(len(full), 1))(*offsets)
                entry.full_shape = (ctypes.c_uint64 * max(len(full), 1))(*full)
                self._values.append(local)
            if value is None:  # scales that are there already
                dtype, shape, strides, address, memory, device = "F32", (1,), None, None, _HOST, 0
            else:
                dtype, shape, strides, address, memory, device = _look_at(name, value, write)
            extents = (ctypes.c_uint64 * max(len(shape), 1))(*shape)
            entry.size, entry.name, entry.dtype = ctypes.sizeof(_Tensor), name.encode(), dtype.encode()
            entry.shape, entry.dimensions, entry.data = extents, len(shape), address
            if strides:
                entry.strides_bytes = (ctypes.c_int64 * len(strides))(*strides)
            entry.memory, entry.device = memory, device
            if memory == _CUDA:
                gpus.add(device)
        torch = sys.modules.get("torch")
        for gpu in gpus if torch is not None and torch.cuda.is_initialized() else ():
            torch.cuda.synchronize(gpu)  # what writes or reads these tensors is done


def _placement(device):
    """(memory, device) of "cpu", "cuda", "cuda:1" or a torch.device."""
    kind, _, ordinal = str(device).partition(":")
    if kind == "cpu" and not ordinal:
        return _HOST, 0
    if kind != "cuda" or (ordinal and not ordinal.isdigit()):
        raise _usage(f'there is no device {device}: it is "cpu", "cuda" or "cuda:N"')
    if ordinal:
        return _CUDA, int(ordinal)
    torch = sys.modules.get("torch")
    return _CUDA, torch.cuda.current_device() if torch is not None and torch.cuda.is_available() else 0


class _Handle:
    """What trainer and engine have in common: joining, leaving, errors."""
    _kind = ""

    def __init__(self, model, comm, device, tp, dp, slots, transport, method, timeout_s, trainers, delta_limit,
                 expert_parallel, quantize, destinations=None, source_layout=None, sources=None):
        from mpi4py import MPI
        library = _library()
        mine, theirs = library.wc_mpi_library().decode(), MPI.Get_library_version().rstrip("\0")
        if mine != theirs:
            raise WeightcastError(Code.CONFIG, f"libweightcast.so and mpi4py use two MPI libraries:\n  {mine}\n  "
                                  f"{theirs}\nbuild mpi4py with the MPI of this machine (pip install --no-binary "
                                  "mpi4py mpi4py), or take the distribution's python3-mpi4py")
        self.comm = MPI.COMM_WORLD if comm is None else comm
        memory, ordinal = _placement(device)
        options = _Options(ctypes.sizeof(_Options), os.fspath(model).encode(), None, self.comm.py2f(), memory, ordinal,
                           tp or 0, dp, slots, transport.encode(), method.encode(), timeout_s)
        if destinations is not None:
            table = _Table(destinations, write=True)
            options.destinations, options.destination_count = ctypes.addressof(table.entries), table.count
        options.trainers, options.delta_limit = trainers, delta_limit
        options.expert_parallel, options.quantize = int(expert_parallel), quantize.encode()
        if source_layout is not None:
            options.source_layout = source_layout.encode()
        if sources is not None:
            source_table = _Table(sources, write=False)
            options.sources, options.source_count = ctypes.addressof(source_table.entries), source_table.count
        self._handle = ctypes.c_void_p()
        _check(getattr(library, f"wc_{self._kind}_create")(options, self._handle))

    def _call(self, name, *arguments):
        if self._handle is None:
            raise WeightcastError(Code.CONFIG, f"this {type(self).__name__} is closed")
        status = getattr(_library(), name)(self._handle, *arguments)
        _check(status, status != 0 and self.lost)

    @property
    def lost(self):
        """Whether a rank of the group is out of reach: then nothing but comm.Abort() helps."""
        return self._handle is not None and bool(getattr(_library(), f"wc_{self._kind}_lost")(self._handle))

    def close(self):
        """Leaves the group and frees its memory. Engines are told when the trainer leaves."""
        if self._handle is not None:
            self._destroy()
            self._handle = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Trainer(_Handle):
    """The sending end, on rank 0 of `comm` (an mpi4py communicator; default: the world), or its first `trainers` ranks.

    `model` is a config.json, a folder with one, or a named shape. Weights are put together on `device` ("cpu" or
    "cuda:N", of the same kind on all ranks) before they are sent. `tp` and `dp` shape the engines: by default one
    tensor-parallel engine of all other ranks. `timeout_s` is for each stage of an update. Collective.

    `delta_limit`, the same on all ranks: a version after the first one is sent as what changed in it, where that is at most
    this share of the bytes (0.4 is a good one; memory for so much is taken on all ranks). What engines hold is the same, and
    verified. 0: every version is sent whole. Update.payload says what was sent.

    `expert_parallel`, the same on all ranks: each engine rank owns some experts whole, in place of a part of each. `quantize`
    ("fp8-block" or "fp8-channel"), the same on all ranks: engines hold the matrices of linear layers as float8_e4m3fn, with
    scales of 128 x 128 blocks (`weight_scale_inv`) or of rows (`weight_scale`); the trainer rounds them.

    With several trainer ranks each makes one, says the same, and publishes what it has. Which of them has what is settled
    here: by default as PyTorch's fully_shard leaves a model over all of them, rank by rank ("fsdp"); `source_layout` names
    another ("whole": rank 0 has everything, "tp"). `sources`, given by all of them, says it by the tensors that each will
    publish, such as model.state_dict(): any mesh, be it replicated, too, sharded on dimension 0 or 1, uneven, or plain
    tensors on one rank and {} on the others.
    """
    _kind = "trainer"

    def __init__(self, model, comm=None, *, device="cpu", tp=None, dp=1, transport="auto", method="sharded",
                 timeout_s=60.0, trainers=1, source_layout=None, sources=None, delta_limit=0.0,
                 expert_parallel=False, quantize="none"):
        self._trainers = trainers
        super().__init__(model, comm, device, tp, dp, 0, transport, method, timeout_s, trainers, delta_limit,
                         expert_parallel, quantize, source_layout=source_layout, sources=sources)

    def _destroy(self):
        _library().wc_trainer_destroy(self._handle)

    def _table(self, function, version, tensors, *rest):
        """What is published. When it cannot be used, the other trainer ranks hear of that before this one raises it."""
        try:
            return _Table(tensors, write=False)
        except WeightcastError:
            if self._trainers > 1 and self._handle is not None:
                with contextlib.suppress(WeightcastError):
                    self._call(function, version, None, *rest)  # refused by all
            raise

    def publish(self, version, tensors) -> Update:
        """Sends all parameters as `version` (higher than the last): a mapping of Hugging Face names, or pairs, such as
        model.state_dict(). Masters in fp32 are rounded to the model's bf16 or fp16, and so is one of these to the other.
        A tied head may be left out, or must equal the embedding. Of a DTensor this rank's part is taken where it is:
        nothing is gathered. Collective, over all trainer ranks, too; returns when all ranks have voted to serve it.
        Tensors that do not fit the model are refused with a list, on all trainer ranks, and engines notice nothing."""
        update = _Update()
        table = self._table("wc_publish", version, tensors, 1, None)
        self._call("wc_publish", version, table.entries, table.count, update)
        return update.value()

    def update_parameter(self, version, name, tensor, empty_cache=False) -> Update:
        """Sends one parameter of `version`, the seed's way: the version is served when each has been sent once. Of the
        result `version` is what engines serve then. `empty_cache`: also give back memory that is only kept for speed.
        With `quantize` a matrix makes its scales, which follow under their own name, with None as the tensor.
        Collective; engines call update_parameter_from_distributed()."""
        update = _Update()
        table = self._table("wc_update_parameter", version, [(name, tensor)], 0, None)
        self._call("wc_update_parameter", version, table.entries, int(empty_cache), update)
        return update.value()

    def begin(self, version):
        """Opens a version whose tensors come one by one: put() each, then commit() or abort(). Local."""
        self._call("wc_begin", version)

    def put(self, name, tensor):
        """Copies one tensor into the open version. Local; the tensor's memory is free again afterwards. Of two names that
        are tied the second must bring what the first did."""
        self._call("wc_put", _Table([(name, tensor)], write=False).entries)

    def commit(self) -> Update:
        """Sends the open version, as publish() does."""
        update = _Update()
        self._call("wc_commit", update)
        return update.value()

    def abort(self):
        """Forgets the open version, if there is one. Local."""
        self._call("wc_abort")


class Tensor:
    """An engine tensor of a served version: where it is, not a copy. Valid until serving() ends."""

    def __init__(self, entry, version_owner):
        self.name, self.dtype = entry.name.decode(), entry.dtype.decode()
        self.shape = tuple(entry.shape[i] for i in range(entry.dimensions))
        self.address = entry.data
        self.device = "cpu" if entry.memory == _HOST else f"cuda:{entry.device}"
        self._owner = version_owner

    def _interface(self):
        typestr = next((kind for kind, name in _NUMPY_DTYPES.items() if name == self.dtype), "<i2")  # bf16 as bits
        return {"shape": self.shape, "typestr": typestr, "data": (self.address, False), "version": 3}

    def numpy(self):
        """As a read-only numpy array on the host, without a copy; bf16 as int16."""
        import numpy
        if self.device != "cpu":
            raise _usage(f"{self.name} is on {self.device}: use torch()")
        self.__array_interface__ = self._interface()
        array = numpy.asarray(self)
        array.flags.writeable = False
        return array

    def torch(self):
        """As a torch tensor, without a copy. Not to be written to."""
        import torch
        if self.device == "cpu":
            self.__array_interface__ = self._interface()
            import numpy
            tensor = torch.from_numpy(numpy.asarray(self))
        else:
            self.__cuda_array_interface__ = self._interface()
            tensor = torch.as_tensor(self, device=self.device)
        return tensor.view(torch.bfloat16) if self.dtype == "BF16" else tensor


class Served(dict):
    """The engine tensors of one version, by name: fused and sharded, as `weightcast plan` lists them."""
    version: int = 0


class Engine(_Handle):
    """A receiving rank; arguments as for Trainer (who has which weights is the trainer ranks' to say). Every rank of an engine is one of these, and calls what it calls.

    `destinations`: this rank's own tensors (a mapping, such as model.state_dict()), each the shard of a parameter or a
    whole fused engine tensor, together all of them; what does not fit is refused here, on all ranks. A tied head with
    memory of its own is written, too. receive() overwrites them when all ranks have verified and voted;
    whatever fails, they hold the old version. Without destinations the engine keeps two versions itself: serving().
    """
    _kind = "engine"

    def __init__(self, model, comm=None, *, destinations=None, device="cpu", tp=None, dp=1, transport="auto",
                 method="sharded", timeout_s=60.0, trainers=1, delta_limit=0.0,
                 expert_parallel=False, quantize="none"):
        self._destinations = destinations
        super().__init__(model, comm, device, tp, dp, 2 if destinations is None else 1, transport, method, timeout_s,
                         trainers, delta_limit, expert_parallel, quantize, destinations)

    def _destroy(self):
        _check(_library().wc_engine_destroy(self._handle))

    def receive(self, wait_s: Optional[float] = None) -> Optional[Update]:
        """Takes part in the trainer's next update, once the trainer begins it: waits as long as that takes, or up to
        `wait_s` seconds (then WeightcastError with Code.BUSY, and nothing is lost). None: the trainer has left."""
        update = _Update()
        wait_s = -1.0 if wait_s is None else max(wait_s, 0.0)
        if self._destinations is None:
            self._call("wc_receive", wait_s, update)
        else:
            table = _Table(self._destinations, write=True)
            self._call("wc_receive_into", wait_s, table.entries, table.count, update)
        return None if update.closed else update.value()

    def update_parameter_from_distributed(self, name, dtype, shape, empty_cache=False) -> Update:
        """Receives one parameter that the trainer sends by update_parameter(), into the engine's own memory; `dtype` (as
        safetensors spells it: "BF16") and `shape` are what is expected of the whole parameter. Code.BUSY when the trainer
        has not begun within `timeout_s`. Of the result `version` is what is served now. Collective."""
        update, extents = _Update(), (ctypes.c_uint64 * max(len(shape), 1))(*shape)
        self._call("wc_update_parameter_from_distributed", os.fsencode(name), dtype.encode(), extents, len(shape),
                   int(empty_cache), update)
        return update.value()

    def get_weights_by_parameter_name(self, name, truncate_size=10):
        """The first rows of a parameter under its Hugging Face name as it is served, unfused and from all shards: a numpy
        array of float32, in full width. The same on all ranks of the engine. Collective over them."""
        import numpy
        count, version = ctypes.c_size_t(), ctypes.c_uint64()
        arguments = os.fsencode(name), truncate_size
        self._call("wc_get_weights_by_parameter_name", *arguments, None, 0, count, version)
        values = numpy.empty(count.value, numpy.float32)
        self._call("wc_get_weights_by_parameter_name", *arguments, values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
                   values.size, count, version)
        return values

    @property
    def version(self):
        """What is served, or what the destinations hold; 0: nothing yet."""
        version = ctypes.c_uint64()
        self._call("wc_engine_version", version)
        return version.value

    @contextlib.contextmanager
    def serving(self):
        """A Served of the current version, which stays as it is until the end of the `with`, whatever is received
        meanwhile. Any thread. Code.BUSY when nothing is served."""
        pin, version, count, entry = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_size_t(), _Tensor()
        self._call("wc_pin_served", pin)
        try:
            served = Served()
            _check(_library().wc_pin_version(pin, version))
            served.version = version.value
            self._call("wc_engine_tensor_count", count)
            for index in range(count.value):
                entry.size = ctypes.sizeof(_Tensor)
                self._call("wc_engine_tensor", pin, index, entry)
                tensor = Tensor(entry, self)
                served[tensor.name] = tensor
            yield served
        finally:
            _library().wc_unpin(pin)

    def digest(self):
        """Digest of the whole model, computed now from what the served slots of all ranks of this engine hold.
        Collective over them."""
        text = ctypes.create_string_buffer(33)
        self._call("wc_engine_digest", text)
        return text.value.decode()

    def scrub(self):
        """Compares every byte that the served slots of all ranks of this engine hold with what was verified when their
        version was committed. WeightcastError with Code.MISMATCH names a parameter whose memory has changed since.
        Collective over them; without the trainer."""
        self._call("wc_scrub")
