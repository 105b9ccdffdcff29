#!/usr/bin/env python3
"""A tied head with memory of its own, what is judged when the engine is made, and tables of programs that know no strides:
tools/python/weightcast with numpy and mpi4py, one trainer and one engine. Exit code 77: a package is not there.

usage: mpiexec -n 2 python3 python_tied.py
"""

import ctypes
import json
import pathlib
import tempfile

import update_group
from update_group import EMBEDDING, HEAD, NORM, TRAINER, random_masters, refuses, shapes_of, to_bf16

import numpy as np
import weightcast
from weightcast._library import Entry
from weightcast._tensors import Table

SHAPES = shapes_of(1, tied=True)
Code = weightcast.Code


def masters(version):
    return random_masters(SHAPES, version)


def join(**options):
    return update_group.join(CONFIG, **options)


def sources():
    """Equal bytes are taken, also when one is rounded to the other; different ones are refused with both names."""
    with join() as end:
        if not TRAINER:
            for version in range(1, 6):
                assert end.receive().version == version
                with end.serving() as served:
                    held = served[EMBEDDING].numpy().view(np.uint16)[:200]
                    assert np.array_equal(held, to_bf16(masters(version)[EMBEDDING])), version
            return
        whole = masters(1)
        different = whole[EMBEDDING].copy()
        different[199, 63] += 1
        refuses(Code.BAD_DATA, (HEAD, EMBEDDING, "differs"), lambda: end.publish(1, whole | {HEAD: different}))
        end.publish(1, whole | {HEAD: whole[EMBEDDING].copy()})
        whole = masters(2)
        end.publish(2, whole | {HEAD: (to_bf16(whole[EMBEDDING]), "BF16")})
        whole = masters(3)
        end.publish(3, {HEAD if name == EMBEDDING else name: value for name, value in whole.items()})
        for version, names in ((4, (EMBEDDING, HEAD)), (5, (HEAD, EMBEDDING))):
            whole = masters(version)
            end.begin(version)
            for name in SHAPES:
                if name != EMBEDDING:
                    end.put(name, whole[name])
            end.put(names[0], whole[EMBEDDING])
            refuses(Code.BAD_DATA, (*names, "differs"), lambda: end.put(names[1], np.flipud(whole[EMBEDDING])))
            end.put(names[1], np.asfortranarray(whole[EMBEDDING]))
            assert end.commit().version == version


def destinations():
    """A head of its own is written, too; mistakes are found by making the engine, on both ranks."""
    arrays = {name: np.zeros(shape, np.uint16) for name, shape in (SHAPES | {HEAD: SHAPES[EMBEDDING]}).items()}

    def table(**changes):
        return {name: (array, "BF16") for name, array in (arrays | changes).items()}

    fused = np.zeros((200, 128), np.uint16)
    for texts, wrong in (((NORM, "[63]"), table(**{NORM: np.zeros(63, np.uint16)})),
                         ((NORM, "share memory"), table(**{NORM: np.lib.stride_tricks.as_strided(fused, (64,), (0,))})),
                         ((HEAD, EMBEDDING, "overlaps"), table(**{EMBEDDING: fused[:, :64], HEAD: fused[:, 63:127]})),
                         (("no.such.weight",), table(**{"no.such.weight": np.zeros(4, np.uint16)})),
                         ((f"{NORM} is missing",), {name: pair for name, pair in table().items() if name != NORM})):
        refuses(Code.CONFIG, texts, lambda: join(**({} if TRAINER else {"destinations": wrong})))
    if not TRAINER:  # before anybody else is asked
        frozen = np.zeros(64, np.uint16)
        frozen.flags.writeable = False
        refuses(Code.USAGE, (NORM, "read-only"), lambda: join(destinations=table(**{NORM: frozen})))
    good = table(**{EMBEDDING: fused[:, 64:], HEAD: fused[:, 63::-1]})
    with join(**({} if TRAINER else {"destinations": good})) as end:
        for version in (1, 2):
            if TRAINER:
                end.publish(version, masters(version))
                continue
            end.receive()
            whole = {name: to_bf16(values) for name, values in masters(version).items()}
            for name, (array, _) in good.items():
                assert np.array_equal(array, whole[EMBEDDING if name == HEAD else name]), name


def programs_without_strides():
    """Tables of wc_tensors that end before the strides, or before the offsets, as those of earlier headers did."""
    for missing in (3, 2):
        programs_that_lack(missing)


def programs_that_lack(missing):
    class Old(ctypes.Structure):
        _fields_ = Entry._fields_[:-missing]

    with join() as end:
        if not TRAINER:
            assert end.receive().version == 1
            with end.serving() as served:
                assert np.array_equal(served[NORM].numpy().view(np.uint16), to_bf16(masters(1)[NORM]))
            return
        table = Table(masters(1), write=False)
        old = (Old * table.count)(*(Old(ctypes.sizeof(Old), *(getattr(entry, name) for name, _ in Old._fields_[1:]))
                                    for entry in table.entries))
        old[3].size = ctypes.sizeof(Entry)
        entries = ctypes.cast(old, ctypes.POINTER(Entry))
        refuses(Code.USAGE, ("different sizes",), lambda: end._call("wc_publish", 1, entries, table.count, None))
        old[3].size = ctypes.sizeof(Old)
        end._call("wc_publish", 1, entries, table.count, None)


with tempfile.TemporaryDirectory() as folder:
    CONFIG = pathlib.Path(folder) / "config.json"
    CONFIG.write_text(json.dumps(dict(
        model_type="llama", num_hidden_layers=1, hidden_size=64, intermediate_size=96, num_attention_heads=8,
        num_key_value_heads=2, head_dim=8, vocab_size=200, tie_word_embeddings=True, torch_dtype="bfloat16")))
    update_group.run(sources, destinations, programs_without_strides)
