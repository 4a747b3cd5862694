#!/usr/bin/env bash
# Trains on TPUs of GKE: v4, v5e, v5p, v6e, and tpu7x, which has no TPU VMs.
#   launch/gke.sh NAME --type v6e --topology 4x4 --image IMAGE --claim CLAIM ARGUMENTS
#   launch/gke.sh NAME --with gcluster --cluster C --location L --type ... --image ... ARGUMENTS
# The first applies launch/gke_jobset.yaml with kubectl, in its current context; CLAIM is a volume
# claim of a shared file system, which the pods have as /shared; it can be left out where the
# workdir is a URL, as --workdir=gs://bucket/run. --with gcluster hands the same training to Cluster
# Toolkit, and --with xpk to its forerunner XPK; both want --cluster and --location. Also: --slices
# N, --chips (of a host, 4), --restarts (100), --project P, and --dry-run, which prints what would
# be done. ARGUMENTS begin with --config. The image is built by
#   docker build --file launch/Dockerfile --tag IMAGE .
# `kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME,batch.kubernetes.io/job-completion-index=0`
# shows what process 0 says; `kubectl delete jobset NAME` saves and ends the run, and the same
# command continues it.
# After docs.cloud.google.com/cluster-toolkit/docs/reference/gcluster-job-submit, XPK 1.16 and
# docs.cloud.google.com/kubernetes-engine/docs/concepts/tpus; read on 2026-11-28.
set -euo pipefail

source "$(dirname "$0")/commands.sh"
[ $# -ge 2 ] || usage
name=$1
shift
type='' topology='' image='' claim='' cluster='' location='' project='' dry_run=''
with=jobset slices=1 chips=4 restarts=100
while [ $# -gt 0 ]; do
  case $1 in
    --type | --topology | --image | --claim | --with | --cluster | --location | --project | \
      --slices | --chips | --restarts)
      [ $# -ge 2 ] || fail "$1 needs a value."
      declare "${1#--}=$2"
      shift 2
      ;;
    --dry-run) dry_run=yes; shift ;;
    *) break ;;
  esac
done
for option in topology image; do
  [ -n "${!option}" ] || fail "--$option is missing."
done
[ $# -gt 0 ] || fail "What to train is missing: --config=NAME:PATH --workdir=PATH."
case $type in
  v4) accelerator=tpu-v4-podslice machine=ct4p-hightpu-4t ;;
  v5e) accelerator=tpu-v5-lite-podslice machine=ct5lp-hightpu-4t ;;
  v5p) accelerator=tpu-v5p-slice machine=ct5p-hightpu-4t ;;
  v6e) accelerator=tpu-v6e-slice machine=ct6e-standard-4t ;;
  tpu7x) accelerator=tpu7x machine=tpu7x-standard-4t ;;
  *) fail "--type is v4, v5e, v5p, v6e or tpu7x, not '$type'." ;;
esac

as_json() { # Prints a list of strings.
  local item items=()
  for item in "$@"; do
    item=${item//\\/\\\\}
    items+=("\"${item//\"/\\\"}\"")
  done
  local IFS=,
  echo "[${items[*]}]"
}

fill_in() { # Prints the JobSet.
  local manifest key value
  local -A values=([NAME]=$name [RESTARTS]=$restarts [SLICES]=$slices [IMAGE]=$image
    [HOSTS]=$((${topology//x/*} / chips)) [CHIPS]=$chips [ACCELERATOR]=$accelerator
    [TOPOLOGY]=$topology [CLAIM]=$claim [ARGUMENTS]=$(as_json "$@"))
  manifest=$(sed '/^#/d' "$(dirname "$0")/gke_jobset.yaml")
  [ -n "$claim" ] || manifest=$(sed '/volumeMounts:/,$d' <<<"$manifest") # The volumes are last.
  for key in "${!values[@]}"; do
    value=${values[$key]}
    manifest=${manifest//"\${$key}"/"$value"}
  done
  echo "$manifest"
}

printf -v command '%q ' python -m llc_jax.main --coordinator=auto --platform=tpu \
  --initialization_timeout=110 "$@"
case $with in
  jobset)
    [ -n "$claim" ] || [[ "$*" == *--workdir=*://* ]] ||
      fail "--claim is missing: a volume claim of a shared file system, or --workdir is a URL."
    if [ -n "$dry_run" ]; then
      fill_in "$@"
    else
      fill_in "$@" | kubectl apply --filename -
    fi
    ;;
  gcluster)
    [ -n "$cluster" ] && [ -n "$location" ] || fail "--cluster or --location is missing."
    call gcluster job submit --name "$name" --cluster "$cluster" --location "$location" \
      ${project:+--project "$project"} --compute-type "$machine" --topology "$topology" \
      --num-slices "$slices" --restarts "$restarts" --grace-period 120s \
      ${claim:+--mount "$claim:/shared:rw"} --image "$image" --command "${command% }"
    ;;
  xpk)
    [ -z "$claim" ] || fail "XPK mounts what xpk storage attach has attached: leave --claim out."
    [ -n "$cluster" ] && [ -n "$location" ] || fail "--cluster or --location is missing."
    call xpk workload create --workload "$name" --cluster "$cluster" --zone "$location" \
      ${project:+--project "$project"} --tpu-type "${type/#v5e/v5litepod}-$topology" \
      --num-slices "$slices" --max-restarts "$restarts" \
      --termination-grace-period-seconds 120 --docker-image "$image" --command "${command% }"
    ;;
  *) fail "--with is jobset, gcluster or xpk, not '$with'." ;;
esac
