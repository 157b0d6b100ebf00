#!/usr/bin/env bash
# Train on every worker of a TPU pod, and go on by itself after a preemption.
#
#   TPU=biomedlm ZONE=us-west4-a TYPE=v5litepod-256 \
#   MOUNT='sudo install -d -o "$USER" /mnt/bucket &&
#     gcsfuse --implicit-dirs --rename-dir-limit=100000 BUCKET /mnt/bucket' \
#   DATA=/mnt/bucket/tokens RUN=/mnt/bucket/run \
#     scripts/tpu_pod.sh --config=configs/biomedlm_2_7b.py
#
# Needs gcloud, signed in. DATA and RUN are paths that all workers see, of a bucket mounted on each
# or of a shared disk; gs://... is not read. A pod that was just made, also after a preemption, has
# nothing mounted: MOUNT is a command that every worker runs before training, once after it starts.
#
# The loop makes the pod if it is not there, installs this repository on it (what git tracks, as it
# is on the disk: `git add` a config of your own), and starts one `biomedlm pretrain` a worker; the
# run resumes from its last checkpoint. It ends when training ends (0), on bad input (2), and (1)
# when it has come to nothing FAILURES times on the same pod, when gcloud refused to make the pod
# CREATES times in a row, or when WAITS looks in a row have found no pod.
#
# The pod is a --spot one, cheaper and taken away at any time; SPOT=0 asks for one that stays. It is
# billed until it is deleted: the launcher does that after training ended (0) if DELETE=1, and else
# leaves it and says how. The ssh sessions are the launcher's: keep it running, in tmux for example.
set -euo pipefail

: "${TPU:?name of the TPU}" "${ZONE:?its zone}" "${TYPE:?its accelerator type}"
: "${DATA:?directory of token rows, seen by every worker}" "${RUN:?directory of the run}"
VERSION="${VERSION:-v2-alpha-tpuv5-lite}" # the software image of the generation
PYTHON="${PYTHON:-python3.11}"            # installed by apt where it is missing
MOUNT="${MOUNT:-}"
SPOT="${SPOT:-1}"
DELETE="${DELETE:-0}"
RETRY_SECONDS="${RETRY_SECONDS:-120}"
FAILURES="${FAILURES:-10}" # of copying, installing, mounting, training, until a preemption
CREATES="${CREATES:-5}"    # refusals of `create` in a row, for another reason than no free capacity
WAITS="${WAITS:-720}"      # for a pod: a day of RETRY_SECONDS

for name in DATA RUN; do
  case "${!name}" in *://*)
    echo "$name is ${!name}: give a path of a mounted file system (/mnt/...), see MOUNT" >&2
    exit 2
    ;;
  esac
done

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

creates=0
create() { # make the pod; give up when gcloud has refused too often
  local spot=--spot before="$there"
  [ "$SPOT" = 1 ] || spot=
  there=1
  if here create "$TPU" --accelerator-type="$TYPE" --version="$VERSION" ${spot:+"$spot"} 2>&1 |
    tee "$answer" >&2; then
    creates=0
    return
  fi
  there="$before"
  if grep -qiE 'capacity|stockout' "$answer"; then
    creates=0 # there is none now, which passes
    return
  fi
  creates=$((creates + 1))
  if [ "$creates" -ge "$CREATES" ]; then
    echo "the pod could not be made, $creates times in a row; giving up. gcloud said:" >&2
    cat "$answer" >&2
    exit 1
  fi
}

package="$(mktemp)"
answer="$(mktemp)"
there="" # whether there may be a pod, which is billed
leave() {
  rm -f "$package" "$answer"
  if [ -n "$there" ]; then
    echo "the pod $TPU is not deleted and is billed until it is:" \
      "gcloud compute tpus tpu-vm delete $TPU --zone=$ZONE" >&2
  fi
}
trap leave EXIT
# Only what git tracks: data, runs and environments of this machine lie beside it.
git ls-files -z | tar -czf "$package" --null -T -
unpack="mkdir -p biomedlm_jax && tar -xzf biomedlm_jax.tar.gz -C biomedlm_jax && cd biomedlm_jax"
# Debian's python comes without ensurepip until the package of venv is there.
apt="sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300"
python="{ $PYTHON -c 'import ensurepip' 2>/dev/null ||
  { $apt update; $apt install -y $PYTHON $PYTHON-venv; } ||
  { echo '$PYTHON is not on this worker, and apt does not install it: set PYTHON or VERSION' >&2
    exit 1; }; }"
install="$python && $PYTHON -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
# A worker notes what it mounted and in which boot, so that a second run does not mount it again.
mount="done=\"\$(cat /proc/sys/kernel/random/boot_id) \"$(printf %q "$MOUNT")
[ \"\$(cat .biomedlm_mounted 2>/dev/null)\" = \"\$done\" ] || {
  ( $MOUNT
  ) && printf '%s\n' \"\$done\" > .biomedlm_mounted; }"
# Quoted for the shell of the worker, which splits the command anew.
train="$(printf '%q ' .venv/bin/biomedlm pretrain --distributed \
  "--config.data.path=$DATA" "--workdir=$RUN" "$@")"

while true; do
  state="$(here describe "$TPU" --format='value(state)' 2>/dev/null || echo ABSENT)"
  [ "$state" = ABSENT ] || there=1
  case "$state" in
    READY)
      waits=0
      creates=0
      ;;
    ABSENT)
      failures=0
      create
      wait_for_pod "$state"
      continue
      ;;
    PREEMPTED | TERMINATED | FAILED)
      if here delete "$TPU" --quiet; then there=""; fi
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
  if [ -n "$MOUNT" ] && ! everywhere "$mount"; then
    failed "MOUNT failed"
    continue
  fi
  code=0
  everywhere "cd biomedlm_jax && $train" || code=$?
  if [ "$code" -eq 0 ] && [ "$DELETE" = 1 ] && here delete "$TPU" --quiet; then
    there=""
  fi
  if [ "$code" -eq 0 ] || [ "$code" -eq 2 ]; then
    exit "$code"
  fi
  failed "the run ended with $code"
done
