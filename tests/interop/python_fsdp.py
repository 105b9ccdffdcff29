#!/usr/bin/env python3
"""Trainers of several ranks under torch's FSDP2 on gloo: what engines get is what the shards are, bit by bit, after every
step; other placements, meshes and plain tensors; what is refused. The last rank is the engine, the others are the trainer.
Exit code 77: a package is not there.

usage: mpiexec -n 3|4|6 python3 python_fsdp.py

WEIGHTCAST_FSDP_LAYERS (1) and WEIGHTCAST_FSDP_VOCABULARY (1000) make the model larger: 30 and 49152 are SmolLM2-135M.
"""

import json
import os
import pathlib
import sys
import tempfile
import traceback

try:
    import torch
    import torch.distributed as dist
    import transformers
    from mpi4py import MPI
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
except ImportError as error:
    print(f"skipped: {error} (WEIGHTCAST_TORCH_PYTHON in tests/README.md names a Python that has it)")
    sys.exit(77)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools/python"))
import weightcast  # noqa: E402

COMM = MPI.COMM_WORLD
TRAINERS = COMM.size - 1
ENGINE = COMM.rank == TRAINERS
STEPS = 5
Code = weightcast.Code
CONFIG = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], num_hidden_layers=int(os.environ.get("WEIGHTCAST_FSDP_LAYERS", 1)),
    hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, head_dim=64,
    vocab_size=int(os.environ.get("WEIGHTCAST_FSDP_VOCABULARY", 1000)), tie_word_embeddings=True, torch_dtype="bfloat16")


def growth_of(call):
    """(what it returns, MiB by which this process's memory was larger at its peak than before)."""
    def resident(key):
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))

    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before = resident("VmRSS")
    return call(), resident("VmHWM") - before


def join():
    """torch's process group of the trainer ranks."""
    ranks = COMM.Create_group(COMM.group.Incl(list(range(TRAINERS))))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if ranks.rank == 0 else None
    port = ranks.bcast(store.port if store else None)
    store = store or dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=ranks.rank, world_size=ranks.size)


def sharded_model(mesh):
    """A model of random weights of which no rank ever has more than its part and a layer."""
    config = transformers.LlamaConfig(**{key: value for key, value in CONFIG.items() if key != "architectures"})
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).float()
    model.tie_weights()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    for index, parameter in enumerate(model.parameters()):
        local = parameter.to_local()
        torch.manual_seed(100 * index + mesh.get_coordinate()[-1])
        with torch.no_grad():
            local.normal_(1 if parameter.ndim == 1 else 0, 0.02)
    return model.train()


def show(tensors):
    """Sends the engine what it must have: every parameter in full, rounded. This gathers."""
    for name, tensor in tensors:
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if COMM.rank == 0:
            COMM.send((name, whole.to(torch.bfloat16).view(torch.int16).numpy()), dest=TRAINERS)
    if COMM.rank == 0:
        COMM.send(None, dest=TRAINERS)


def expect(destinations):
    while shown := COMM.recv(source=0):
        name, bits = shown
        assert torch.equal(destinations[name].view(torch.int16), torch.from_numpy(bits)), name


def parameters_of(state):
    return [(name, tensor) for name, tensor in state.items() if name != "lm_head.weight"]


def serve(config, destinations, updates):
    """The engine's side of `updates` updates of a trainer."""
    with weightcast.Engine(config, destinations=destinations, trainers=TRAINERS, timeout_s=30) as engine:
        for version in range(1, updates + 1):
            assert engine.receive().version == version
            expect(destinations)
        assert engine.receive() is None


def refuses(code, texts, call):
    try:
        call()
    except weightcast.WeightcastError as error:
        assert error.code == code and all(text in error.message for text in texts), (error.code, error.message)
        assert not error.lost
        return
    raise AssertionError(f"not refused: {texts}")


