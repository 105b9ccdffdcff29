#!/usr/bin/env bash
# A trainer and an engine in PyTorch, one process each.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: apps/examples/torch_to_torch.sh [--device cpu|cuda] [--model DIR] [trainer option...]

Fine-tunes the demo model for a few steps. After each the engine, a transformers model, gets the new weights into its own
parameters, compares its logits with a model freshly loaded from what was published, and generates a few words.
Other options go to torch_trainer.py (--steps 5, --bf16, ...). With --device cuda both use GPU 0.

PYTHON (default python3) has torch, transformers, safetensors and mpi4py; WEIGHTCAST_LIBRARY names libweightcast.so.1
(default: that of build/cuda or build/host). DIR (default demo-model) is a checkpoint folder of tools/get_demo_model.py.
TEXT
}

here=$(dirname "${BASH_SOURCE[0]}")
device=cpu model=$here/../../demo-model
source "$here/environment.sh"

python=("$PYTHON" -m mpi4py)
mpirun -n 1 "${python[@]}" "$here/torch_trainer.py" "$model" --device "$device" --prove "${options[@]}" : \
  -n 1 "${python[@]}" "$here/torch_engine.py" "$model" --device "$device" --prove
