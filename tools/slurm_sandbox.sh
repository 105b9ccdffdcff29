#!/usr/bin/env bash
# A Slurm of several virtual nodes on this machine, for tests of jobs/.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tools/slurm_sandbox.sh up [options]       starts it and prints `export SLURM_CONF=...`, for eval
       tools/slurm_sandbox.sh down [--dir DIR]   ends it: no process and no file is left
       tools/slurm_sandbox.sh run [options] -- COMMAND...   up, COMMAND with SLURM_CONF set, down

Starts Debian's munged, slurmctld and one slurmd per virtual node, all of them on loopback, without systemd or cgroups.
Each node is a host of its own to MPI: its own host name, /dev/shm and /etc/hosts. Needs root, changes nothing outside
its folder, and does not touch a Slurm that is there already. `up` on a folder that is up prints the same line again.

  --nodes N    virtual nodes n1, n2, ... (default 2)
  --cpus N     cores that each node claims to have (default 8)
  --dir DIR    state folder; default: a new one in TMPDIR (`down` finds it through SLURM_CONF)
  --install    install the packages that are missing (as root with apt-get; no service is started)

Exit code: 64 usage; 69 packages or rights are missing, or it did not start; with run that of COMMAND.
TEXT
}

say() { echo "slurm_sandbox: $*" >&2; }
stop() {
  say "$2"
  exit "$1"
}

packages=(slurmctld slurmd slurm-client munge)

action=${1:-}
case $action in
  up | down | run) shift ;;
  -h | --help) usage && exit 0 ;;
  *) usage >&2 && exit 64 ;;
esac
nodes=2 cpus=8 dir='' install='' command=()
while (($#)); do
  case $1 in
    --nodes | --cpus | --dir)
      [[ -n ${2:-} ]] || stop 64 "$1 needs a value"
      case $1 in
        --nodes) nodes=$2 ;;
        --cpus) cpus=$2 ;;
        --dir) dir=$2 ;;
      esac
      shift 2
      ;;
    --install) install=1 && shift ;;
    -h | --help) usage && exit 0 ;;
    --) shift && command=("$@") && break ;;
    *) stop 64 "unknown argument $1; see --help" ;;
  esac
