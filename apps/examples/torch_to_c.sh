#!/usr/bin/env bash
# A trainer in PyTorch and engine ranks in C.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: apps/examples/torch_to_c.sh [--device cpu|cuda] [--model DIR] [--tp N] [trainer option...]

Fine-tunes the demo model for a few steps and sends the weights of each to a tensor-parallel engine of N ranks (default 3
on the host, 1 on a GPU), which computes their digest once more.
Other options go to torch_trainer.py (--steps 5, --bf16, ...). With --device cuda all use GPU 0.

PYTHON (default python3) has torch, transformers and mpi4py; WEIGHTCAST_LIBRARY names libweightcast.so.1 (default: that of
build/cuda or build/host; the engine is built beside it). DIR (default demo-model): see tools/get_demo_model.py.
TEXT
}

here=$(dirname "${BASH_SOURCE[0]}")
device=cpu model=$here/../../demo-model tp="" takes=tp
source "$here/environment.sh"

engine=("$(dirname "$WEIGHTCAST_LIBRARY")/../apps/example_engine/weightcast-example-engine" "$model")
if [[ $device == cuda* ]]; then engine+=(0); tp=${tp:-1}; fi
mpirun -n 1 "$PYTHON" -m mpi4py "$here/torch_trainer.py" "$model" --device "$device" "${options[@]}" : \
  -n "${tp:-3}" "${engine[@]}"
