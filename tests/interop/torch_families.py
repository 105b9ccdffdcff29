#!/usr/bin/env python3
"""Every family as transformers has it: a small random checkpoint goes through `weightcast update`, and a model that is made of
nothing but the snapshot of what the engines then hold gives logits that are those of a fresh load to the last bit. Tied and
untied, with the biases, norms, layers and experts that a config can ask for, an odd vocabulary, in shards; tp 1, 2 and 4,
experts in groups, too. Exit code 77: this Python lacks a package.

usage: python3 torch_families.py MPIEXEC WEIGHTCAST dense|experts|multimodal [VARIANT ...]
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import family_models as models

import torch
from safetensors.torch import save_file

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("WEIGHTCAST_")}
KINDS = {"dense": models.DENSE, "experts": models.EXPERTS, "multimodal": models.MULTIMODAL}


def update(initial, target, tp, ep, snapshot):
    groups = ["--ep"] if ep > 1 else []  # each rank owns whole experts
    done = subprocess.run([sys.argv[1], "--oversubscribe", "-n", str(1 + tp), sys.argv[2], "update", "--initial", str(initial),
                           "--target", str(target), "--tp", str(tp), *groups, "--device", "host", "--snapshot", str(snapshot)],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout
    return models.read_snapshot(snapshot)


def load_snapshot(held, target, folder):
    """A model of the snapshot's tensors and the target's config; of a multimodal one with the target's other towers."""
    folder.mkdir()
    shutil.copy(target / "config.json", folder)
    written = {}
    for name, tensor in models.read_tensors(target).items():
        text = models.text_name(name)
        written[name] = held[text] if text else tensor
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    return models.load(folder)


def check(variant, form, folder):
    initial, target = folder / "initial", folder / "target"
    for seed, path in enumerate((initial, target)):
        models.make_checkpoint(variant, seed, form, path)
    wanted = models.text_tensors(target)
    fresh, before = (models.logits(models.load(path)) for path in (target, initial))
    assert fresh.isfinite().all() and not torch.equal(fresh, before)
    runs = [(1, 1), (2, 1), (4, 1)] + [(2, 2), (4, 4)] * (variant in models.EXPERTS)
    for tp, ep in runs:
        at = f"tp {tp}, ep {ep}"
        held = update(initial, target, tp, ep, folder / f"tp{tp}ep{ep}.h5")
        assert held.keys() == wanted.keys(), (at, held.keys() ^ wanted.keys())
        for name, tensor in held.items():
            other = wanted[name]
            assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), (at, name, tensor.dtype, tensor.shape, other.dtype)
            assert (models.bits(tensor) == models.bits(other)).all(), (at, name)
        model = load_snapshot(held, target, folder / f"tp{tp}ep{ep}")
        assert torch.equal(models.logits(model), fresh), f"{at}: the logits differ"
    return len(wanted), runs


def main():
    failed = 0
    for variant in sys.argv[4:] or KINDS[sys.argv[3]]:
        for form in models.forms(variant):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    count, runs = check(variant, form, pathlib.Path(folder))
                except AssertionError as error:
                    failed += 1
                    print(f"{variant}, {form}: FAILED: {error}", flush=True)
                    continue
            print(f"{variant}, {form}: {count} parameters, logits of a fresh load at (tp, ep) "
                  + " ".join(f"({tp}, {ep})" for tp, ep in runs), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
