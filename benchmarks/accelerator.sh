#!/usr/bin/env bash
# Measures on a GPU or TPU what CPUs cannot, in the order of its worth:
#   benchmarks/accelerator.sh OUT [CIFAR100]
# CIFAR100 is its folder or zip; without it, nothing is trained. Each part writes OUT/PART.log, and
# OUT/PART.done when it is complete: after an interruption, the same command goes on with the rest.
# PYTHON chooses the interpreter. TOY=1 shrinks all parts, to try the script on a CPU.
set -uo pipefail
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n '2,6s/^# //p' "$0" >&2
  exit 2
fi
absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }
out=$(absolute "$1")
cifar100=${2:+$(absolute "$2")}
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
toy=${TOY:-}
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# A second run reads what the first has compiled.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$out/compiled}
failed=0

part() { # part NAME COMMAND...: runs a command unless it is complete already.
  local name=$1 status=0
  shift
  if [ -e "$out/$name.done" ]; then
    echo "$name: done already"
    return
  fi
  echo "$name: $*"
  { echo "\$ $*" && date --iso-8601=seconds && "$@"; } >"$out/$name.log" 2>&1 || status=$?
  if [ $status -eq 0 ]; then
    touch "$out/$name.done"
  else
    failed=1
    echo "$name: failed with status $status; see $out/$name.log" >&2
  fi
}

train() { # train NAME CONFIG SEED [OVERRIDES]: a run of its own, which continues.
  local name=$1 config=$2 seed=$3
  shift 3
  part "$name" "$python" -m llc_jax.main --config="$config" --workdir="$out/runs/$name" \
    --config.seed="$seed" "$@"
}

trap 'exit 130' INT
trap 'exit 143' TERM

part devices "$python" -c 'import jax; print(jax.__version__, jax.devices())'
step=() encode=() decoding=() search=()
if [ -n "$toy" ]; then
  step=(--model=resnet8_small --batch=8 --size=32 --steps=1 --rounds=1)
  encode=(--model=resnet8_small --batch=16 --size=32 --images=32 --seconds=1)
  decoding=(--classes 100 --bits 20)
  search=(--items 2000 --bits 20 --tops 10 --rounds 1)
fi
part train_step "$python" benchmarks/train_step.py "${step[@]}"
part encode "$python" benchmarks/encode_images.py "${encode[@]}"
part decoding "$python" benchmarks/decoding.py "${decoding[@]}"
part search "$python" benchmarks/retrieval.py "${search[@]}"
if [ -n "$cifar100" ]; then
  small=()
  if [ -n "$toy" ]; then
    small=(--config.model.name=resnet8_small --config.batch_size=16 --config.model.dtype=float32)
    for stage in linear codebook instance; do small+=("--config.stages.$stage.epochs=1"); done
  fi
  for seed in 0 1 2; do
    train "resnet18_$seed" "cifar100_20bit_resnet18:$cifar100" "$seed" "${small[@]}"
    [ -z "$toy" ] || break
  done
  if [ -z "$toy" ]; then
    for seed in 0 1 2; do train "retrieval_$seed" "cifar100_retrieval:$cifar100" "$seed"; done
  fi
fi
exit $failed
