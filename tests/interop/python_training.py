#!/usr/bin/env python3
"""Deltas of real training steps: AdamW on fp32 masters at learning rates of reinforcement learning and of fine-tuning; every
step is published, and an engine whose destinations are a transformers model must have the logits of a model freshly loaded
from the rounded masters, bit for bit. A row per step says what changed and what was sent.

Trains the checkpoint in FOLDER (default: demo-model of this source tree), or where there is none a small random Llama.
Exit code 77: this Python lacks a package.

usage: mpiexec -n 2 python3 python_training.py [FOLDER] [--steps 20] [--device cpu]
"""

import argparse
import os
import pathlib
import statistics
import tempfile

from update_group import COMM, TRAINER, run

try:
    import safetensors.torch
    import torch
    import transformers
except ImportError as error:
    print(f"skipped: {error} (WEIGHTCAST_TORCH_PYTHON in tests/README.md names a Python that has it)")
    raise SystemExit(77) from error

import weightcast

ROOT = pathlib.Path(__file__).resolve().parents[2]
RATES = (1e-6, 1e-5, 1e-4)
LIMIT = 0.4
ENTRY_BYTES, UNIT_BYTES = 4, 2

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", default=str(ROOT / "demo-model"))
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--device", default="cpu")
OPTIONS = parser.parse_args()
transformers.utils.logging.disable_progress_bar()


def make_model(folder):
    """A checkpoint of random weights."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4, head_dim=16, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def load(folder, dtype):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(OPTIONS.device)


def tokens_for(model, seed):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(2, model.config.vocab_size, (1, 64), generator=random).to(OPTIONS.device)


@torch.no_grad()
def logits(model):
    return model.eval()(tokens_for(model, 0)).logits


def rounded(model):
    return {name: tensor.detach().to(torch.bfloat16, copy=True) for name, tensor in model.named_parameters()}


def changed_elements(before, after):
    return sum(int((before[name].view(torch.int16) != after[name].view(torch.int16)).sum()) for name in after)


def train(folder, rate, shared):
    """The trainer: a version before the first step, and one after each."""
    model = load(folder, torch.float32)
    elements = sum(parameter.numel() for parameter in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    before, shares, shipped = rounded(model), [], []
    with weightcast.Trainer(folder, device=OPTIONS.device, timeout_s=60, delta_limit=LIMIT) as trainer:
        for version in range(1, OPTIONS.steps + 2):
            if version > 1:
                tokens = tokens_for(model, version)
                model.train()(tokens, labels=tokens).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            after = rounded(model)
            changed = changed_elements(before, after)
            update = trainer.publish(version, model.state_dict())
            model.config.dtype = torch.bfloat16
            model.config.save_pretrained(shared)
            safetensors.torch.save_file({name: tensor.cpu() for name, tensor in after.items()},
                                        f"{shared}/model.safetensors", metadata={"format": "pt"})
            COMM.barrier()  # the engine looks at that,
            COMM.barrier()  # and has done so
            share = changed / elements
            print(f"{rate:>7g} {version - 1:>4} {100 * share:>8.3f}% {update.payload:>7} {update.egress_bytes:>12} "
                  f"{1e3 * update.local_s:>8.1f} {1e3 * (update.total_s - update.local_s):>10.1f}", flush=True)
            expect_sent(update, version, changed, share)
            if version > 1:
                shares.append(share)
                shipped.append(update.egress_bytes)
            before = after
    print(f"# learning rate {rate:g}: median {100 * statistics.median(shares):.3f} % of {elements} elements changed, "
          f"{statistics.median(shipped):.0f} of {UNIT_BYTES * elements} bytes sent")


def expect_sent(update, version, changed, share):
    """Deltas wherever they are worth it, and of just what changed."""
    cost = share * ENTRY_BYTES / UNIT_BYTES  # without the tables
    assert version > 1 or update.payload == "dense"
    if version > 1 and cost < LIMIT / 2:
        assert update.payload == "delta", (version, share)
    if cost > LIMIT:
        assert update.payload == "dense", (version, share)
    if update.payload == "delta":
        assert update.changed_elements == changed, (version, update.changed_elements, changed)
        assert update.shipped_bytes >= ENTRY_BYTES * changed


def receive(folder, shared):
    model = load(folder, torch.bfloat16)
    with weightcast.Engine(folder, destinations=model.state_dict(), device=OPTIONS.device, timeout_s=60,
                           delta_limit=LIMIT) as engine:
        while update := engine.receive():
            COMM.barrier()
            fresh = load(shared, torch.bfloat16)
            same = torch.equal(logits(model).view(torch.int16), logits(fresh).view(torch.int16))
            COMM.barrier()
            assert same, f"version {update.version}: logits are not those of a fresh load"


def every_step_arrives():
    """At each learning rate, from the same weights."""
    folder = COMM.bcast(FOLDER.name if TRAINER else None)
    source = OPTIONS.folder if os.path.exists(f"{OPTIONS.folder}/config.json") else f"{folder}/random"
    if TRAINER:
        if source != OPTIONS.folder:
            make_model(source)
        os.mkdir(f"{folder}/shared")
        print(f"# {source}, deltas up to {LIMIT}\n{'rate':>7} {'step':>4} {'changed':>9} {'sent':>7} {'bytes':>12} {'fill ms':>8} "
              f"{'update ms':>10}")
    COMM.barrier()
    for rate in RATES:
        train(source, rate, f"{folder}/shared") if TRAINER else receive(source, f"{folder}/shared")
        COMM.barrier()


FOLDER = tempfile.TemporaryDirectory() if TRAINER else None  # removed when this ends
run(every_step_arrives)
