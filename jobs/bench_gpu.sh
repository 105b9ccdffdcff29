#!/usr/bin/env bash
# The whole table of `weightcast bench` on a host with GPUs, and PyTorch's beside it.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: jobs/bench_gpu.sh [options]

Times every transport on the GPUs of this host, each row beside the ceiling, and PyTorch's ways to do the same
(tools/baseline_torch.py) in the same job. Writes a JSON report per row, host.json, table.md and, where matplotlib is
installed, bench.png and bench.svg. A row that fails is named at the end; the others still run.

  --weightcast PATH   the program; default build/cuda/apps/weightcast/weightcast
  --models LIST       default llama-3.2-1b,llama-3.1-8b; one call per parameter is timed for the first of them only
  --gpus N            use the first N; default: all that nvidia-smi lists
  --output DIR        default jobs/results/DATE-NxGPU
  --only PATTERN      only the rows whose name fits, like 'link-tp1*' (--dry-run shows the names)
  --limit SECONDS     end a row that takes longer; default 300
  --no-baseline       without PyTorch
  --dry-run           print the commands and do nothing

  1 GPU    engines beside the trainer, tp 1 and 2 (direct)
  N GPUs   also, one rank per GPU and direct and nccl: tp 1, 2, 4, ... below N, with dp 2 and with as many replicas as
           fit; for N = 2, 4, 8, ... also tp N with one engine beside the trainer (direct), N trainer ranks beside tp N, and
           N/2 trainer ranks with tp N/2 on the other GPUs (fsdp, direct)

Variables: MPIRUN (default mpirun), PYTHON (default python3: with torch, matplotlib), COMMIT (where git cannot say).
Exit code 0: every row ran and arrived right; 69: some did not; 64 usage; 66 no program; 78 no GPU.
TEXT
}

stop() {
  echo "bench_gpu: $2" >&2
  exit "$1"
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
weightcast=build/cuda/apps/weightcast/weightcast
models=llama-3.2-1b,llama-3.1-8b
gpus='' output='' only='*' limit_s=300 baseline=1 dry_run=''
while (($#)); do
  case $1 in
    --weightcast | --models | --gpus | --output | --only | --limit)
      [[ -n ${2:-} ]] || stop 64 "$1 needs a value"
      case $1 in
        --weightcast) weightcast=$2 ;;
        --models) models=$2 ;;
        --gpus) gpus=$2 ;;
        --output) output=$2 ;;
        --only) only=$2 ;;
        --limit) limit_s=$2 ;;
      esac
      shift 2
      ;;
    --no-baseline) baseline='' && shift ;;
    --dry-run) dry_run=1 && shift ;;
    -h | --help) usage && exit 0 ;;
    *) stop 64 "unknown argument $1; see --help" ;;
  esac
done
[[ -z $gpus || $gpus =~ ^[1-9][0-9]*$ ]] || stop 64 "--gpus needs a positive number"
[[ $limit_s =~ ^[1-9][0-9]*$ ]] || stop 64 "--limit needs a number of seconds"

mpirun=${MPIRUN:-mpirun} python=${PYTHON:-python3}
gpu_names=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null) || gpu_names=''
found=$(grep -c . <<<"$gpu_names") || true
gpus=${gpus:-$found}
((gpus > 0)) || stop 78 "nvidia-smi shows no GPU here (for --dry-run, say --gpus N)"
if [[ -z $dry_run ]]; then
  ((gpus <= found)) || stop 78 "nvidia-smi shows $found GPUs, not $gpus"
  [[ -x $weightcast ]] || stop 66 "there is no program $weightcast: build it (cmake --preset cuda), or name it with --weightcast"
  command -v "$mpirun" >/dev/null || stop 66 "there is no $mpirun: install Open MPI, or set MPIRUN"
  command -v "$python" >/dev/null || stop 66 "there is no $python: set PYTHON"
fi
name=$(head -n 1 <<<"$gpu_names" | tr '[:upper:]' '[:lower:]' | sed 's/nvidia *//; s/[^a-z0-9][^a-z0-9]*/-/g')
output=${output:-jobs/results/$(date +%F)-${gpus}x${name:-gpu}}

# NVLink multicast stays off: a process that dies with it can leave the GPUs of a host unusable.
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1
# All ranks are on this host, each with several threads.
export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_rmaps_base_oversubscribe=1
if ((EUID == 0)); then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

reports=() failed=()
# row NAME COMMAND...: runs a command that writes $output/NAME.json
row() {
  local name=$1 report=$output/$1.json status=0
  shift
  # shellcheck disable=SC2053  # a pattern
  [[ $name == $only ]] || return 0
  local command=(timeout --kill-after=10 "$limit_s" "$@" --json "$report")
  local line
  line=$(printf ' %q' "${command[@]}")
  echo "== $name:${line//\\,/,}"
  [[ -z $dry_run ]] || return 0
  rm -f "$report"
  "${command[@]}" </dev/null || status=$?
  if ((status == 124 || status == 137)); then
    failed+=("$name (cut off after $limit_s s: give it more with --limit)")
  elif ((status != 0)); then
    failed+=("$name (exit status $status)")
  fi
  [[ ! -e $report ]] || reports+=("$report")
}

