#!/usr/bin/env bash
# Train on every worker of a TPU pod, and go on by itself after a preemption.
#
#   TPU=biomedlm ZONE=us-west4-a TYPE=v5litepod-256 DATA=gs://BUCKET/tokens RUN=gs://BUCKET/run \
#     scripts/tpu_pod.sh --config=configs/biomedlm_2_7b.py --config.mesh.data=8
#
# Needs gcloud, signed in. DATA and RUN must be reachable from all workers under the same path: a
# bucket mounted on each (gcsfuse), or a shared disk. The loop makes the pod if it is not there,
# installs this repository on it, and starts one `biomedlm pretrain` a worker; the run resumes from
# its last checkpoint. It ends when training ends (0), on bad input (2), and when it has come to
# nothing FAILURES times on the same pod or WAITS looks in a row have found no pod (1).
set -euo pipefail

: "${TPU:?name of the TPU}" "${ZONE:?its zone}" "${TYPE:?its accelerator type}"
: "${DATA:?directory of token rows, seen by every worker}" "${RUN:?directory of the run}"
VERSION="${VERSION:-v2-alpha-tpuv5-lite}" # the software image of the generation
RETRY_SECONDS="${RETRY_SECONDS:-120}"
FAILURES="${FAILURES:-10}" # of copying, installing and training, until the next preemption
WAITS="${WAITS:-720}"      # for a pod: a day of RETRY_SECONDS

cd "$(dirname "${BASH_SOURCE[0]}")/.."
here() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }
everywhere() { here ssh "$TPU" --worker=all --command="$1"; }

failures=0
failed() { # WHAT: wait and go on, unless it was the last time
  failures=$((failures + 1))
  if [ "$failures" -ge "$FAILURES" ]; then
    echo "$1; giving up after $failures failures on this pod" >&2
    exit 1
  fi
  echo "$1; trying again in $RETRY_SECONDS s" >&2
  sleep "$RETRY_SECONDS"
}

waits=0
wait_for_pod() { # STATE: wait and look again, unless it was the last time
  waits=$((waits + 1))
  if [ "$waits" -ge "$WAITS" ]; then
    echo "the pod is $1 after $waits looks; giving up" >&2
    exit 1
  fi
  sleep "$RETRY_SECONDS"
}

package="$(mktemp)"
trap 'rm -f "$package"' EXIT
# What git ignores may be large, and an environment of this machine is of no use on another.
tar -czf "$package" --exclude=./.git --exclude=./.venv --exclude=./data --exclude=./runs .
unpack="mkdir -p biomedlm_jax && tar -xzf biomedlm_jax.tar.gz -C biomedlm_jax && cd biomedlm_jax"
install="python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
# Quoted for the shell of the worker, which splits the command anew.
train="$(printf '%q ' .venv/bin/biomedlm pretrain --distributed \
  "--config.data.path=$DATA" "--workdir=$RUN" "$@")"

while true; do
  state="$(here describe "$TPU" --format='value(state)' 2>/dev/null || echo ABSENT)"
  case "$state" in
    READY) waits=0 ;;
    ABSENT)
      failures=0
      here create "$TPU" --accelerator-type="$TYPE" --version="$VERSION" --spot || true
      wait_for_pod "$state"
      continue
      ;;
    PREEMPTED | TERMINATED | FAILED)
      here delete "$TPU" --quiet || true
      wait_for_pod "$state"
      continue
      ;;
    STOPPED)
      here start "$TPU" || true
      wait_for_pod "$state"
      continue
      ;;
    *)
      wait_for_pod "$state" # being made, or being taken away
      continue
      ;;
  esac
  if ! here scp --worker=all "$package" "$TPU:biomedlm_jax.tar.gz"; then
    failed "the repository could not be copied"
    continue
  fi
  if ! everywhere "$unpack && $install"; then
    failed "the repository could not be installed"
    continue
  fi
  code=0
  everywhere "cd biomedlm_jax && $train" || code=$?
  if [ "$code" -eq 0 ] || [ "$code" -eq 2 ]; then
    exit "$code"
  fi
  failed "the run ended with $code"
done
