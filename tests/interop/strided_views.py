#!/usr/bin/env python3
"""Random views as sources and as destinations, through tools/python/weightcast on two ranks: each is right, or refused
by name because elements of it share memory with others. Every view is made twice, of numbers and of their positions, so
that which elements it has is never taken from strides. Exit code 77: a package is not there.

usage: mpiexec -n 2 python3 strided_views.py [numpy|torch]       WEIGHTCAST_VIEWS: how many of each end (240)
"""

import os
import random
import sys
import time
import traceback

from update_group import COMM, TRAINER, shapes_of, to_bf16

import numpy as np
import weightcast
from weightcast._tensors import Table

KIND = sys.argv[1] if len(sys.argv) > 1 else "numpy"
if KIND == "torch":
    try:
        import torch
    except ImportError as error:
        print(f"skipped: {error} (WEIGHTCAST_TORCH_PYTHON in tests/README.md names a Python that has it)")
        sys.exit(77)
    torch.set_num_threads(1)

VIEWS = int(os.environ.get("WEIGHTCAST_VIEWS", "240"))
SHAPES = shapes_of(3)


class Numpy:
    """How numpy makes arrays and views."""
    dtypes = ("F32", "F16", "BF16")
    backward = True

    @staticmethod
    def make(dtype, values):  # BF16 as its bits
        return values.astype({"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[dtype])

    @staticmethod
    def give(dtype, view):
        return (view, "BF16") if dtype == "BF16" else view

    positions = staticmethod(np.arange)
    numbers = staticmethod(np.asarray)

    @staticmethod
    def expand(base, shape):  # broadcast_to(), but not read-only
        return np.lib.stride_tricks.as_strided(base, shape, np.broadcast_to(base, shape).strides)

    @staticmethod
    def strided(base, shape, strides):
        size = base.itemsize
        return np.lib.stride_tricks.as_strided(base, shape, tuple(size * stride for stride in strides))

    @staticmethod
    def transpose(base):
        return base.T


class Torch:
    """The same of torch, whose strides are never negative."""
    dtypes = ("F32", "F16", "BF16")
    backward = False

    @staticmethod
    def make(dtype, values):
        if dtype == "BF16":
            return torch.from_numpy(values.astype(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(values.astype({"F32": np.float32, "F16": np.float16}[dtype]))

    give = staticmethod(lambda dtype, view: view)
    positions = staticmethod(lambda count: torch.arange(count))
    expand = staticmethod(lambda base, shape: base.expand(shape))

    @staticmethod
    def numbers(view):
        bits = view.view(torch.int16) if view.dtype == torch.bfloat16 else view
        return bits.numpy().view(np.uint16) if view.dtype == torch.bfloat16 else bits.numpy()

    @staticmethod
    def strided(base, shape, strides):
        return base.as_strided(shape, strides)

    @staticmethod
    def transpose(base):
        return base.t()


LIBRARY = {"numpy": Numpy, "torch": Torch}[KIND]


def part(choose, extent):
    """(size of an allocation, slice of it that has this extent), perhaps backwards."""
    step = choose.choice((1, 1, 2, 3))
    first, behind = choose.randrange(4), choose.randrange(4)
    size = first + (extent - 1) * step + 1 + behind
    if LIBRARY.backward and choose.random() < 0.4:
        last = first + (extent - 1) * step
        return size, slice(last, first - 1 if first > 0 else None, -step)
    return size, slice(first, first + (extent - 1) * step + 1, step)


def sliced(choose, shape):
    """A slice of something larger, transposed or not."""
    turned = len(shape) == 2 and choose.random() < 0.5
    parts = [part(choose, extent) for extent in (shape[::-1] if turned else shape)]
    sizes, slices = tuple(size for size, _ in parts), tuple(cut for _, cut in parts)

    def view(flat):
        result = flat.reshape(sizes)[slices]
        return LIBRARY.transpose(result) if turned else result
    return int(np.prod(sizes)), view


def of_three_dimensions(choose, shape):
    """One index of a dimension more: a part of an interleaved fused tensor."""
    count = choose.randrange(2, 5)
    where, index = choose.randrange(len(shape) + 1), choose.randrange(count)
    sizes = (*shape[:where], count, *shape[where:])
    cut = (*[slice(None)] * where, index)
    return int(np.prod(sizes)), lambda flat: flat.reshape(sizes)[cut]


def folded(choose, shape):
    """The same elements in another shape, before or after a step."""
    total = int(np.prod(shape))
    step = choose.choice((1, 2, -1, -2)) if LIBRARY.backward else choose.choice((1, 2))
    if step < 0 and len(shape) == 2:
        return total * -step, lambda flat: LIBRARY.strided(flat[total * -step - 1:], shape, (step * shape[1], step))
    return total * abs(step), lambda flat: flat[::step].reshape(shape) if abs(step) == 1 else \
        LIBRARY.strided(flat if step > 0 else flat[total * -step - 1:], shape,
                        [step * stride for stride in ((shape[1], 1) if len(shape) == 2 else (1,))])


def lattice(choose, shape):
    """Strides that nobody would choose; elements may meet."""
    limit = choose.choice((3, 70, 200))
    strides = [choose.randrange(limit) for _ in shape]
    size = sum((extent - 1) * stride for extent, stride in zip(shape, strides)) + 1
    return size, lambda flat: LIBRARY.strided(flat, shape, strides)


def expanded(choose, shape):
    """One element, row or column many times."""
    kept = [choose.random() < 0.5 for _ in shape]
    small = tuple(extent if keep else 1 for extent, keep in zip(shape, kept))
    return int(np.prod(small)), lambda flat: LIBRARY.expand(flat.reshape(small), shape)


def fused(choose, names, views):
    """Columns of one allocation for all of these, which have as many rows: side by side, in turn, or overlapping."""
    rows, widths = SHAPES[names[0]][0], [SHAPES[name][1] for name in names]
    if choose.random() < 0.5 and len(set(widths)) == 1:
        cuts = [slice(i, None, len(names)) for i in range(len(names))]
    else:
        cuts = [slice(sum(widths[:i]), sum(widths[:i + 1])) for i in range(len(names))]
    if choose.random() < 0.15:
        cuts[-1] = slice(cuts[-1].start - 1, None if cuts[-1].stop is None else cuts[-1].stop - 1, cuts[-1].step)
    total = sum(widths)
    turn = LIBRARY.backward and choose.random() < 0.5
    for name, cut in zip(names, cuts):
        views[name] = lambda flat, cut=cut: flat.reshape(rows, total)[::-1 if turn else 1, cut]
    return rows * total


def make_table(choose, wild):
    """Allocations: a list of (dtype, elements, {name: how to see it}). `wild`: elements may share memory."""
    names, result = list(SHAPES), []
    choose.shuffle(names)
    if choose.random() < 0.7:
        group = [f"model.layers.{choose.randrange(3)}.{name}.weight"
                 for name in choose.choice((("self_attn.q_proj", "self_attn.o_proj"), ("mlp.gate_proj", "mlp.up_proj"),
                                            ("self_attn.k_proj", "self_attn.v_proj"),
                                            ("mlp.down_proj", "self_attn.q_proj")))]
        views = {}
        result.append((fused(choose, group, views), views))
        names = [name for name in names if name not in group]
    kinds = [sliced, sliced, of_three_dimensions, folded]
    for name in names:
        kind = choose.choice((lattice, expanded)) if choose.random() < wild else choose.choice(kinds)
        size, view = kind(choose, SHAPES[name])
        result.append((size, {name: view}))
    return result


def shared(table):
    """Names of tensors with elements that share memory, with each other or with another's."""
    result = set()
    for size, views in table:
        holders = {}
        for name, view in views.items():
            positions = np.asarray(view(LIBRARY.positions(size))).ravel()
            assert positions.shape == (int(np.prod(SHAPES[name])),)
            if len(np.unique(positions)) != len(positions):
                result.add(name)
            holders[name] = set(positions.tolist())
        for name in views:
            if any(holders[name] & holders[other] for other in views if other != name):
                result.add(name)
    return result


def publish(trainer, choose, version, table):
    numbers = np.random.default_rng(version)
    tensors = {}
    for size, views in table:
        dtype = choose.choice(LIBRARY.dtypes)
        values = numbers.integers(0, 0x10000, size) if dtype == "BF16" else numbers.standard_normal(size)
        base = LIBRARY.make(dtype, values)
        tensors |= {name: LIBRARY.give(dtype, view(base)) for name, view in views.items()}
    trainer.publish(version, tensors)


def expected(choose, version, table):
    """What publish() publishes, by what its allocations hold at the views' positions."""
    numbers = np.random.default_rng(version)
    result = {}
    for size, views in table:
        dtype = choose.choice(LIBRARY.dtypes)
        values = numbers.integers(0, 0x10000, size) if dtype == "BF16" else numbers.standard_normal(size)
        sent = values.astype(np.uint16) if dtype == "BF16" else \
            to_bf16(values.astype(np.float32 if dtype == "F32" else np.float16))
        result |= {name: sent[np.asarray(view(LIBRARY.positions(size)))] for name, view in views.items()}
    return result


def check(table, bases, weights):
    """The allocations hold the weights at the views' positions, and 0x7777 elsewhere."""
    for (size, views), base in zip(table, bases):
        wanted = np.full(size, 0x7777, np.uint16)
        for name, view in views.items():
            wanted[np.asarray(view(LIBRARY.positions(size)))] = weights[name]
        held = LIBRARY.numbers(base)
        assert np.array_equal(held, wanted), list(views)


def run(round_number):
    """One update; how many destinations were refused."""
    choose = random.Random(f"{KIND} {round_number}")
    sources, table = make_table(choose, 0.2), make_table(choose, choose.choice((0, 0, 0.03)))
    bad, state = shared(table), choose.getstate()
    bases, refused = [], None
    try:
        if TRAINER:
            with weightcast.Trainer("tiny", timeout_s=20) as end:
                publish(end, choose, round_number, sources)
        else:
            bases = [LIBRARY.make("BF16", np.full(size, 0x7777)) for size, _ in table]
            destinations = {name: LIBRARY.give("BF16", view(base))
                            for (_, views), base in zip(table, bases) for name, view in views.items()}
            with weightcast.Engine("tiny", timeout_s=20, destinations=destinations) as end:
                assert end.receive().version == round_number
                assert end.receive() is None
            choose.setstate(state)
            check(table, bases, expected(choose, round_number, sources))
    except weightcast.WeightcastError as error:
        refused = error
    assert (refused is not None) == bool(bad), (bad, refused)
    if refused is not None:
        assert refused.code == weightcast.Code.CONFIG, refused.message
        named = {name for name in SHAPES if f"{name} has elements that share" in refused.message
                 or f"{name} overlaps" in refused.message or f"of the table, {name}" in refused.message}
        assert named == bad, (named, bad)
        assert all((LIBRARY.numbers(base) == 0x7777).all() for base in bases)
    return len(bad)


def refused_by_torch():
    """What a torch tensor may be that its memory does not show."""
    def refuses(value, *texts, ways=(False, True)):
        for write in ways:
            try:
                Table([("model.norm.weight", value)], write)
            except weightcast.WeightcastError as error:
                assert error.code == weightcast.Code.USAGE, error.code
                assert all(text in error.message for text in ("model.norm.weight", *texts)), error.message
            else:
                raise AssertionError(f"not refused: {texts}")

    refuses(torch.ones(64, dtype=torch.complex64).conj().imag, "negated")
    freed = torch.ones(128)[64:]
    freed.untyped_storage().resize_(0)
    refuses(freed, "freed")
    refuses(torch.ones(64, device="meta"), "meta")
    refuses(torch.ones(64).to_sparse(), "sparse")
    refuses((torch.ones(64, dtype=torch.float16), "BF16"), "not BF16")
    try:
        from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
    except ImportError:  # before torch 2.5
        return
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    for placement in (Replicate(), Shard(0)):
        whole = distribute_tensor(torch.ones(64), mesh, [placement])
        refuses(whole, "DTensor", "to_local()", ways=(True,))
        entry = Table([("model.norm.weight", whole)], False).entries[0]
        assert (entry.data, entry.shape[0], entry.offsets[0], entry.full_shape[0]) == (whole.to_local().data_ptr(), 64, 0, 64)
    partial = DTensor.from_local(torch.ones(64), mesh, [Partial()])
    refuses(partial, "Partial", "redistribute", ways=(False,))
    try:
        from torch.distributed.tensor.placement_types import _StridedShard
        strided = DTensor.from_local(torch.ones(64), mesh, [_StridedShard(0, split_factor=2)], run_check=False)
        refuses(strided, "_StridedShard", "redistribute", ways=(False,))
    except ImportError:
        pass
    torch.distributed.destroy_process_group()


begin, number, right, refusals = time.time(), 0, 0, 0
try:
    if KIND == "torch" and TRAINER:
        refused_by_torch()
    while right < VIEWS:
        number += 1
        bad = run(number)
        right += 0 if bad else len(SHAPES)
        refusals += bad
        COMM.barrier()
    assert refusals or VIEWS < 200
except BaseException:  # the other rank waits for this one
    traceback.print_exc()
    print(f"in round {number}", flush=True)
    COMM.Abort(1)
if TRAINER:
    print(f"{KIND}: {right} views as sources right, {right} as destinations right, {refusals} more refused by name; "
          f"{number} updates in {time.time() - begin:.1f} s")
