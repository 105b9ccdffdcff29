# Sourced by the scripts beside it: reads their arguments, finds Python and the library, and prepares a run of few ranks on
# one machine. --device, --model and each --NAME in $takes set a variable of that name; the rest goes into $options.
options=()
while (($#)); do
  if [[ $1 == -h || $1 == --help ]]; then
    usage
    exit 0
  elif [[ $1 == --* && " device model ${takes:-} " == *" ${1#--} "* ]]; then
    printf -v "${1#--}" %s "$2"
    shift
  else
    options+=("$1")
  fi
  shift
done
export PYTHON=${PYTHON:-python3}
root=$here/../..
if [[ -z ${WEIGHTCAST_LIBRARY:-} ]]; then
  builds=(host cuda)
  [[ $device == cuda* ]] && builds=(cuda)
  for build in "${builds[@]}"; do
    [[ -e $root/build/$build/lib/libweightcast.so.1 ]] && WEIGHTCAST_LIBRARY=$root/build/$build/lib/libweightcast.so.1
  done
  if [[ -z ${WEIGHTCAST_LIBRARY:-} ]]; then
    echo "no libweightcast.so.1 in build/${builds[0]}/lib: cmake --preset ${builds[0]} && cmake --build --preset" \
      "${builds[0]} --target weightcast_capi weightcast-example-engine" >&2
    exit 66
  fi
fi
export WEIGHTCAST_LIBRARY
if ! "$PYTHON" -c 'import mpi4py, safetensors, torch, transformers'; then
  echo "$PYTHON lacks a package: pip install torch transformers safetensors mpi4py, or name another PYTHON" >&2
  exit 69
fi
if [[ ! -e $model/config.json ]]; then
  echo "there is no checkpoint in $model: tools/get_demo_model.py demo-model makes one" >&2
  exit 66
fi
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader
if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
