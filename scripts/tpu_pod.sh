#!/usr/bin/env bash
# Pre-train on all workers of a TPU pod, and resume after a preemption.
#
#   TPU=biomedlm ZONE=us-west4-a TYPE=v5litepod-256 \
#   DATA=gs://BUCKET/tokens RUN=gs://BUCKET/run \
#     scripts/tpu_pod.sh --config=configs/pretrain.py:biomedlm_2_7b
#
# All arguments are flags of `biomedlm pretrain`. Requires gcloud with a signed-in account.
#
# The script creates the pod if it does not exist, installs this repository on every worker (the
# files that git tracks, with their current content: `git add` a config of your own), and starts
# one `biomedlm pretrain` per worker. After a failure or a preemption it starts the run again, which
# resumes from its last checkpoint; the pause between attempts doubles with each failure. It stops
# at exit code 2 (bad input, which a restart cannot fix) and 130 (stopped by a person). Keep the
# script running, for example in tmux: it holds the ssh sessions.
#
# Environment variables, required:
#   TPU, ZONE, TYPE    name, zone and accelerator type of the pod
#   DATA, RUN          directories of the token rows and of the run: gs://..., or mounted paths that
#                      every worker can read
# Environment variables, optional:
#   MOUNT              command that each worker runs before training, once per boot; a new pod has
#                      nothing mounted, also after a preemption
#   VERSION            software image (v2-alpha-tpuv5-lite)
#   PYTHON             interpreter, installed with apt if missing (python3.11)
#   SPOT=0             create an on-demand pod; the default is a cheaper, preemptible spot pod
#   DELETE=1           delete the pod when training has finished
#   RETRY_SECONDS      pause before the second attempt (60); it doubles, up to MOST_SECONDS (1800)
#   FAILURES           failed attempts allowed on one pod (10)
#   CREATES            rejected `create` calls in a row allowed, lack of capacity aside (5)
#   WAITS              checks in a row allowed without a ready pod (720)
#
# Exit codes: 0 when training has finished, 2 for invalid input, 130 when the workers got SIGINT, 1
# when a limit is reached.
# The pod is billed until it is deleted. On every other exit than DELETE=1 after success, the script
# leaves the pod and prints the command that deletes it.
set -euo pipefail

usage() { awk 'NR > 1 { if (!/^#( |$)/) exit; sub(/^# ?/, ""); print }' "${BASH_SOURCE[0]}"; }
for argument in "$@"; do
  case "$argument" in -h | --help | -help) usage && exit 0 ;; esac
done

for name in TPU ZONE TYPE DATA RUN; do
  if [ -z "${!name:-}" ]; then
    echo "expected the environment variable $name, got none; fix: set $name, see $0 --help" >&2
    exit 2
  fi
done
for name in DATA RUN; do
  case "${!name}" in
    gs://*) ;;
    *://*)
      echo "expected gs://... or a mounted path in $name, got ${!name}; fix: mount it" >&2
      exit 2
      ;;
  esac
done
VERSION="${VERSION:-v2-alpha-tpuv5-lite}"
PYTHON="${PYTHON:-python3.11}"
MOUNT="${MOUNT:-}"
SPOT="${SPOT:-1}"
DELETE="${DELETE:-0}"
RETRY_SECONDS="${RETRY_SECONDS:-60}"
MOST_SECONDS="${MOST_SECONDS:-1800}"
FAILURES="${FAILURES:-10}"
CREATES="${CREATES:-5}"
WAITS="${WAITS:-720}"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tpu_vm() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }
on_workers() { tpu_vm ssh "$TPU" --worker=all --command="$1"; }

failures=0
retry() { # REASON: pause before the next attempt, or exit after the last one
  failures=$((failures + 1))
  if [ "$failures" -ge "$FAILURES" ]; then
    echo "$1; stopped after $failures failures on this pod" >&2
    exit 1
  fi
  local pause=$((RETRY_SECONDS * 2 ** (failures - 1)))
  pause=$((pause < MOST_SECONDS ? pause : MOST_SECONDS))
  echo "$1; next attempt in $pause s" >&2
  sleep "$pause"
}

waits=0
wait_for_pod() { # STATE: pause before the next check, or exit after the last one
  waits=$((waits + 1))
  if [ "$waits" -ge "$WAITS" ]; then
    echo "expected a READY pod, got $1 in $waits checks; fix: check gcloud, or raise WAITS" >&2
    exit 1
  fi
  sleep "$RETRY_SECONDS"
}

