#!/usr/bin/env python3
"""A trainer in PyTorch: fine-tunes a checkpoint on a short text and publishes the weights after every step.

It is rank 0 of an MPI job; all other ranks are engines of any kind. Masters are fp32, and rounded on their way. After the
first version only what changed is sent.

    mpirun -n 1 python3 -m mpi4py torch_trainer.py demo-model : -n 1 python3 -m mpi4py torch_engine.py demo-model
"""

import argparse
import array
import pathlib
import sys
import tempfile
import time

import torch
import transformers
from mpi4py import MPI

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools/python"))
import weightcast  # noqa: E402
from demo_text import TEXT, Words  # noqa: E402

COMM = MPI.COMM_WORLD
transformers.utils.logging.disable_progress_bar()


def rounded(model):
    """The weights as engines get them."""
    return {name: tensor.to(model.config_dtype) for name, tensor in model.named_parameters()}


def changed(before, after):
    """How much of the weights an update changes, as a fraction."""
    return sum(int((before[name] != after[name]).sum()) for name in after) / sum(t.numel() for t in after.values())


def prove(model, weights):
    """Saves a checkpoint, and asks the engine how far its logits are from those of a model loaded from it."""
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        state = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
        from safetensors.torch import save_file
        save_file(state, f"{folder}/model.safetensors", metadata={"format": "pt"})
        COMM.send(folder, dest=1, tag=2)
        return COMM.recv(source=1, tag=3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder with config.json, model.safetensors, vocab.json")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--bf16", action="store_true", help="compute in bf16 (autocast); masters stay fp32")
    parser.add_argument("--prove", action="store_true", help="the engine compares itself with a saved checkpoint")
    options = parser.parse_args()

    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    model.config_dtype = model.config.dtype = torch.bfloat16  # what is sent
    model.to(options.device).train()
    tokens = torch.tensor([Words(options.model).encode(TEXT)], device=options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    before = rounded(model)

    with weightcast.Trainer(options.model, device=options.device, delta_limit=0.4) as trainer:
        print(f"{'step':>5} {'loss':>8} {'changed':>8} {'sent':>15} {'fill ms':>8} {'update ms':>10} "
              f"{'served after ms':>16}  digest", flush=True)
        for step in range(1, options.steps + 1):
            with torch.autocast(options.device.partition(":")[0], torch.bfloat16, enabled=options.bf16):
                loss = model(tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            begin = time.monotonic()
            update = trainer.publish(step, model.state_dict())
            served = array.array("d", [0])
            COMM.Recv([served, MPI.DOUBLE], source=1, tag=1)  # when the first engine rank had it; one host, one clock
            optimizer.zero_grad()
            after = rounded(model)
            print(f"{step:>5} {loss.item():>8.4f} {100 * changed(before, after):>7.2f}% "
                  f"{f'{update.payload} {update.egress_bytes / 1e6:.1f} MB':>15} {1e3 * update.local_s:>8.1f} "
                  f"{1e3 * (update.total_s - update.local_s):>10.1f} {1e3 * (served[0] - begin):>16.1f}  {update.digest}",
                  flush=True)
            before = after
            if options.prove and (difference := prove(model, after)) != 0:
                raise SystemExit(f"step {step}: the engine's logits differ by {difference}")


if __name__ == "__main__":
    main()
