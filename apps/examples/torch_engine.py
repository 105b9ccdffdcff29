#!/usr/bin/env python3
"""An engine in PyTorch (transformers, tp 1): its own parameters are the destinations of every update.

It is the last rank of an MPI job; torch_trainer.py and fsdp_trainer.py show the command. After each update it generates a few words.
"""

import argparse
import array
import pathlib
import sys
import time

import torch
import transformers
from mpi4py import MPI

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools/python"))
import weightcast  # noqa: E402
from demo_text import PROMPT, Words  # noqa: E402

COMM = MPI.COMM_WORLD
transformers.utils.logging.disable_progress_bar()


def load(folder, device):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder with config.json, model.safetensors, vocab.json")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--prove", action="store_true", help="compare with a model loaded from what was published")
    parser.add_argument("--trainers", type=int, default=1, help="ranks of the trainer, before this one")
    parser.add_argument("--tokens", type=int, default=12, help="how many to generate after each update")
    options = parser.parse_args()

    words = Words(options.model)
    model = load(options.model, options.device)
    prompt = torch.tensor([words.encode(PROMPT)], device=options.device)
    tied = model.config.tie_word_embeddings

    @torch.no_grad()
    def logits(of):
        return of(prompt).logits.float()

    old = logits(model)
    with weightcast.Engine(options.model, destinations=model.state_dict(), device=options.device,
                           trainers=options.trainers, delta_limit=0.4) as engine:  # as the trainers say
        while update := engine.receive():
            COMM.Send([array.array("d", [time.monotonic()]), MPI.DOUBLE], dest=0, tag=1)
            if tied and model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr():
                raise SystemExit("the head is not tied to the embedding any more")
            new = logits(model)
            verdict = f"logits moved by {(new - old).abs().max().item():.3f}"
            old = new
            if options.prove:
                fresh = load(COMM.recv(source=0, tag=2), options.device)
                difference = (logits(fresh) - new).abs().max().item()
                verdict += f", max difference from a fresh load {difference:g}"
                COMM.send(difference, dest=0, tag=3)
            with torch.no_grad():
                text = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=options.tokens,
                                      do_sample=False)[0]
            print(f"engine: version {update.version}, {update.payload}, {verdict}: {words.decode(text)!r}", flush=True)


if __name__ == "__main__":
    main()
