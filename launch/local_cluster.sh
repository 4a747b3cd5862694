#!/usr/bin/env bash
# Trains in several processes on this machine, as on so many hosts.
#   launch/local_cluster.sh N [--dry-run] ARGUMENTS     ARGUMENTS of llc_jax.main
# They share its GPUs, if it has at least N; on CPUs this is for trying things out. What each
# says begins with its number. A signal to the script stops all. --dry-run prints the commands.
set -euo pipefail

source "$(dirname "$0")/commands.sh"
[ $# -ge 2 ] && [[ $1 =~ ^[1-9][0-9]*$ ]] || usage
count=$1
shift
dry_run=
if [ "$1" = --dry-run ]; then
  dry_run=yes
  shift
fi

python=${PYTHON:-}
if [ -z "$python" ]; then
  # shellcheck source=launch/environment.sh
  [ -n "$dry_run" ] || (source "$(dirname "$0")/environment.sh")
  python=$(dirname "$0")/../.venv/bin/python
fi
gpus=$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)
share=$((gpus / count))
port=${PORT:-$("${PYTHON:-python3}" -c 'import socket
with socket.create_server(("", 0)) as free: print(free.getsockname()[1])')}

# Each process is a group of its own, so that it has a signal from this script alone, and once.
set -m

# Puts a number before each line, the last ones too.
number() {
  trap '' INT TERM
  exec sed -u "s/^/[$1] /"
}

pids=()
for ((i = 0; i < count; i++)); do
  command=(env PYTHONUNBUFFERED=1)
  ((share == 0)) ||
    command+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, $((i * share)) $((i * share + share - 1)))")
  command+=("$python" -m llc_jax.main "--coordinator=localhost:$port" "--num_processes=$count"
    "--process_id=$i" "$@")
  if [ -n "$dry_run" ]; then
    call "${command[@]}"
  else
    "${command[@]}" > >(number "$i") 2> >(number "$i" >&2) &
    pids+=($!)
  fi
done
[ -z "$dry_run" ] || exit 0

# What bash says of processes that a signal has ended is no news; they have their own outputs.
exec 2>/dev/null
# A signal ends `wait`, not the processes: they save, and end together.
for name in INT TERM; do
  # shellcheck disable=SC2064  # The name is meant as it is now.
  trap "kill -$name \"\${pids[@]}\" 2>/dev/null || true" "$name"
done
status=0
for pid in "${pids[@]}"; do
  while :; do
    code=0
    wait "$pid" || code=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  ((status)) || status=$code
done
exit "$status"
