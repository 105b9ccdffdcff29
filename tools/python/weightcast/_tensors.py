"""Tensors of any library, as the C interface takes them: where they are, without copies."""

import ctypes
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Optional, Protocol, Union

from ._library import CUDA, HOST, Entry, usage


class TorchTensor(Protocol):
    """A torch tensor, a DTensor or a parameter."""

    def data_ptr(self) -> int: ...


class Array(Protocol):
    """A numpy array, and whatever else is on the host."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


class CudaArray(Protocol):
    """An array of cupy, numba, ... on a GPU."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


AnyTensor = Union[TorchTensor, Array, CudaArray]
# With a name of safetensors for elements that a library has no dtype of: (array of uint16, "BF16").
TensorLike = Union[AnyTensor, tuple[AnyTensor, str]]
# By name: a mapping such as model.state_dict(), or pairs such as model.named_parameters().
Tensors = Union[Mapping[str, TensorLike], Iterable[tuple[str, TensorLike]]]

# What torch and numpy call the dtypes of safetensors.
_TORCH_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64",
                 "float8_e4m3fn": "F8_E4M3"}
NUMPY_DTYPES = {"<f2": "F16", "<f4": "F32", "<f8": "F64"}
_SIZES = {"F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4, "F64": 8}


class Where(NamedTuple):
    """Where the elements of a tensor are."""
    shape: tuple[int, ...]
    strides_bytes: Optional[tuple[int, ...]]  # None: dense
    address: Optional[int]
    memory: int
    device: int


def _local_part(name: str, value: Any) -> tuple[Any, list[int], tuple[int, ...]]:
    """(what this process has of a DTensor, offsets, full extents). Nothing is communicated."""
    full, coordinate = tuple(value.shape), value.device_mesh.get_coordinate()
    offsets, shape = [0] * len(full), list(full)
    for index, placement in enumerate(value.placements):
        if placement.is_replicate():
            continue
        if type(placement).__name__ != "Shard" or placement.dim > 1:  # Partial, _StridedShard, ...
            raise usage(f"{name} is a DTensor with the placement {placement!r}: Replicate, Shard(0) and Shard(1) are "
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
        raise usage(f"{name} is a DTensor of which this process has {tuple(local.shape)}, where {value.placements} "
                    f"says {tuple(shape)}")
    return local, offsets, full


def _look_at_torch(name: str, value: Any) -> tuple[str, int, Where]:
    """(type, bytes of an element, where it is) of a torch tensor."""
    layout = str(value.layout)
    if layout != "torch.strided" or value.device.type not in ("cpu", "cuda"):
        raise usage(f"{name} is a torch tensor of layout {layout} on {value.device}: strided ones on cpu or cuda are "
                    "taken")
    if value.is_neg() or value.is_conj():  # a view whose memory holds something else
        raise usage(f"{name} is a torch tensor that is negated or conjugated when it is read: give it .resolve_neg() "
                    "and .resolve_conj()")
    size, shape = value.element_size(), tuple(value.shape)
    reach = value.storage_offset() + sum((extent - 1) * stride for extent, stride in zip(shape, value.stride())) + 1
    if 0 not in shape and reach * size > value.untyped_storage().nbytes():  # FSDP takes it away and brings it back
        raise usage(f"{name} is a torch tensor whose memory was freed or never there: gather it first")
    memory, device = (CUDA, value.device.index) if value.device.type == "cuda" else (HOST, 0)
    strides = tuple(size * stride for stride in value.stride())
    return str(value.dtype).rpartition(".")[2], size, Where(shape, strides, value.data_ptr(), memory, device)


def _look_at_array(name: str, value: Any, write: bool) -> tuple[str, int, Where]:
    """The same of an array of another library; strides are None when it is dense."""
    cuda = getattr(value, "__cuda_array_interface__", None)
    interface = cuda or getattr(value, "__array_interface__", None)
    if interface is None or not isinstance(interface.get("data"), tuple):
        raise usage(f"{name} is of type {type(value).__name__}: a torch tensor, a numpy array or anything with "
                    "__cuda_array_interface__ is taken")
    kind, (address, read_only) = interface["typestr"], interface["data"]
    if kind[0] == ">":
        raise usage(f"{name} has big-endian elements, of type {kind}: little-endian ones are taken")
    if interface.get("mask") is not None or hasattr(value, "filled"):
        raise usage(f"{name} is masked: give its data")
    if write and read_only:
        raise usage(f"{name} cannot be a destination: it is read-only")
    memory, device = (CUDA, _device_of(value)) if cuda else (HOST, 0)
    return kind, int(kind[2:] or 0), Where(interface["shape"], interface.get("strides"), address, memory, device)


def _look_at(name: str, value: Any, write: bool) -> tuple[str, Where]:
    """(dtype, where it is) of a tensor of any library."""
    explicit: Optional[str] = None
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str):
        value, explicit = value
    torch = hasattr(value, "data_ptr")
    kind, size, where = _look_at_torch(name, value) if torch else _look_at_array(name, value, write)
    known = (_TORCH_DTYPES if torch else NUMPY_DTYPES).get(kind)
    bits = kind.startswith(("int", "uint")) if torch else kind[1] in "iuV"  # what a dtype can be said of
    dtype = explicit or known
    if dtype is None or _SIZES.get(dtype, size) != size or (explicit not in (None, known) and not bits):
        raise usage(f"{name} has elements of type {kind}, which is not {dtype or 'a known floating type'}"
                    + ("" if explicit else '; for bf16 in numpy give (array of uint16, "BF16")'))
    return dtype, where


def _device_of(value: Any) -> int:
    """The GPU of an array that has __cuda_array_interface__ only."""
    device = getattr(value, "device", None)  # cupy
    return int(getattr(device, "id", 0))


def _pairs(tensors: Any) -> list[tuple[str, Any]]:
    """Names and values, of a mapping or of pairs."""
    try:
        pairs = [(name, value) for name, value in (tensors.items() if hasattr(tensors, "items") else tensors)]
    except (TypeError, ValueError) as error:
        raise usage(f"tensors are of type {type(tensors).__name__}: a mapping of names to tensors is taken, such as "
                    "model.state_dict(), or pairs, such as model.named_parameters()") from error
    for name, _ in pairs:
        if not isinstance(name, str):
            raise usage(f"the name of a tensor is of type {type(name).__name__}: names are those of Hugging Face, such as "
                        "model.norm.weight")
    for wrapper in ("module.", "_orig_mod."):  # DistributedDataParallel, torch.compile
        if pairs and all(name.startswith(wrapper) for name, _ in pairs):
            raise usage(f"all names begin with {wrapper}: these are of a wrapper. Give the tensors of the model in it, such as "
                        f"model.{wrapper}state_dict()")
    return pairs


class Table:
    """Tensors as the C interface takes them; lives as long as the call. `write`: they are destinations."""

    def __init__(self, tensors: Any, write: bool) -> None:
        pairs = _pairs(tensors)
        self.entries = (Entry * max(len(pairs), 1))()
        self.count = len(pairs)
        self._alive: list[Any] = [pairs]  # whose memory is pointed to
        gpus: set[int] = set()
        for entry, (name, value) in zip(self.entries, pairs):
            bare = value[0] if isinstance(value, tuple) and len(value) == 2 else value
            if hasattr(bare, "full_tensor"):  # a DTensor: its memory is a part of it
                if write:
                    raise usage(f"{name} is a {type(bare).__name__}: a destination is this engine rank's own shard, "
                                f"a plain tensor, such as {name}.to_local()")
                local, offsets, full = _local_part(name, bare)
                value = local if bare is value else (local, value[1])
                entry.offsets = (ctypes.c_uint64 * max(len(full), 1))(*offsets)
                entry.full_shape = (ctypes.c_uint64 * max(len(full), 1))(*full)
                self._alive.append(local)
            if value is None:  # scales that are there already
                dtype, where = "F32", Where((1,), None, None, HOST, 0)
            else:
                dtype, where = _look_at(name, value, write)
            entry.size, entry.name, entry.dtype = ctypes.sizeof(Entry), name.encode(), dtype.encode()
            entry.shape = (ctypes.c_uint64 * max(len(where.shape), 1))(*where.shape)
            entry.dimensions, entry.data = len(where.shape), where.address
            if where.strides_bytes:
                entry.strides_bytes = (ctypes.c_int64 * len(where.strides_bytes))(*where.strides_bytes)
            entry.memory, entry.device = where.memory, where.device
            if where.memory == CUDA:
                gpus.add(where.device)
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            for gpu in gpus:
                torch.cuda.synchronize(gpu)  # what writes or reads these tensors is done


def placement(device: object) -> tuple[int, int]:
    """(memory, device) of "cpu", "cuda", "cuda:1" or a torch.device."""
    kind, _, ordinal = str(device).partition(":")
    if kind == "cpu" and not ordinal:
        return HOST, 0
    if kind != "cuda" or (ordinal and not ordinal.isdigit()):
        raise usage(f'there is no device {device}: it is "cpu", "cuda" or "cuda:N"')
    if ordinal:
        return CUDA, int(ordinal)
    torch = sys.modules.get("torch")
    return CUDA, torch.cuda.current_device() if torch is not None and torch.cuda.is_available() else 0
