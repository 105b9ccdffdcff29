#!/usr/bin/env bash
# A trainer of several ranks (FSDP2) and an engine in PyTorch.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: apps/examples/fsdp_to_torch.sh [--device cpu|cuda] [--model DIR] [--trainers N] [trainer option...]

Fine-tunes the demo model for a few steps on N trainer ranks (default 2) under FSDP2: each has a part of every parameter,
and sends it from where it is. After each step the engine, a transformers model, gets the new weights into its own
parameters, compares its logits with a model freshly loaded from what was published, and generates a few words.
Other options go to fsdp_trainer.py (--steps 5, ...). torch's own messages between trainer ranks go by gloo on the CPU; with
--device cuda by NCCL, which wants a GPU per trainer rank. The engine shares GPU 0 then.

PYTHON (default python3) has torch, transformers, safetensors and mpi4py; WEIGHTCAST_LIBRARY names libweightcast.so.1
(default: that of build/cuda or build/host). DIR (default demo-model) is a checkpoint folder of tools/get_demo_model.py.
TEXT
}

here=$(dirname "${BASH_SOURCE[0]}")
device=cpu model=$here/../../demo-model trainers=2 takes=trainers
source "$here/environment.sh"

python=("$PYTHON" -m mpi4py)
mpirun -n "$trainers" "${python[@]}" "$here/fsdp_trainer.py" "$model" --trainers "$trainers" --device "$device" --prove \
  "${options[@]}" : -n 1 "${python[@]}" "$here/torch_engine.py" "$model" --trainers "$trainers" --device "$device" --prove
