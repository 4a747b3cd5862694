#!/usr/bin/env bash
# Trains on Cloud TPU VMs (v4, v5e, v5p, v6e), on one slice or several, as a queued resource.
#   launch/tpu_pod.sh create  NAME --type v6e-16 --zone ZONE [--slices N] [--spot|--reserved]
#   launch/tpu_pod.sh install NAME --zone ZONE             copies this directory to all workers
#   launch/tpu_pod.sh run     NAME --zone ZONE ARGUMENTS   starts llc_jax.main on all, or continues
#   launch/tpu_pod.sh logs    NAME --zone ZONE [--worker W]   follows what worker 0 says, or another
#   launch/tpu_pod.sh stop    NAME --zone ZONE             saves, and ends the run
#   launch/tpu_pod.sh resume  NAME --type ... --zone ZONE ARGUMENTS   after a preemption: all anew
#   launch/tpu_pod.sh delete  NAME --zone ZONE
# Also: --project P, --runtime VERSION (by default the one for JAX), and --dry-run, which prints the
# commands and runs none. ARGUMENTS begin with --config; the workdir and the data are where all
# workers find them under the same name, as gs://bucket/run. gcloud is logged in by its own means
# beforehand.
# The commands are those of the reference of gcloud (SDK 528), the runtime versions those of
# docs.cloud.google.com/tpu/docs/runtimes; both read on 2026-11-28. Newer TPUs: launch/gke.sh.
set -euo pipefail

source "$(dirname "$0")/commands.sh"
[ $# -ge 2 ] || usage
action=$1 name=$2
shift 2
type='' zone='' project='' runtime='' slices=1 worker=0 dry_run='' capacity=()
while [ $# -gt 0 ]; do
  case $1 in
    --type | --zone | --project | --runtime | --slices | --worker)
      [ $# -ge 2 ] || fail "$1 needs a value."
      declare "${1#--}=$2"
      shift 2
      ;;
    --spot | --reserved) capacity=("$1"); shift ;;
    --dry-run) dry_run=yes; shift ;;
    *) break ;;
  esac
done
arguments=("$@")
[ -n "$zone" ] || fail "--zone is missing: a zone that has such TPUs, as us-east5-b."
where=(--zone "$zone" ${project:+--project "$project"})

tpu() { call gcloud compute tpus queued-resources "$@" "${where[@]}"; }

on_workers() { tpu ssh "$name" --node all --worker all --batch-size all --command "$1"; }

state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format 'value(state.state)' 2>/dev/null || echo MISSING
}

request() {
  local nodes=(--node-id "$name")
  type=${type/#v5e-/v5litepod-}
  case $type in
    v4-*) runtime=${runtime:-tpu-ubuntu2204-base} ;;
    v5litepod-*) runtime=${runtime:-v2-alpha-tpuv5-lite} ;;
    v5p-*) runtime=${runtime:-v2-alpha-tpuv5} ;;
    v6e-*) runtime=${runtime:-v2-alpha-tpuv6e} ;;
    *) fail "--type is v4-N, v5e-N, v5p-N or v6e-N, not '$type'; newer TPUs: launch/gke.sh." ;;
  esac
  [ "$slices" -eq 1 ] || nodes=(--node-count "$slices" --node-prefix "$name")
  tpu create "$name" "${nodes[@]}" --accelerator-type "$type" --runtime-version "$runtime" \
    "${capacity[@]}"
}

await() {
  [ -z "$dry_run" ] || return 0
  echo "Waiting for the TPU. Ctrl-C stops only the waiting: the request stays in the queue."
  local now
  while now=$(state) && [ "$now" != ACTIVE ]; do
    case $now in
      FAILED | SUSPEND* | MISSING) fail "The TPU $name was not given: its state is $now." ;;
    esac
    sleep 20
  done
}

# The VMs have an older Python than llc_jax needs; uv brings one.
install() {
  tar -C "$(dirname "$0")/.." -czf "$archive" \
    llc_jax configs launch requirements.txt setup.cfg pyproject.toml README.md
  tpu scp "$archive" "$name:llc_jax.tar.gz" --node all --worker all
  on_workers "mkdir -p llc_jax && tar -C llc_jax -xzf llc_jax.tar.gz && \
python3 -m pip install --quiet --user uv && PATH=\$HOME/.local/bin:\$PATH && \
uv python install --quiet 3.12 && \
PYTHON=\$(uv python find 3.12) JAX_EXTRA=tpu bash llc_jax/launch/environment.sh"
}

run() {
  local command
  [ ${#arguments[@]} -gt 0 ] || fail "What to train is missing: --config=NAME:PATH --workdir=PATH."
  # The connections to hundreds of workers are not made within the usual minute.
  printf -v command '%q ' .venv/bin/python -m llc_jax.main --coordinator=auto --platform=tpu \
    --initialization_timeout=110 "${arguments[@]}"
  on_workers "cd llc_jax && if [ -e run.pid ] && kill -0 \$(cat run.pid) 2>/dev/null; then \
echo 'error: a run is at work here: stop it first.' >&2; exit 2; fi; \
PYTHONUNBUFFERED=1 nohup $command>run.log 2>&1 </dev/null & echo \$! >run.pid"
}

archive=$(mktemp -d)/llc_jax.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
case $action in
  create)
    request
    await
    ;;
  install) install ;;
  run) run ;;
  logs)
    tpu ssh "$name" --node 0 --worker "$worker" --command \
      "cd llc_jax && tail --pid=\$(cat run.pid) --lines=+1 --follow=name run.log"
    ;;
  stop) on_workers "kill -TERM \$(cat llc_jax/run.pid)" ;;
  resume)
    now=SUSPENDED
    [ -n "$dry_run" ] || now=$(state)
    case $now in
      FAILED | SUSPEND*) tpu delete "$name" --force --quiet ;;
    esac
    case $now in
      FAILED | SUSPEND* | MISSING) request ;;
    esac
    if [ "$now" != ACTIVE ]; then
      await
      install
    fi
    run
    ;;
  delete) tpu delete "$name" --force --quiet ;;
  *) usage ;;
esac
