#!/usr/bin/env bash
# Every test that this machine can run.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tools/test.sh [--quick]

Installs what is missing (tools/setup.sh --tests), builds, runs every test that this machine can run, and ends with a
table of the tests per tier. Needs no terminal and no GPU; safe to run again.

  host    all tiers: unit, cli, mpi, fault, emulated (what GPUs are told, without one), fuzz (the corpora replayed),
          interop, slurm, install
  demo    the demo model is made and must continue an English sentence
  asan    the unit tier under AddressSanitizer and UBSan
  tsan    the store, the engine and 200 updates under read load, under ThreadSanitizer
  fuzz    ten seconds per fuzz target, where clang is installed
  cuda    compiles and links the program, where nvcc and NCCL are installed

  --quick   only host

The interop tier compares with Python's safetensors, h5py and ml_dtypes from PyPI (in build/venv); where PyPI cannot be
reached, the tests that need them are skipped and it is said so.
Exit code 0: all that ran passed; 1: something failed.
TEXT
}

quick=
for argument in "$@"; do
  case $argument in
    --quick) quick=1 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "test: unknown argument $argument" >&2; usage >&2; exit 64 ;;
  esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }
notes=()
failed=()
python=python3

# Configures and builds a preset quietly: build PRESET [cmake argument...] -- [build argument...]
build() {
  local preset=$1
  shift
  local configure=()
  while (($#)) && [[ $1 != -- ]]; do
    configure+=("$1")
    shift
  done
  say "$preset: configure and build"
  cmake --preset "$preset" "${configure[@]}" >"build/$preset.log" 2>&1 || { cat "build/$preset.log"; return 1; }
  cmake --build --preset "$preset" "${@:2}" >"build/$preset.log" 2>&1 || { tail -n 60 "build/$preset.log"; return 1; }
}

# Runs the tests of a preset and keeps their results for the table.
check() {
  local preset=$1
  say "$preset: test"
  ctest --preset "$preset" -j "$(nproc)" --output-junit tests.xml || failed+=("$preset")
}

python_packages() {
  say "Python packages of the interop tests"
  [[ -x build/venv/bin/python ]] || python3 -m venv build/venv || return 1
  build/venv/bin/python -c 'import numpy, safetensors, h5py, ml_dtypes' 2>/dev/null ||
    build/venv/bin/python -m pip install --quiet --disable-pip-version-check numpy safetensors h5py ml_dtypes
}

fuzz_smoke() {
  local target corpus scratch
  scratch=$(mktemp -d build/fuzz-smoke.XXXXXX)
  for target in build/fuzz/tests/fuzz/*_fuzz; do
    corpus=tests/fuzz/corpus/$(basename "$target" _fuzz)
    say "fuzz: $(basename "$target"), 10 s"
    mkdir "$scratch/new"
    "$target" -max_total_time=10 -rss_limit_mb=2048 -artifact_prefix=build/fuzz/ "$scratch/new" "$corpus" \
      >build/fuzz.log 2>&1 || { tail -n 40 build/fuzz.log; failed+=("fuzz $(basename "$target")"); }
    tail -n 1 build/fuzz.log
    rm -r "$scratch/new"
  done
  rm -r "$scratch"
}

start=$SECONDS
bash tools/setup.sh --tests
mkdir -p build
rm -f build/*/tests.xml

if python_packages; then
  python=$PWD/build/venv/bin/python
else
  notes+=("interop: PyPI could not be reached, so the tests that need safetensors, h5py or ml_dtypes were skipped")
fi
build host -DWEIGHTCAST_TESTS=ON -DWEIGHTCAST_PYTHON="$python"
if [[ -z $quick ]]; then
  say "demo model"
  if ! python3 tools/get_demo_model.py demo-model; then
    notes+=("demo: PyPI could not be reached, so there is no demo model")
  elif python3 tools/get_demo_model.py --check demo-model; then
    notes+=("demo: the demo model speaks")
  else
    failed+=(demo)
  fi
fi
check host

if [[ -z $quick ]]; then
  build asan -- --target tests/unit/all
  check asan
  build tsan --
  check tsan

  if command -v clang++ >/dev/null; then
    build fuzz -- --target tests/fuzz/all
    fuzz_smoke
  else
    notes+=("fuzz: no clang++ here, so the corpora were replayed but no new inputs tried (apt-get install clang)")
  fi

  if command -v nvcc >/dev/null && echo '#include <nccl.h>' | nvcc -x cu -E - >/dev/null 2>&1; then
    build cuda -- --target gpu_tests
    notes+=("cuda: the program and its tests compile and link (where there is a GPU: ctest --preset cuda)")
  else
    notes+=("cuda: no nvcc or no NCCL here, so nothing was compiled for GPUs")
  fi
fi

say "results after $((SECONDS - start)) s"
python3 tools/count_tests.py build/host/tests.xml build/asan/tests.xml build/tsan/tests.xml
((${#notes[@]} == 0)) || printf '%s\n' "${notes[@]}"
if ((${#failed[@]})); then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
echo "all passed"