creates=0
create_pod() { # exit after CREATES rejected calls in a row
  local spot=--spot before="$pod_exists"
  [ "$SPOT" = 1 ] || spot=
  pod_exists=1
  if tpu_vm create "$TPU" --accelerator-type="$TYPE" --version="$VERSION" ${spot:+"$spot"} 2>&1 |
    tee "$answer" >&2; then
    creates=0
    return
  fi
  pod_exists="$before"
  if grep -qiE 'capacity|stockout' "$answer"; then
    creates=0 # temporary: only WAITS limits it
    return
  fi
  creates=$((creates + 1))
  if [ "$creates" -ge "$CREATES" ]; then
    echo "gcloud rejected \`create\` $creates times in a row; its last output:" >&2
    cat "$answer" >&2
    exit 1
  fi
}

package="$(mktemp)"
answer="$(mktemp)"
pod_exists="" # non-empty while there may be a pod, which is billed
on_exit() {
  rm -f "$package" "$answer"
  if [ -n "$pod_exists" ]; then
    echo "the pod $TPU still exists and is billed; delete it with:" \
      "gcloud compute tpus tpu-vm delete $TPU --zone=$ZONE" >&2
  fi
}
trap on_exit EXIT
# Only the files that git tracks: data, runs and virtual environments are in the same directory.
git ls-files -z | tar -czf "$package" --null -T -
unpack="mkdir -p biomedlm_jax && tar -xzf biomedlm_jax.tar.gz -C biomedlm_jax && cd biomedlm_jax"
# Debian's Python has no ensurepip until its venv package is installed.
apt="sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300"
python="{ $PYTHON -c 'import ensurepip' 2>/dev/null ||
  { $apt update; $apt install -y $PYTHON $PYTHON-venv; } ||
  { echo 'expected $PYTHON on this worker, and apt cannot install it; fix: set PYTHON or VERSION' >&2
    exit 1; }; }"
install="$python && $PYTHON -m venv .venv && .venv/bin/pip install -q -e '.[tpu,gcs]'"
# Each worker records its boot id and the mount command, so that a retry does not mount twice.
mount="done=\"\$(cat /proc/sys/kernel/random/boot_id) \"$(printf %q "$MOUNT")
[ \"\$(cat .biomedlm_mounted 2>/dev/null)\" = \"\$done\" ] || {
  ( $MOUNT
  ) && printf '%s\n' \"\$done\" > .biomedlm_mounted; }"
# Quoted for the worker's shell, which splits the command again.
train="$(printf '%q ' .venv/bin/biomedlm pretrain --distributed \
  "--config.data.path=$DATA" "--workdir=$RUN" "$@")"

while true; do
  state="$(tpu_vm describe "$TPU" --format='value(state)' 2>/dev/null || echo ABSENT)"
  [ "$state" = ABSENT ] || pod_exists=1
  case "$state" in
    READY)
      waits=0
      creates=0
      ;;
    ABSENT)
      failures=0
      create_pod
      wait_for_pod "$state"
      continue
      ;;
    PREEMPTED | TERMINATED | FAILED)
      if tpu_vm delete "$TPU" --quiet; then pod_exists=""; fi
      wait_for_pod "$state"
      continue
      ;;
    STOPPED)
      tpu_vm start "$TPU" || true
      wait_for_pod "$state"
      continue
      ;;
    *)
      wait_for_pod "$state" # CREATING, DELETING, ...
      continue
      ;;
  esac
  if ! tpu_vm scp --worker=all "$package" "$TPU:biomedlm_jax.tar.gz"; then
    retry "the repository was not copied"
    continue
  fi
  if ! on_workers "$unpack && $install"; then
    retry "the repository was not installed"
    continue
  fi
  if [ -n "$MOUNT" ] && ! on_workers "$mount"; then
    retry "MOUNT failed"
    continue
  fi
  code=0
  began=$SECONDS
  on_workers "cd biomedlm_jax && $train" || code=$?
  if [ "$code" -eq 0 ] && [ "$DELETE" = 1 ] && tpu_vm delete "$TPU" --quiet; then
    pod_exists=""
  fi
  [ $((SECONDS - began)) -lt 3600 ] || failures=0 # after an hour of training it is the first
  case "$code" in
    0 | 2 | 130) exit "$code" ;;
    129 | 138 | 143) failures=0 ;; # saved after a signal, as before maintenance: no failure
  esac
  retry "training ended with exit code $code"
done
