"""The two ends of an update group: Trainer and Engine."""

import contextlib
import ctypes
import operator
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Optional, Union

from ._library import HOST, Code, Entry, Options, Outcome, WeightcastError, check, expect_same_mpi, library, usage
from ._tensors import NUMPY_DTYPES, Table, TensorLike, Tensors, placement

if TYPE_CHECKING:
    import numpy
    import torch
    from mpi4py import MPI

Path = Union[str, "os.PathLike[str]"]
Device = Union[str, "torch.device"]
Transport = Literal["auto", "direct", "nccl", "mpi"]
Method = Literal["sharded", "broadcast"]
Layout = Literal["whole", "fsdp", "tp", "custom"]
Quantize = Literal["none", "fp8-block", "fp8-channel"]


class Update(NamedTuple):
    """How an update went. Seconds are those of this rank."""
    version: int
    digest: str           # of the whole model, 32 hexadecimal digits; the same on trainer and engines
    local_s: float        # trainer: bringing the tensors together; engine: copying into its destinations
    prepare_s: float
    stage_s: float
    verify_s: float
    vote_s: float
    commit_s: float
    egress_bytes: int     # trainer: what left this rank
    payload: str = "dense"     # what was sent: "dense" or "delta"
    shipped_bytes: int = 0     # trainer: of the delta that left it
    changed_elements: int = 0  # trainer: units of 16 bits in it
    diff_s: float = 0.0        # trainer: making the delta, beside what local_s has of it
    apply_s: float = 0.0       # engine: writing it to its memory, a part of verify_s

    @property
    def total_s(self) -> float:
        """All of it, in seconds."""
        return self.local_s + self.prepare_s + self.stage_s + self.verify_s + self.vote_s + self.commit_s


def _update_of(outcome: Outcome) -> Update:
    o = outcome
    return Update(o.version, o.digest.decode(), o.local_s, o.prepare_s, o.stage_s, o.verify_s, o.vote_s, o.commit_s,
                  o.egress_bytes, "delta" if o.payload else "dense", o.shipped_bytes, o.changed_elements, o.diff_s,
                  o.apply_s)


def _count(what: str, value: Any, least: int = 0) -> int:
    """`value` as an integer of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise usage(f"{what} is of type {type(value).__name__}: it is an integer, {least} or more") from None
    if not least <= number < 1 << 64:
        raise usage(f"{what} is {number}: it is an integer, {least} or more")
    return number


def _seconds(what: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise usage(f"{what} is {value!r}: it is a number of seconds") from None


def _text(what: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise usage(f"{what} is of type {type(value).__name__}: it is a string")
    return value.encode()


def _group_of(comm: Any) -> Any:
    """The communicator: by default the world. Code.UNAVAILABLE without mpi4py, Code.CONFIG with another MPI than the library's,
    and where there is one rank."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: it finds no MPI library
        raise WeightcastError(Code.UNAVAILABLE, f"mpi4py cannot be used: {error}\npip install mpi4py, or take the "
                              "distribution's python3-mpi4py") from error
    expect_same_mpi(MPI.Get_library_version())
    comm = MPI.COMM_WORLD if comm is None else comm
    if not isinstance(comm, MPI.Comm):
        raise usage(f"comm is of type {type(comm).__name__}: it is a communicator of mpi4py, such as MPI.COMM_WORLD")
    if comm.size == 1:
        raise WeightcastError(Code.CONFIG, "there is one rank, and an update group is a trainer and at least one engine rank\n"
                              "start them together: mpirun -n 2 python3 -m mpi4py PROGRAM, with the mpirun of the MPI library "
                              "that mpi4py uses")
    return comm


