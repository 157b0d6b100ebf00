#!/usr/bin/env bash
# Train on every worker of a TPU pod, and go on by itself after a preemption.
#
#   TPU=biomedlm ZONE=us-west4-a TYPE=v5litepod-256 DATA=gs://BUCKET/tokens RUN=gs://BUCKET/run \
#     scripts/tpu_pod.sh --config=configs/biomedlm_2_7b.py --config.mesh.data=8
#
# Needs gcloud, signed in. DATA and RUN must be reachable from all workers under the same path: a
# bucket mounted on each (gcsfuse), or a shared disk. The loop makes the pod if it is not there,
# installs this repository on it, and starts one `biomedlm pretrain` a worker; the run resumes from
# its last checkpoint. It ends when training ends (0), or on bad input (2).
set -euo pipefail

: "${TPU:?name of the TPU}" "${ZONE:?its zone}" "${TYPE:?its accelerator type}"
: "${DATA:?directory of token rows, seen by every worker}" "${RUN:?directory of the run}"
VERSION="${VERSION:-v2-alpha-tpuv5-lite}" # the software image of the generation
RETRY_SECONDS="${RETRY_SECONDS:-120}"

here() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }
everywhere() { here ssh "$TPU" --worker=all --command="$1"; }

while true; do
  state="$(here describe "$TPU" --format='value(state)' 2>/dev/null || echo ABSENT)"
  case "$state" in
    READY) ;;
    ABSENT)
      here create "$TPU" --accelerator-type="$TYPE" --version="$VERSION" --spot || true
      sleep "$RETRY_SECONDS"
      continue
      ;;
    PREEMPTED | TERMINATED | FAILED)
      here delete "$TPU" --quiet || true
      continue
      ;;
    *)
      sleep "$RETRY_SECONDS" # being made, or being taken away
      continue
      ;;
  esac
  here scp --recurse --worker=all . "$TPU:biomedlm_jax" || { sleep "$RETRY_SECONDS"; continue; }
  everywhere "cd biomedlm_jax && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'" ||
    { sleep "$RETRY_SECONDS"; continue; }
  code=0
  everywhere "cd biomedlm_jax && .venv/bin/biomedlm pretrain --distributed \
    --config.data.path='$DATA' --workdir='$RUN' $*" || code=$?
  if [ "$code" -eq 0 ] || [ "$code" -eq 2 ]; then
    exit "$code"
  fi
  echo "the run ended with $code; starting it again in $RETRY_SECONDS s" >&2
  sleep "$RETRY_SECONDS"
done
