#!/usr/bin/env bash
# Plan, benchmark and train a model on one GPU.
#
#   scripts/one_gpu.sh --config=configs/pretrain.py:gpt_125m \
#     --config.data.path=TOKENS --workdir=RUN
#
# Steps:
#   1. `biomedlm plan` compiles the training step for this GPU and prints its memory.
#   2. `biomedlm bench train` times the step of this model shape beside PyTorch and writes
#      bench_train.json and the profile bench_profile/.
#   3. `biomedlm pretrain` trains with all given flags.
#
# Environment variables:
#   BENCH=0    skip step 2
#   BATCH=16   rows per step in step 2
#
# Requires the extra `cuda13` (or `cuda12`), and `hf` for step 2.
set -euo pipefail

usage() { awk 'NR > 1 { if (!/^#( |$)/) exit; sub(/^# ?/, ""); print }' "${BASH_SOURCE[0]}"; }
for argument in "$@"; do
  case "$argument" in -h | --help | -help) usage && exit 0 ;; esac
done

settings=()
for argument in "$@"; do
  case "$argument" in --config=*) config="${argument#--config=}" ;; esac
  case "$argument" in --config[=.]*) settings+=("$argument") ;; esac
done
if [ -z "${config:-}" ]; then
  echo "expected --config=FILE:VARIANT, got none; fix: add --config, see $0 --help" >&2
  exit 2
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
biomedlm=".venv/bin/biomedlm"
"$biomedlm" plan "${settings[@]}" --topology=local
if [ "${BENCH:-1}" = 1 ] && [ -e bench_train.json ]; then
  echo "bench_train.json is there: not measured again" >&2  # as when a run is resumed
elif [ "${BENCH:-1}" = 1 ]; then
  # Read the model's shape from the config file. Values that come from the data are None there,
  # and `bench` uses its own default for them.
  shape="$(.venv/bin/python - "$config" <<'PROGRAM'
import runpy
import sys

path, _, variant = sys.argv[1].partition(":")
get_config = runpy.run_path(path)["get_config"]
model = get_config(variant).model if variant else get_config().model
names = {"context_length": "length", "compute_dtype": "dtype"}
for name in ("layers", "width", "heads", "vocab_size", "context_length", "compute_dtype", "unroll"):
    if model.get(name) is not None:
        print(f"--{names.get(name, name)}={model[name]}")
PROGRAM
)"
  # shellcheck disable=SC2086 # one word per flag
  "$biomedlm" bench train $shape --batch_size="${BATCH:-16}" --peers="torch sdpa compile fused" \
    --json=bench_train.json --profile=bench_profile
fi
exec "$biomedlm" pretrain "$@"
