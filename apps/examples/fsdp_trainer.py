#!/usr/bin/env python3
"""A trainer of several ranks in PyTorch: fine-tunes a checkpoint under FSDP2 (fully_shard) and publishes after every step.

Its ranks are the first of an MPI job; the others are engines of any kind. Each rank publishes the pieces that it has, where
they are: nothing is gathered. Masters are fp32, and rounded on their way. After the first version only what changed is sent.

    mpirun -n 2 python3 -m mpi4py fsdp_trainer.py demo-model --trainers 2 : \\
      -n 1 python3 -m mpi4py torch_engine.py demo-model --trainers 2
"""

import argparse
import array
import pathlib
import sys
import tempfile
import time

import torch
import torch.distributed as dist
import transformers
from mpi4py import MPI
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools/python"))
import weightcast  # noqa: E402
from demo_text import TEXT, Words  # noqa: E402

COMM = MPI.COMM_WORLD
transformers.utils.logging.disable_progress_bar()


def join(trainers, device):
    """torch's process group of the trainer ranks, which MPI helps to find each other."""
    ranks = COMM.Create_group(COMM.group.Incl(list(range(trainers))))
    one_host = ranks.Split_type(MPI.COMM_TYPE_SHARED).size == ranks.size
    host = "127.0.0.1" if one_host else ranks.bcast(MPI.Get_processor_name())
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False) if ranks.rank == 0 else None
    port = ranks.bcast(store.port if store else None)
    store = store or dist.TCPStore(host, port, is_master=False)
    on_gpu = device.startswith("cuda")
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=ranks.rank, world_size=ranks.size,
                            device_id=torch.device(device) if on_gpu else None)


def shard(model, device):
    """FSDP2 as usual: every layer is a group, and so is the rest."""
    mesh = dist.init_device_mesh(device.partition(":")[0], (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def prove(model, engine):
    """Saves a checkpoint, and asks the engine how far its logits are from those of a model loaded from it. This gathers."""
    weights = {name: tensor.full_tensor().to(torch.bfloat16).cpu() for name, tensor in model.named_parameters()}
    if dist.get_rank() != 0:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        model.config.dtype = torch.bfloat16
        model.config.save_pretrained(folder)
        from safetensors.torch import save_file
        save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
        COMM.send(folder, dest=engine, tag=2)
        return COMM.recv(source=engine, tag=3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder with config.json, model.safetensors, vocab.json")
    parser.add_argument("--trainers", type=int, required=True, help="trainer ranks: the first of the job")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: each rank its own GPU")
    parser.add_argument("--prove", action="store_true", help="the engine compares itself with a saved checkpoint")
    options = parser.parse_args()

    device = f"cuda:{COMM.rank % torch.cuda.device_count()}" if options.device == "cuda" else options.device
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    join(options.trainers, device)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(device).train()
    shard(model, device)
    tokens = torch.tensor(Words(options.model).encode(TEXT), device=device)
    tokens = tokens.tensor_split(options.trainers)[COMM.rank][None]  # each rank reads a part of the text
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    elements = sum(parameter.numel() for parameter in model.parameters())

    with weightcast.Trainer(options.model, device=device, trainers=options.trainers, delta_limit=0.4) as trainer:
        if COMM.rank == 0:
            print(f"{'step':>5} {'loss':>8} {'changed':>8} {'sent':>15} {'fill ms':>8} {'update ms':>10} "
                  f"{'served after ms':>16}  digest", flush=True)
        for step in range(1, options.steps + 1):
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            dist.all_reduce(loss := loss.detach() / options.trainers)
            begin = time.monotonic()
            update = trainer.publish(step, model.state_dict())
            sent = torch.tensor([update.changed_elements, update.egress_bytes], dtype=torch.int64, device=device)
            dist.all_reduce(sent)  # over the trainer ranks
            changed = f"{100 * sent[0].item() / elements:.2f}%" if update.payload == "delta" else "-"
            if COMM.rank == 0:
                served = array.array("d", [0])
                COMM.Recv([served, MPI.DOUBLE], source=options.trainers, tag=1)  # one host, one clock
                print(f"{step:>5} {loss.item():>8.4f} {changed:>8} "
                      f"{f'{update.payload} {sent[1].item() / 1e6:.1f} MB':>15} {1e3 * update.local_s:>8.1f} "
                      f"{1e3 * (update.total_s - update.local_s):>10.1f} {1e3 * (served[0] - begin):>16.1f}  {update.digest}",
                      flush=True)
            if options.prove and (difference := prove(model, options.trainers)) != 0:
                raise SystemExit(f"step {step}: the engine's logits differ by {difference}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
