# shellcheck shell=bash
# What the batch scripts of this folder share; they source it. Start nothing here before begin().
#
#   begin              checks the script's settings, loads modules, makes $OUTPUT, places the ranks
#   preflight OPTION.. `weightcast update --preflight`: what cannot work ends the job here
#   ranks COMMAND...   weightcast COMMAND on all ranks, under $LAUNCHER; returns its exit status
#
# SIGUSR1 and SIGTERM reach the ranks as SIGUSR1: they stop between two updates, write their report, and the job ends.
# $OUTPUT/run.json says what was run, where, and how it ended; it is there from the start, exit_code null until the end.
set -euo pipefail

say() { echo "job: $*" >&2; }
# stop STATUS REASON: ends the job; exit statuses are those of weightcast
stop() {
  say "error: $2"
  exit "$1"
}

# "text" as a JSON string
json_text() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "${text//[[:cntrl:]]/ }"
}

# json_list TEXT...
json_list() {
  local comma='' text
  printf '['
  for text in "$@"; do
    printf '%s%s' "$comma" "$(json_text "$text")"
    comma=', '
  done
  printf ']'
}

commands=() gpus=() nodes=() session='' started=$(date -u +%FT%TZ) child='' asked='' asks=0

write_run() {  # EXIT_STATUS, or null
  {
    printf '{"schema": "weightcast.run/1",\n "job": %s, "name": %s, "launcher": %s,\n' \
      "$(json_text "$SLURM_JOB_ID")" "$(json_text "$SLURM_JOB_NAME")" "$(json_text "$LAUNCHER")"
    printf ' "commit": %s,\n' "$([[ -n $COMMIT ]] && json_text "$COMMIT" || echo null)"
    printf ' "nodes": %s, "gpus": %s,\n' "$(json_list "${nodes[@]}")" "$(json_list "${gpus[@]}")"
    printf ' "commands": %s,\n' "$(json_list "${commands[@]}")"
    printf ' "started": "%s", "ended": %s, "stopped_by": %s, "exit_code": %s}\n' "$started" \
      "$([[ $1 == null ]] && echo null || date -u +'"%FT%TZ"')" \
      "$([[ -n $asked ]] && json_text "SIG$asked" || echo null)" "$1"
  } >"$OUTPUT/.run.json.tmp"
  mv "$OUTPUT/.run.json.tmp" "$OUTPUT/run.json"
}

# Ends the launcher when it has not ended 15 s after it was asked to.
guard() {
  local tries
  for ((tries = 0; tries < 170; ++tries)); do
    kill -0 "$1" 2>/dev/null || return 0
    ((tries != 150)) || kill -TERM "$1" 2>/dev/null || true
    sleep 0.1
  done
  kill -KILL "$1" 2>/dev/null || true
}

on_signal() {
  asked=$1
  asks=$((asks + 1))
  say "asked to stop by SIG$asked"
  [[ -n $child ]] || exit 124
  kill -USR1 "$child" 2>/dev/null || true
  ((asks > 1)) || guard "$child" &
}

load_modules() {
  [[ -n ${MODULES:-} ]] || return 0
  local file module
  set +eu  # their scripts are not written for it
  for file in /etc/profile.d/{lmod,modules,z00_lmod,z01_modules}.sh /usr/share/modules/init/bash; do
    type module >/dev/null 2>&1 && break
    # shellcheck disable=SC1090
    [[ -r $file ]] && source "$file"
  done
  type module >/dev/null 2>&1 || stop 78 "MODULES asks for $MODULES, but node $(hostname) has no module command"
  for module in $MODULES; do
    module load "$module" || stop 78 "cannot load the module $module: see module avail, and MODULES at the top of the script"
  done
  set -eu
}