# bench NAME GPU_OF_EACH_RANK ARGUMENT...
bench() {
  local name=$1 placement=$2 ranks
  shift 2
  ranks=$(tr ',' '\n' <<<"$placement" | wc -l)
  row "$name" "$mpirun" -n "$ranks" "$weightcast" bench --device cuda --gpus "$placement" \
    --verify all,none --ceiling --repeat 20 --warmup 2 "$@"
}

# one_rank_per_gpu TP DP: all that NCCL can do, too
one_rank_per_gpu() {
  local tp=$1 dp=$2 name=link-tp$1 placement
  ((dp == 1)) || name+=-dp$dp
  placement=$(seq -s, 0 $((tp * dp)))
  local direct=(--tp "$tp" --dp "$dp" --transport direct)
  local nccl=(--tp "$tp" --dp "$dp" --transport nccl --method 'sharded,broadcast')
  bench "$name-direct" "$placement" "${direct[@]}" --model "$models"
  bench "$name-nccl" "$placement" "${nccl[@]}" --model "$models"
  ((dp == 1)) || return 0
  if ((tp <= 2)); then
    bench "$name-direct-parameter" "$placement" "${direct[@]}" --model "${models%%,*}" --granularity parameter
    bench "$name-nccl-parameter" "$placement" "${nccl[@]}" --model "${models%%,*}" --granularity parameter
  fi
  if [[ -n $baseline ]]; then
    row "$name-torch" "$mpirun" -n $((1 + tp)) "$python" tools/baseline_torch.py --gpus "$placement" --tp "$tp" \
      --model "$models" --repeat 20 --warmup 2
  fi
}

# Never fails: what cannot be learnt is null.
describe_host() {
  WEIGHTCAST=$weightcast COMMIT=${COMMIT:-} "$python" - "$output/host.json" <<'PYTHON'
import datetime, json, os, platform, re, subprocess, sys

def says(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.stdout.strip() if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired):
        return None

keys = ("index,name,pci.bus_id,driver_version,vbios_version,memory.total,power.limit,clocks.max.sm,clocks.max.memory,"
        "ecc.mode.current,mig.mode.current")
table = says("nvidia-smi", f"--query-gpu={keys}", "--format=csv,noheader") or ""
torch = ("import json, torch; print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda, "
         "'nccl': '.'.join(map(str, torch.cuda.nccl.version()))}))")
torch = says(sys.executable, "-c", torch)
cpu = says("sh", "-c", "grep -m1 '^model name' /proc/cpuinfo | cut -d: -f2")
host = {
    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    "commit": os.environ["COMMIT"] or says("git", "describe", "--always", "--dirty", "--abbrev=40"),
    "gpus": [dict(zip(keys.split(","), line.split(", "))) for line in table.splitlines()],
    "links": re.sub(r"\x1b\[\d*m", "", says("nvidia-smi", "topo", "-m") or "").splitlines(),
    "weightcast": (says(os.environ["WEIGHTCAST"], "--version") or "").splitlines(),
    "torch": json.loads(torch) if torch else None,
    "kernel": platform.release(),
    "cpu": cpu.strip() if cpu else None,
    "cores": os.cpu_count(),
    "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("NCCL_", "OMPI_MCA_", "CUDA_"))},
}
with open(sys.argv[1], "w", encoding="utf-8") as file:
    json.dump(host, file, indent=2)
    file.write("\n")
PYTHON
}

if [[ -z $dry_run ]]; then
  mkdir -p "$output" || stop 73 "cannot create $output"
  describe_host
fi
bench beside-tp1-direct 0,0 --tp 1 --transport direct --model "$models"
bench beside-tp2-direct 0,0,0 --tp 2 --transport direct --model "$models"
for ((tp = 1; tp < gpus; tp *= 2)); do
  most=$(((gpus - 1) / tp))
  one_rank_per_gpu "$tp" 1
  ((most <= 2)) || one_rank_per_gpu "$tp" 2
  ((most == 1)) || one_rank_per_gpu "$tp" "$most"
done
if ((gpus > 1 && (gpus & (gpus - 1)) == 0)); then
  all=$(seq -s, 0 $((gpus - 1))) half=$((gpus / 2))
  bench "split-tp$gpus-direct" "0,$all" --tp "$gpus" --transport direct --model "$models"
  bench "trainers$gpus-beside-tp$gpus-direct" "$all,$all" --trainers "$gpus" --tp "$gpus" --transport direct --model "$models"
  ((half == 1)) || bench "trainers$half-link-tp$half-direct" "$all" --trainers "$half" --tp "$half" --transport direct --model "$models"
fi
[[ -z $dry_run ]] || exit 0

if ((${#reports[@]})); then
  echo "== $output"
  status=0
  "$python" tools/plot_bench.py --markdown --output "$output/bench" "${reports[@]}" >"$output/table.md" || status=$?
  ((status == 0 || status == 69)) || failed+=("plot_bench (exit status $status)")
  cat "$output/table.md"
fi
((${#failed[@]} == 0)) || stop 69 "these rows failed: ${failed[*]}"
