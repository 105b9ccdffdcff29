#!/usr/bin/env bash
# Installs the Debian packages that weightcast is built from.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tools/setup.sh [--tests]

Installs the Debian or Ubuntu packages that are missing: as root with apt-get, otherwise with sudo, otherwise it
prints the command to run and stops. Does nothing when all are there.

  --tests   also the packages that only the tests need, Slurm among them (its services are not started)

Exit code 0: everything is there; 69: something is missing and this user cannot install it.
TEXT
}

build_packages=(
  g++ cmake ninja-build pkg-config
  openmpi-bin libopenmpi-dev libhdf5-openmpi-dev
  libboost-program-options-dev nlohmann-json3-dev libfmt-dev libxxhash-dev
  libgtest-dev libgmock-dev librapidcheck-dev
  python3 python3-venv ca-certificates
)
test_packages=(
  hdf5-tools help2man python3-jsonschema python3-numpy python3-mpi4py tcl
  environment-modules slurmctld slurmd slurm-client munge # their services are not started
)

packages=("${build_packages[@]}")
for argument in "$@"; do
  case $argument in
    --tests) packages+=("${test_packages[@]}") ;;
    -h | --help) usage; exit 0 ;;
    *) echo "setup: unknown argument $argument" >&2; usage >&2; exit 64 ;;
  esac
done

if ! command -v dpkg-query >/dev/null; then
  echo "setup: this is not Debian or Ubuntu. Install what these packages hold, then build as README.md says:" >&2
  echo "  ${packages[*]}" >&2
  exit 69
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $status == installed ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  echo "setup: all ${#packages[@]} packages are there" >&2
  exit 0
fi
echo "setup: missing: ${missing[*]}" >&2

install=(apt-get install -y --no-install-recommends "${missing[@]}")
if ((EUID == 0)); then
  as_root=()
elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; then
  as_root=(sudo)
else
  echo "setup: this user cannot install packages. Run this as root, then start again:" >&2
  echo "  apt-get update && ${install[*]}" >&2
  exit 69
fi
echo "setup: installing them with ${as_root[*]:+sudo }apt-get" >&2
log=$(mktemp)
policy=/usr/sbin/policy-rc.d # what Debian asks before it starts a service that it has just installed
own_policy=
clean_up() {
  rm -f "$log"
  [[ -z $own_policy ]] || "${as_root[@]}" rm -f "$policy"
}
trap clean_up EXIT
if [[ ! -e $policy ]]; then
  own_policy=1
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 755 /dev/stdin "$policy"
fi
if ! { "${as_root[@]}" apt-get update &&
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "${install[@]}"; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "setup: apt-get failed (see above). Mend that, then start again." >&2
  exit 69
fi
