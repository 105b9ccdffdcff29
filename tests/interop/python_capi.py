#!/usr/bin/env python3
"""tools/python/weightcast with numpy and mpi4py, under mpiexec: rank 0 publishes the model `tiny`, the other ranks are
its engine. Exit code 77: numpy or mpi4py is not there.

usage: mpiexec -n 2 python3 python_capi.py
"""

from update_group import COMM, MPI, TRAINER, join, random_masters, refuses, run, shapes_of, to_bf16

import numpy as np
import weightcast
from weightcast._tensors import Table

TP, TP_RANK = COMM.size - 1, COMM.rank - 1
LAYERS = 3
SHAPES = shapes_of(LAYERS)


def masters(version):
    return random_masters(SHAPES, version)


def shard(name, whole):
    """What this engine rank holds of a parameter."""
    part = slice(TP_RANK * whole.shape[0] // TP, (TP_RANK + 1) * whole.shape[0] // TP)
    if name.endswith("norm.weight"):
        return whole
    if name in ("model.embed_tokens.weight", "lm_head.weight"):  # padded to a multiple of 64
        rows = 256 // TP
        return whole[TP_RANK * rows:(TP_RANK + 1) * rows]
    if "o_proj" in name or "down_proj" in name:
        columns = whole.shape[1] // TP
        return whole[:, TP_RANK * columns:(TP_RANK + 1) * columns]
    return whole[part]


def engines_own_memory():
    with join("tiny") as end:
        for version in (1, 2):
            if TRAINER:
                update = end.publish(version, masters(version))  # rounded to bf16
                digests = COMM.bcast(update.digest)
                assert update.version == version and update.egress_bytes > 0 and update.total_s > 0
                continue
            if version == 1:
                refuses(weightcast.Code.BUSY, "serves no version", lambda: end.serving().__enter__())
            update = end.receive()
            digests = COMM.bcast(None)
            assert end.version == update.version == version and update.digest == digests == end.digest()
            end.scrub()
            expected = {name: to_bf16(values) for name, values in masters(version).items()}
            with end.serving() as weights:
                assert weights.version == version
                for layer in range(LAYERS):
                    fused = [shard(name, expected[name]) for name in
                             (f"model.layers.{layer}.self_attn.{part}_proj.weight" for part in "qkv")]
                    held = weights[f"model.layers.{layer}.self_attn.qkv_proj.weight"]
                    assert held.dtype == "BF16" and held.device == "cpu"
                    assert np.array_equal(held.numpy().view(np.uint16), np.concatenate(fused))
                assert np.array_equal(weights["model.norm.weight"].numpy().view(np.uint16),
                                      expected["model.norm.weight"])
        if TRAINER:
            end.close()
        else:
            assert end.receive() is None and end.receive() is None


def the_seeds_verbs():
    """One parameter at a time, and a look at the first rows."""
    expected = {name: to_bf16(values) for name, values in masters(2).items()}
    with join("tiny") as end:
        for version in (1, 2):
            names = sorted(masters(version))
            for name in names:
                if TRAINER:
                    update = end.update_parameter(version, name, masters(version)[name])
                else:
                    update = end.update_parameter_from_distributed(name, "BF16", masters(version)[name].shape)
                assert update.version == (version if name == names[-1] else version - 1)
        if TRAINER:
            return
        for name in ("model.norm.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"):
            rows = end.get_weights_by_parameter_name(name, 3)
            assert rows.dtype == np.float32
            assert np.array_equal((rows.view(np.uint32) >> 16).astype(np.uint16), expected[name][:3].ravel())
        refuses(weightcast.Code.USAGE, "no parameter nonsense", lambda: end.get_weights_by_parameter_name("nonsense"))


def destinations():
    """Into arrays of the caller: what is refused, what is strided, what stays."""
    arrays, padded = {}, {}
    if not TRAINER:
        for name, shape in SHAPES.items():
            part = shard(name, np.zeros(shape, np.uint16))
            if "mlp.up_proj" in name:  # rows of a wider array
                padded[name] = np.full((part.shape[0], part.shape[1] + 5), 7, np.uint16)
                arrays[name] = padded[name][:, :part.shape[1]]
            else:
                arrays[name] = np.zeros(part.shape, np.uint16)
    table = {name: (array, "BF16") for name, array in arrays.items()}

    def expect_held(version):
        whole = {name: to_bf16(values) for name, values in masters(version).items()}
        for name, array in arrays.items():
            assert np.array_equal(array, shard(name, whole[name])), name
        assert all((array[:, -5:] == 7).all() for array in padded.values())

    with join("tiny", **({} if TRAINER else {"destinations": table})) as end:
        def step(version):
            return end.publish(version, masters(version).items()) if TRAINER else end.receive()

        if not TRAINER:
            refuses(weightcast.Code.BUSY, "has not begun", lambda: end.receive(wait_s=0))
        COMM.barrier()
        assert step(1).version == 1
        expect_held(1)
        if TP_RANK == TP - 1:
            table["model.norm.weight"] = (arrays["model.norm.weight"][1:], "BF16")
            table["no.such.weight"] = table.pop("lm_head.weight")
        for text in ("model.norm.weight is BF16 [63]", "no.such.weight", "lm_head.weight is missing"):
            refuses(weightcast.Code.CONFIG, text, lambda: step(2))
        expect_held(1)
        table |= {name: (array, "BF16") for name, array in arrays.items()}
        table.pop("no.such.weight", None)
        assert step(2).version == 2
        expect_held(2)


def pieces():
    with join("tiny") as end:
        if not TRAINER:
            assert end.receive().version == 5
            return
        whole = masters(5)
        refuses(weightcast.Code.CONFIG, "commit() before begin()", end.commit)
        end.begin(4)
        end.put("model.norm.weight", whole["model.norm.weight"])
        end.abort()
        end.begin(5)
        for name, values in whole.items():
            if name != "model.norm.weight":
                end.put(name, values)
        refuses(weightcast.Code.BAD_DATA, "model.norm.weight", end.commit)
        end.put("model.norm.weight", (to_bf16(whole["model.norm.weight"]), "BF16"))
        assert end.commit().version == 5


def deltas():
    """After the first version what changed is sent, and all of it is there."""
    expected = {name: to_bf16(values) for name, values in masters(1).items()}
    with join("tiny", delta_limit=0.4) as end:
        for version in (1, 2, 3):
            if version > 1:
                for values in expected.values():
                    values.reshape(-1)[version::100] ^= 1
            if TRAINER:
                update = end.publish(version, {name: (values, "BF16") for name, values in expected.items()})
                changed = sum(values.reshape(-1)[version::100].size for values in expected.values())
            else:
                update = end.receive()
                assert update.digest == end.digest()
                with end.serving() as weights:
                    name = "model.norm.weight"
                    assert np.array_equal(weights[name].numpy().view(np.uint16), expected[name])
            assert update.payload == ("dense" if version == 1 else "delta"), (version, update)
            if TRAINER and version > 1:  # what every rank holds is sent to each
                assert changed <= update.changed_elements <= TP * changed and update.shipped_bytes >= 4 * changed
    refuses(weightcast.Code.USAGE, "delta_limit is not between 0", lambda: join("tiny", delta_limit=1.5))


def refusals():
    """Of one rank alone: the others notice nothing."""
    usage, name = weightcast.Code.USAGE, "model.norm.weight"
    with join("tiny") as end:
        if TRAINER:
            for text, value in (("array of uint16", np.zeros(4, np.uint16)), ("is of type list", [1.0]),
                                ("not F32", (np.zeros(4, np.uint16), "F32")), ("<c8", np.zeros(4, np.complex64)),
                                ("big-endian", np.zeros(4, ">f4")), ("big-endian", (np.zeros(4, ">u2"), "BF16")),
                                ("not BF16", (np.zeros(4, np.float16), "BF16")), ("masked", np.ma.zeros(4, np.float32)),
                                ("|O", (np.array([None]), "F64"))):
                refuses(usage, text, lambda value=value: end.publish(1, {name: value}))
            refuses(weightcast.Code.BAD_DATA, "embed_tokens.weight is missing", lambda: end.publish(1, {}))
            packed = np.zeros(64, [("tag", "u2"), ("value", "f4")])["value"]
            refuses(weightcast.Code.BAD_DATA, f"{name} is not aligned",
                    lambda: end.publish(1, masters(1) | {name: packed}))
            assert end.publish(1, masters(1)).version == 1
        else:
            assert end.receive().version == 1
    end.close()
    end.close()
    refuses(weightcast.Code.CONFIG, "closed: make another", lambda: end.publish(1, {}) if TRAINER else end.receive())
    refuses(usage, "no device", lambda: join("tiny", device="tpu"))
    refuses(weightcast.Code.NO_INPUT, "no/such/model", lambda: join("no/such/model"))
    if not TRAINER:
        frozen = np.zeros(4, np.float32)
        frozen.flags.writeable = False
        refuses(usage, "read-only", lambda: Table({name: frozen}, write=True))


def mistakes():
    """Arguments of another kind: refused with what they are, and the group goes on."""
    usage, config = weightcast.Code.USAGE, weightcast.Code.CONFIG
    for text, options in (("comm is of type int", {"comm": 3}), ("tp is -1", {"tp": -1}), ("dp is 0", {"dp": 0}),
                          ("dp is of type float", {"dp": 1.0}), ("trainers is of type str", {"trainers": "2"}),
                          ("transport is of type NoneType", {"transport": None}),
                          ("tensors are of type list", {"sources" if TRAINER else "destinations": [1]})):
        refuses(usage, text, lambda options=options: join("tiny", **options))
    refuses(usage, "model is of type NoneType", lambda: join(None))
    refuses(config, ("one rank", "mpirun -n 2 python3 -m mpi4py"), lambda: join("tiny", comm=MPI.COMM_SELF))
    refuses(config, (f"start it with mpirun -n {TP + 2}", "change tp and dp"), lambda: join("tiny", tp=TP + 1))
    swapped = weightcast.Engine if TRAINER else weightcast.Trainer
    refuses(config, ("Engine() on rank 0", "Trainer() on rank 1"), lambda: swapped("tiny", timeout_s=20))
    with join("tiny") as end:
        if not TRAINER:
            refuses(usage, "wait_s is 'long'", lambda: end.receive("long"))
            refuses(usage, "shape is of type int", lambda: end.update_parameter_from_distributed("a", "BF16", 3))
            refuses(usage, "truncate_size is -1", lambda: end.get_weights_by_parameter_name("model.norm.weight", -1))
            assert end.receive().version == 1
            with end.serving():
                refuses(weightcast.Code.BUSY, "leave each `with engine.serving()`", end.close)
            return
        good = masters(1)
        for text, tensors in (("of type list", [1, 2]), ("of type list", list(good.values())[:1]),
                              ("of type object", object()), ("of type NoneType", None), ("name of a tensor is of type int", {1: 1}),
                              ("model.module.state_dict()", {f"module.{name}": values for name, values in good.items()})):
            refuses(usage, text, lambda tensors=tensors: end.publish(1, tensors))
        for version in (0, -1, 1.0, "1", None, 1 << 64):
            refuses(usage, "version is", lambda version=version: end.publish(version, good))
        refuses(config, "put() before begin()", lambda: end.put("model.norm.weight", good["model.norm.weight"]))
        assert end.publish(np.int64(1), good).version == 1


run(engines_own_memory, the_seeds_verbs, destinations, pieces, deltas, refusals, mistakes)