done
[[ $nodes =~ ^[1-9][0-9]?$ && $cpus =~ ^[1-9][0-9]{0,2}$ ]] || stop 64 "--nodes and --cpus need small positive numbers"
[[ $action != run ]] || ((${#command[@]})) || stop 64 "run needs -- COMMAND"
export PATH=$PATH:/usr/sbin:/sbin

# The process of this daemon, if it lives and is ours: its command line names our folder.
pids_of() {
  local pid
  pid=$(cat "$dir/$1.pid" 2>/dev/null) || return 0
  ! grep -qF "$dir" "/proc/$pid/cmdline" 2>/dev/null || echo "$pid"
}

# Everything that runs in the mount namespace of one of the virtual nodes: slurmd, its job steps, their children.
inside_nodes() {
  local namespace link
  [[ -e $dir/namespaces ]] || return 0
  for link in /proc/[0-9]*/ns/mnt; do
    namespace=$(readlink "$link" 2>/dev/null) || continue
    if grep -qxF "$namespace" "$dir/namespaces"; then
      link=${link#/proc/}
      echo "${link%%/*}"
    fi
  done
}

down() {
  [[ -e $dir/slurm.conf ]] || stop 64 "$dir is not the folder of a sandbox"
  local pids tries
  for ((tries = 0; tries < 100; ++tries)); do  # a process may be about to start another one
    pids=$(pids_of slurmctld; pids_of munged; inside_nodes)
    [[ -n $pids ]] || break
    # shellcheck disable=SC2086  # process ids
    kill -KILL $pids 2>/dev/null || true
    sleep 0.05
  done
  [[ -z $pids ]] || stop 69 "these processes do not end: $pids"
  rm -rf "$dir"
}

free_ports() {
  python3 - "$1" <<'PYTHON'
import random, socket, sys
for first in random.sample(range(20000, 32000, 64), 100):
    try:
        sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
        for i, s in enumerate(sockets):
            s.bind(("127.0.0.1", first + i))
    except OSError:
        continue
    print(first)
    break
PYTHON
}

# The last lines of every log that has any, after a failed start.
show_logs() {
  local log
  for log in "$dir"/*.log; do
    [[ ! -s $log ]] || { echo "== $log" >&2 && tail -n 8 "$log" >&2; }
  done
}

write_configuration() {
  local port
  port=$(free_ports $((nodes + 1)))
  mkdir -p "$dir/state"
  head -c 1024 /dev/urandom >"$dir/munge.key"
  chmod 0400 "$dir/munge.key"
  cat >"$dir/slurm.conf" <<TEXT
ClusterName=sandbox
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5,socket=$dir/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/%n/spool
TmpFS=$dir/%n/tmp
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=bf_interval=1,sched_interval=1
ReturnToService=2
KillWait=20
SlurmdParameters=config_overrides
MailProg=/bin/true
NodeName=n[1-$nodes] NodeHostname=n[1-$nodes] NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + nodes))] CPUs=$cpus
PartitionName=main Nodes=ALL Default=YES State=UP OverSubscribe=NO
TEXT
  ((nodes > 1)) || sed -i 's/n\[1-1\]/n1/g; s/Port=\[\([0-9]*\)-[0-9]*\]/Port=\1/' "$dir/slurm.conf"
  {
    echo "127.0.0.1 localhost $(hostname)"
    for ((i = 1; i <= nodes; ++i)); do echo "127.0.0.1 n$i"; done
  } >"$dir/hosts"
}

start_node() {
  local node=$1
  mkdir -p "$dir/$node/spool" "$dir/$node/tmp" "$dir/$node/shm"
  # shellcheck disable=SC2016  # expanded inside
  setsid unshare --uts --ipc --mount --propagation private bash -c '
    set -e
    hostname "$2"
    mount --bind "$1/hosts" /etc/hosts
    mount -t tmpfs tmpfs /dev/shm
    readlink /proc/self/ns/mnt >>"$1/namespaces"
    export TMPDIR=$1/$2/tmp
    exec slurmd -D -f "$1/slurm.conf" -N "$2"' slurmd "$dir" "$node" </dev/null >"$dir/$node.log" 2>&1 &
  disown # bash need not say how it ended
}

up() {
  if [[ -n $dir && -e $dir/slurm.conf ]] && SLURM_CONF=$dir/slurm.conf timeout 5 scontrol ping >/dev/null 2>&1; then
    return 0
  fi
  ((EUID == 0)) || stop 69 "this needs root: every virtual node gets namespaces of its own"
  local missing=() program tries
  for program in slurmctld slurmd sbatch munged; do
    command -v "$program" >/dev/null || missing+=("$program")
  done
  if ((${#missing[@]})) && [[ -n $install ]]; then
    bash "$(dirname "${BASH_SOURCE[0]}")/setup.sh" --tests
  elif ((${#missing[@]})); then
    stop 69 "no ${missing[*]} here: apt-get install --no-install-recommends ${packages[*]}, or use --install"
  fi
  unshare --uts --ipc --mount true 2>/dev/null || stop 69 "this machine does not let root make namespaces (a container without CAP_SYS_ADMIN?)"

  dir=${dir:-$(mktemp -d "${TMPDIR:-/tmp}/slurm-sandbox.XXXXXX")}
  mkdir -p "$dir"
  dir=$(cd "$dir" && pwd)
  [[ ! -e $dir/slurm.conf ]] || { down && mkdir -p "$dir"; }  # what a crash has left
  write_configuration
  munged --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munge.seed" --num-threads=2 --force 2>>"$dir/munged.err"
  export SLURM_CONF=$dir/slurm.conf
  slurmctld -f "$SLURM_CONF" -i </dev/null >>"$dir/slurmctld.out" 2>&1
  for ((i = 1; i <= nodes; ++i)); do start_node "n$i"; done
  for ((tries = 0; tries < 100; ++tries)); do
    if [[ $(timeout 5 sinfo -h -N -t idle -o %N 2>/dev/null | wc -l) == "$nodes" ]]; then return 0; fi
    sleep 0.1
  done
  show_logs
  down
  stop 69 "the nodes did not come up within 10 s"
}

case $action in
  up)
    up
    echo "export SLURM_CONF=$dir/slurm.conf"
    ;;
  down)
    [[ -n $dir || -n ${SLURM_CONF:-} ]] || stop 64 "which one? Give --dir, or set SLURM_CONF"
    dir=${dir:-$(dirname "$SLURM_CONF")}
    down
    ;;
  run)
    up
    trap down EXIT
    "${command[@]}"
    ;;
esac