class _Handle:
    """What trainer and engine have in common: joining, leaving, errors."""
    _kind = ""

    def __init__(self, model: Path, comm: "Optional[MPI.Comm]", device: Device, tp: Optional[int], dp: int, slots: int,
                 transport: str, method: str, timeout_s: float, trainers: int, delta_limit: float, expert_parallel: bool,
                 quantize: str, destinations: Optional[Tensors] = None, source_layout: Optional[str] = None,
                 sources: Optional[Tensors] = None) -> None:
        self._handle: Optional[ctypes.c_void_p] = None
        if not isinstance(model, (str, os.PathLike)):
            raise usage(f"model is of type {type(model).__name__}: it is a config.json, a folder with one, or a named shape")
        self.comm: "MPI.Comm" = _group_of(comm)
        memory, ordinal = placement(device)
        options = Options(ctypes.sizeof(Options), os.fsencode(model), None, self.comm.py2f(), memory, ordinal,
                          _count("tp", tp or 0), _count("dp", dp, 1), slots, _text("transport", transport),
                          _text("method", method), _seconds("timeout_s", timeout_s))
        if destinations is not None:
            table = Table(destinations, write=True)
            options.destinations, options.destination_count = ctypes.addressof(table.entries), table.count
        options.trainers, options.delta_limit = _count("trainers", trainers, 1), delta_limit
        options.expert_parallel, options.quantize = int(expert_parallel), _text("quantize", quantize)
        if source_layout is not None:
            options.source_layout = _text("source_layout", source_layout)
        if sources is not None:
            source_table = Table(sources, write=False)
            options.sources, options.source_count = ctypes.addressof(source_table.entries), source_table.count
        handle = ctypes.c_void_p()
        check(getattr(library(), f"wc_{self._kind}_create")(options, handle))
        self._handle = handle

    def _call(self, name: str, *arguments: Any) -> None:
        if self._handle is None:
            raise WeightcastError(Code.CONFIG, f"this {type(self).__name__} is closed: make another one, on all ranks")
        status = getattr(library(), name)(self._handle, *arguments)
        check(status, status != 0 and self.lost)

    @property
    def lost(self) -> bool:
        """Whether a rank of the group is out of reach: then nothing but comm.Abort() helps."""
        return self._handle is not None and bool(getattr(library(), f"wc_{self._kind}_lost")(self._handle))

    def _destroy(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Leaves the group and frees its memory; the second time it does nothing. Engines are told when the trainer leaves.
        Code.BUSY on an engine within its serving()."""
        if self._handle is not None:
            self._destroy()
            self._handle = None


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

    WeightcastError, the same on all ranks: Code.CONFIG when ranks do not agree or the world is not trainers + tp * dp,
    Code.NO_INPUT or Code.BAD_DATA of the model's config.json, Code.UNAVAILABLE without memory, GPU or MPI; Code.USAGE of
    arguments, on this rank alone.
    """
    _kind = "trainer"

    def __init__(self, model: Path, comm: "Optional[MPI.Comm]" = None, *, device: Device = "cpu", tp: Optional[int] = None,
                 dp: int = 1, transport: Transport = "auto", method: Method = "sharded", timeout_s: float = 60.0,
                 trainers: int = 1, source_layout: Optional[Layout] = None, sources: Optional[Tensors] = None,
                 delta_limit: float = 0.0, expert_parallel: bool = False, quantize: Quantize = "none") -> None:
        """Joins the group; see the class. Collective: the other ranks make an Engine."""
        self._trainers = trainers
        super().__init__(model, comm, device, tp, dp, 0, transport, method, timeout_s, trainers, delta_limit,
                         expert_parallel, quantize, source_layout=source_layout, sources=sources)

    def __enter__(self) -> "Trainer":
        """For `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """close()"""
        self.close()

    def _destroy(self) -> None:
        library().wc_trainer_destroy(self._handle)

    def _given(self, function: str, version: int, tensors: Any, *rest: Any) -> tuple[int, Table]:
        """What is published. When it cannot be used, the other trainer ranks hear of that before this one raises it."""
        number = 0
        try:
            number = _count("version", version, 1)
            return number, Table(tensors, write=False)
        except WeightcastError:
            if self._trainers > 1 and self._handle is not None:
                with contextlib.suppress(WeightcastError):
                    self._call(function, number, None, *rest)  # refused by all
            raise

    def publish(self, version: int, tensors: Tensors) -> Update:
        """Sends all parameters as `version`, an integer higher than the last. Returns when all ranks have voted to serve it.

        `tensors`: a mapping of Hugging Face names to tensors, or pairs, such as model.state_dict(), each in the parameter's
        shape. Masters in fp32 are rounded to the model's bf16 or fp16, and so is one of these to the other. A tied head may
        be left out, or must equal the embedding. Of a DTensor this rank's part is taken where it is: nothing is gathered.
        They are read during the call only. Collective, over all trainer ranks, too; engines call receive().

        WeightcastError, with the old version served everywhere: Code.BAD_DATA with a list of the tensors that are missing,
        unknown or of another shape or dtype, and Code.USAGE of what is no tensor, on all trainer ranks, of which engines
        notice nothing; Code.BUSY naming engines that are not in receive() within `timeout_s`; Code.CONFIG of a version that
        is not higher; Code.MISMATCH, Code.UNAVAILABLE and Code.DEADLINE on all ranks."""
        outcome = Outcome()
        version, table = self._given("wc_publish", version, tensors, 1, None)
        self._call("wc_publish", version, table.entries, table.count, outcome)
        return _update_of(outcome)

    def update_parameter(self, version: int, name: str, tensor: Optional[TensorLike], empty_cache: bool = False) -> Update:
        """Sends one parameter of `version`, the seed's way: the version is served when each has been sent once. Of the
        result `version` is what engines serve then. `empty_cache`: also give back memory that is only kept for speed.
        With `quantize` a matrix makes its scales, which follow under their own name, with None as the tensor.
        Collective; engines call update_parameter_from_distributed(). Errors as those of publish(); whatever fails but with
        Code.BUSY, the version is begun anew."""
        outcome = Outcome()
        version, table = self._given("wc_update_parameter", version, [(name, tensor)], 0, None)
        self._call("wc_update_parameter", version, table.entries, int(empty_cache), outcome)
        return _update_of(outcome)

    def begin(self, version: int) -> None:
        """Opens a version, an integer higher than the last, whose tensors come one by one: put() each, then commit() or
        abort(). Local. Code.BUSY while another one is open."""
        self._call("wc_begin", _count("version", version, 1))

    def put(self, name: str, tensor: TensorLike) -> None:
        """Copies one tensor, in the shape of the parameter `name`, into the open version. Local; the tensor's memory is free
        again afterwards. Of two names that are tied the second must bring what the first did. Code.CONFIG when no version is
        open, Code.BAD_DATA when it does not fit."""
        self._call("wc_put", Table([(name, tensor)], write=False).entries)

    def commit(self) -> Update:
        """Sends the open version, as publish() does. Code.BAD_DATA listing the parameters that were not put: put() them, and
        commit again."""
        outcome = Outcome()
        self._call("wc_commit", outcome)
        return _update_of(outcome)

    def abort(self) -> None:
        """Forgets the open version, if there is one. Local."""
        self._call("wc_abort")


class Tensor:
    """An engine tensor of a served version: where it is, not a copy. Valid until serving() ends.

    `name` and `dtype` (as safetensors spells it: "BF16") and `shape`, padding included, are those of this rank's fused
    shard, `address` is its first byte, dense and in row-major order, and `device` is "cpu" or "cuda:N"."""

    def __init__(self, entry: Entry, version_owner: object) -> None:
        """Made by Engine.serving()."""
        self.name: str = entry.name.decode()
        self.dtype: str = entry.dtype.decode()
        self.shape: tuple[int, ...] = tuple(entry.shape[i] for i in range(entry.dimensions))
        self.address: int = entry.data
        self.device: str = "cpu" if entry.memory == HOST else f"cuda:{entry.device}"
        self._owner = version_owner

    def _interface(self) -> dict[str, Any]:
        typestr = next((kind for kind, name in NUMPY_DTYPES.items() if name == self.dtype), "<i2")  # bf16 as bits
        return {"shape": self.shape, "typestr": typestr, "data": (self.address, False), "version": 3}

    def numpy(self) -> "numpy.ndarray[Any, Any]":
        """As a read-only numpy array on the host, without a copy; bf16 as int16. Code.USAGE of one on a GPU."""
        import numpy
        if self.device != "cpu":
            raise usage(f"{self.name} is on {self.device}: use torch()")
        self.__array_interface__ = self._interface()
        array = numpy.asarray(self)
        array.flags.writeable = False
        return array

    def torch(self) -> "torch.Tensor":
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


class Served(dict[str, Tensor]):
    """The engine tensors of one `version`, by name: fused and sharded, as `weightcast plan` lists them."""
    version: int = 0


class Engine(_Handle):
    """A receiving rank; arguments as for Trainer (who has which weights is the trainer ranks' to say). Every rank of an
    engine is one of these, and calls what it calls.

    `destinations`: this rank's own tensors (a mapping, such as model.state_dict()), each the shard of a parameter or a
    whole fused engine tensor, in the model's dtype, together all of them; what does not fit is refused here, on all ranks
    (Code.CONFIG, with a list). A tied head with memory of its own is written, too. receive() overwrites them when all ranks
    have verified and voted; whatever fails, they hold the old version. Without destinations the engine keeps two versions
    itself: serving().
    """
    _kind = "engine"

    def __init__(self, model: Path, comm: "Optional[MPI.Comm]" = None, *, destinations: Optional[Tensors] = None,
                 device: Device = "cpu", tp: Optional[int] = None, dp: int = 1, transport: Transport = "auto",
                 method: Method = "sharded", timeout_s: float = 60.0, trainers: int = 1, delta_limit: float = 0.0,
                 expert_parallel: bool = False, quantize: Quantize = "none") -> None:
        """Joins the group; see the class. Collective: the trainer's ranks make a Trainer."""
        self._destinations = destinations
        super().__init__(model, comm, device, tp, dp, 2 if destinations is None else 1, transport, method, timeout_s,
                         trainers, delta_limit, expert_parallel, quantize, destinations)

    def __enter__(self) -> "Engine":
        """For `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """close()"""
        self.close()

    def _destroy(self) -> None:
        check(library().wc_engine_destroy(self._handle))

    def receive(self, wait_s: Optional[float] = None) -> Optional[Update]:
        """Takes part in the trainer's next update, once the trainer begins it: waits as long as that takes, or up to
        `wait_s` seconds (then Code.BUSY, and nothing is lost). None: the trainer has left, and there will be no other.

        When it returns an Update, the destinations, or what serving() gives, are the new version, on all ranks. When it
        raises WeightcastError, they are the old one, on all ranks: call it again, unless error.lost. Collective."""
        outcome = Outcome()
        wait = -1.0 if wait_s is None else max(_seconds("wait_s", wait_s), 0.0)
        if self._destinations is None:
            self._call("wc_receive", wait, outcome)
        else:
            table = Table(self._destinations, write=True)
            self._call("wc_receive_into", wait, table.entries, table.count, outcome)
        return None if outcome.closed else _update_of(outcome)

    def update_parameter_from_distributed(self, name: str, dtype: str, shape: Sequence[int],
                                          empty_cache: bool = False) -> Update:
        """Receives one parameter that the trainer sends by update_parameter(), into the engine's own memory; `dtype` (as
        safetensors spells it: "BF16") and `shape` are what is expected of the whole parameter (else Code.CONFIG, on all
        ranks). Code.BUSY when the trainer has not begun within `timeout_s`. Of the result `version` is what is served now.
        Collective."""
        try:
            extents = [_count("an extent", extent) for extent in shape]
        except TypeError:
            raise usage(f"shape is of type {type(shape).__name__}: it is a tuple of the parameter's extents") from None
        outcome = Outcome()
        self._call("wc_update_parameter_from_distributed", _text("name", name), _text("dtype", dtype),
                   (ctypes.c_uint64 * max(len(extents), 1))(*extents), len(extents), int(empty_cache), outcome)
        return _update_of(outcome)

    def get_weights_by_parameter_name(self, name: str, truncate_size: int = 10) -> "numpy.ndarray[Any, Any]":
        """The first `truncate_size` rows of a parameter under its Hugging Face name as it is served, unfused and from all
        shards: a numpy array of float32, one row after the other, in full width. The same on all ranks of the engine.
        Collective over them. Code.USAGE of an unknown name, Code.BUSY when nothing is served."""
        import numpy
        count, version = ctypes.c_size_t(), ctypes.c_uint64()
        arguments = _text("name", name), _count("truncate_size", truncate_size)
        self._call("wc_get_weights_by_parameter_name", *arguments, None, 0, count, version)
        values = numpy.empty(count.value, numpy.float32)
        self._call("wc_get_weights_by_parameter_name", *arguments, values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
                   values.size, count, version)
        return values

    @property
    def version(self) -> int:
        """What is served, or what the destinations hold; 0: nothing yet. Local."""
        version = ctypes.c_uint64()
        self._call("wc_engine_version", version)
        return version.value

    @contextlib.contextmanager
    def serving(self) -> Iterator[Served]:
        """A Served of the current version, which stays as it is until the end of the `with`, whatever is received
        meanwhile. Any thread; local. Code.BUSY when nothing is served."""
        pin, version, count, entry = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_size_t(), Entry()
        self._call("wc_pin_served", pin)
        try:
            served = Served()
            check(library().wc_pin_version(pin, version))
            served.version = version.value
            self._call("wc_engine_tensor_count", count)
            for index in range(count.value):
                entry.size = ctypes.sizeof(Entry)
                self._call("wc_engine_tensor", pin, index, entry)
                tensor = Tensor(entry, self)
                served[tensor.name] = tensor
            yield served
        finally:
            library().wc_unpin(pin)

    def digest(self) -> str:
        """Digest of the whole model, 32 hexadecimal digits, computed now from what the served slots of all ranks of this
        engine hold. Collective over them. Code.BUSY when nothing is served."""
        text = ctypes.create_string_buffer(33)
        self._call("wc_engine_digest", text)
        return text.value.decode()

    def scrub(self) -> None:
        """Compares every byte that the served slots of all ranks of this engine hold with what was verified when their
        version was committed. Code.MISMATCH names a parameter whose memory has changed since: publish a whole version.
        Collective over them; without the trainer. Code.BUSY when nothing is served."""
        self._call("wc_scrub")