def trains(config, mesh, **options):
    """STEPS steps of AdamW under fully_shard."""
    torch.manual_seed(COMM.rank)
    model = sharded_model(mesh)
    tokens = torch.randint(0, CONFIG["vocab_size"], (1, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    held = sum(t.to_local().numel() for _, t in parameters_of(model.state_dict())) * 2 / 2**20
    if options.pop("with_sources", False):
        options["sources"] = model.state_dict()
    trainer, own = growth_of(lambda: weightcast.Trainer(config, trainers=TRAINERS, timeout_s=30, **options))
    most = 0
    with trainer:
        for version in range(1, STEPS + 1):
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            state = model.state_dict()
            assert "lm_head.weight" in state
            update, growth = growth_of(lambda: trainer.publish(version, state))
            assert update.version == version
            most = max(most, growth)
            show(parameters_of(state))
    grown = COMM_TRAINERS.gather((held, own + most))
    if COMM.rank == 0:
        whole = sum(t.numel() for _, t in parameters_of(model.state_dict())) * 2 / 2**20
        print(f"{STEPS} steps, {TRAINERS} trainer ranks, model {whole:.1f} MiB in bf16; of it each rank has "
              f"{', '.join(f'{held:.1f}' for held, _ in grown)} MiB, and at its peak the trainer took "
              f"{', '.join(f'{growth:.1f}' for _, growth in grown)} MiB of memory beside FSDP's", flush=True)


def layouts(config, mesh):
    """Uneven columns, replicas and plain tensors, all at once: `sources` says it."""
    torch.manual_seed(1)
    whole = {name: torch.randn(shape) for name, shape in shapes().items()}
    kinds = [lambda t: distribute_tensor(t, mesh, [Shard(t.ndim - 1)]), lambda t: distribute_tensor(t, mesh, [Replicate()]),
             lambda t: distribute_tensor(t, mesh, [Shard(0)]), lambda t: t if COMM.rank == 0 else None]
    state = {name: kinds[index % len(kinds)](tensor) for index, (name, tensor) in enumerate(whole.items())}
    mine = {name: tensor for name, tensor in state.items() if tensor is not None}
    with weightcast.Trainer(config, trainers=TRAINERS, sources=mine, timeout_s=30) as trainer:
        trainer.publish(1, mine)
        show(whole.items())
        columns = {name: distribute_tensor(tensor, mesh, [Shard(tensor.ndim - 1)]) for name, tensor in whole.items()}
        refuses(Code.BAD_DATA, ("rank 0", "rank 1", "self_attn.k_proj.weight is F32", "expected BF16"), lambda: trainer.publish(2, columns))
        partial = mine | {"model.norm.weight": DTensor.from_local(whole["model.norm.weight"], mesh, [Partial()])}
        refuses(Code.USAGE, ("model.norm.weight", "Partial", "redistribute"), lambda: trainer.publish(2, partial))
        last = COMM.rank == TRAINERS - 1  # of which the others hear
        refuses(Code.USAGE, ("Partial",) if last else (f"rank {TRAINERS - 1}",),
                lambda: trainer.publish(2, partial if last else mine))
        trainer.publish(2, mine)
        show(whole.items())


def plain(config):
    """Plain tensors on rank 0."""
    torch.manual_seed(2)
    whole = {name: torch.randn(shape) for name, shape in shapes().items()}
    with weightcast.Trainer(config, trainers=TRAINERS, source_layout="whole", timeout_s=30) as trainer:
        trainer.publish(1, whole if COMM.rank == 0 else {})
        show(whole.items())


def shapes():
    hidden, middle = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    result = {"model.embed_tokens.weight": (CONFIG["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(CONFIG["num_hidden_layers"]):
        result |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in {
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,), "self_attn.q_proj": (576, hidden),
            "self_attn.k_proj": (192, hidden), "self_attn.v_proj": (192, hidden), "self_attn.o_proj": (hidden, 576),
            "mlp.gate_proj": (middle, hidden), "mlp.up_proj": (middle, hidden), "mlp.down_proj": (hidden, middle)}.items()}
    return result


def main(config):
    torch.set_num_threads(1)
    if ENGINE:
        destinations = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes().items()}
        for updates in (STEPS, STEPS, 2, 1) if TRAINERS < 5 else (STEPS, 2, 1):
            serve(config, destinations, updates)
        return
    join()
    mesh = dist.init_device_mesh("cpu", (TRAINERS,))
    if TRAINERS < 5:  # there by rectangles alone: it takes its time
        trains(config, mesh)
    # The same by rectangles; where ranks can be paired, each piece on two of them.
    pairs = TRAINERS % 2 == 0
    trains(config, dist.init_device_mesh("cpu", (2, TRAINERS // 2), mesh_dim_names=("copy", "part")) if pairs else mesh, with_sources=True)
    layouts(config, mesh)
    plain(config)
    dist.destroy_process_group()


try:
    COMM_TRAINERS = None if ENGINE else COMM.Create_group(COMM.group.Incl(list(range(TRAINERS))), tag=1)
    folder = COMM.bcast(tempfile.mkdtemp() if COMM.rank == 0 else None)
    config = pathlib.Path(folder) / "config.json"
    if COMM.rank == 0:
        config.write_text(json.dumps(CONFIG))
    COMM.barrier()
    main(config)
    COMM.barrier()
    if COMM.rank == 0:
        config.unlink()
        pathlib.Path(folder).rmdir()
except BaseException:  # the other ranks wait for this one
    traceback.print_exc()
    sys.stderr.flush()
    COMM.Abort(1)