# Hosts of all ranks, in rank order: the trainer ranks first, node after node, then each replica within one node, if a
# node is large enough.
place() {
  local count part slots=() free=() hosts=() most=0 total=0 i replica
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  for part in ${SLURM_TASKS_PER_NODE//,/ }; do  # like 4(x2),3
    [[ $part =~ ^([0-9]+)(\(x([0-9]+)\))?$ ]] || stop 70 "cannot read SLURM_TASKS_PER_NODE=$SLURM_TASKS_PER_NODE"
    for ((i = 0; i < ${BASH_REMATCH[3]:-1}; ++i)); do slots+=("${BASH_REMATCH[1]}"); done
  done
  for count in "${slots[@]}"; do
    total=$((total + count))
    ((count <= most)) || most=$count
  done
  local have="the job has $total tasks on ${#nodes[@]} nodes (SLURM_TASKS_PER_NODE=$SLURM_TASKS_PER_NODE)"
  if [[ -z $TP ]]; then
    ((TRAINERS < total)) ||
      stop 78 "$have, and $TRAINERS for trainer ranks leave none for engines: change --nodes and --ntasks-per-node, or TRAINERS"
    TP=$(((total - TRAINERS) / DP))
    ((TP > 0 && TRAINERS + TP * DP == total)) ||
      stop 78 "$have, and $((total - TRAINERS)) engine ranks are not $DP x tp: change --ntasks-per-node, or set TP and DP"
  fi
  ((TRAINERS + TP * DP <= total)) ||
    stop 78 "$have, but $TRAINERS trainer + $DP x tp $TP engine ranks are $((TRAINERS + TP * DP)): change --nodes and --ntasks-per-node, or TRAINERS, TP and DP"

  free=("${slots[@]}")
  for i in "${!nodes[@]}"; do
    while ((free[i] > 0 && ${#hosts[@]} < TRAINERS)); do
      hosts+=("${nodes[i]}")
      free[i]=$((free[i] - 1))
    done
  done
  for ((replica = 0; replica < DP; ++replica)); do
    local left=$TP
    for i in "${!nodes[@]}"; do
      ((TP > most || free[i] >= TP)) || continue
      while ((free[i] > 0 && left > 0)); do
        hosts+=("${nodes[i]}")
        free[i]=$((free[i] - 1))
        left=$((left - 1))
      done
    done
    ((left == 0)) || stop 78 "$have: beside the trainer there is no node with room for replica $replica of tp $TP; add a node or a task per node"
  done
  if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
    for i in "${!nodes[@]}"; do
      ((slots[i] - free[i] <= SLURM_GPUS_ON_NODE)) || stop 78 "${nodes[i]} has $SLURM_GPUS_ON_NODE GPUs for $((slots[i] - free[i])) ranks: every rank needs its own"
    done
  fi
  printf '%s\n' "${hosts[@]}" >"$OUTPUT/hosts"

  case $LAUNCHER in
    mpirun)
      launcher=(mpirun -n "${#hosts[@]}" --hostfile "$OUTPUT/hosts" --mca rmaps seq)
      session=${OMPI_MCA_orte_tmpdir_base:-${TMPDIR:-/tmp}}/weightcast-mpirun-$SLURM_JOB_ID
      ;;
    srun)
      local used
      used=$(sort -u "$OUTPUT/hosts" | wc -l)
      export SLURM_HOSTFILE=$OUTPUT/hosts
      unset SLURM_NTASKS_PER_NODE  # the hosts say it
      # Slurm 22.05 to 23.02 does not hand --cpus-per-task on from the job to srun.
      [[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-$SLURM_CPUS_PER_TASK}
      export PMIX_MCA_gds=${PMIX_MCA_gds:-hash}  # else Open MPI 4.1.4 crashes in MPI_Init now and then
      launcher=(srun --mpi=pmix --nodes="$used" --ntasks="${#hosts[@]}" --distribution=arbitrary --kill-on-bad-exit=1)
      ;;
    *) stop 64 "LAUNCHER is mpirun or srun, not $LAUNCHER" ;;
  esac
}

begin() {
  [[ -n ${SLURM_JOB_ID:-} ]] || stop 64 "this is a batch script: start it with sbatch"
  trap 'on_signal USR1' USR1
  trap 'on_signal TERM' TERM
  OUTPUT=${OUTPUT:-$PWD/$SLURM_JOB_NAME-$SLURM_JOB_ID}
  mkdir -p "$OUTPUT"
  COMMIT=${COMMIT:-$(git -C "$JOBS" describe --always --abbrev=40 --dirty --exclude='*' 2>/dev/null || true)}
  trap 'write_run $?' EXIT
  load_modules
  command -v "$LAUNCHER" >/dev/null || stop 66 "there is no $LAUNCHER on $(hostname): set MODULES or LAUNCHER"
  command -v "$PROGRAM" >/dev/null || stop 66 "there is no program $PROGRAM on $(hostname): build it, or set PROGRAM"
  [[ ${TRAINERS:=1} =~ ^[1-9][0-9]*$ ]] || stop 64 "TRAINERS is a positive number"
  [[ ${TP:=} =~ ^([1-9][0-9]*)?$ && ${DP:=1} =~ ^[1-9][0-9]*$ ]] || stop 64 "TP and DP are positive numbers"
  export OMPI_MCA_hwloc_base_binding_policy=none  # a rank has several threads
  export PMIX_MCA_gds=${PMIX_MCA_gds:-hash}       # else mpirun shares a lock with its ranks, and waits for a stopped one
  if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
  place
  write_run null
}

ranks() {
  local seen status command=("${launcher[@]}" "$PROGRAM" "$@")
  printf -v seen ' %q' "${command[@]}"
  commands+=("${seen# }")
  say "${seen# }"
  [[ -z $asked ]] || return 124
  # A session folder of its own: in the one that all jobs of a user share on a node, an mpirun that ends removes what one
  # that begins has just found ("A call to mkdir was unable to create the desired directory").
  [[ -z $session ]] || export OMPI_MCA_orte_top_session_dir=$session.${#commands[@]}
  "${command[@]}" </dev/null &
  child=$!
  while :; do  # a trap ends `wait` early
    seen=$asks status=0
    wait "$child" || status=$?
    ((seen != asks)) || break
  done
  child=''
  [[ -z $asked || $status == 0 ]] || status=124  # mpirun after SIGTERM: always 1
  return "$status"
}

preflight() {
  local status=0
  ranks update --preflight --trainers "$TRAINERS" --tp "$TP" --dp "$DP" "$@" >"$OUTPUT/preflight.txt" || status=$?
  cat "$OUTPUT/preflight.txt"
  # rank role host cores free "of" total gpu
  mapfile -t gpus < <(sed -nE 's/^ *[0-9]+ +(trainer|engine) +([^ ]+) .* of +[0-9.]+ [kMGT]?B +([^ -].*)$/\2: \3/p' \
    "$OUTPUT/preflight.txt" | sort -u)
  write_run null
  ((status == 0)) || exit "$status"
}
