#!/usr/bin/env bash
# One GPU: plan the step for it, measure its shape beside PyTorch, then train.
#
#   scripts/one_gpu.sh --config=configs/gpt_125m.py --config.data.path=TOKENS --workdir=RUN
#
# Needs the extra `cuda13` (or `cuda12`), and `hf` for the comparison, which BENCH=0 leaves out. It
# takes the model's shape from the config's file, as it stands there, and BATCH rows (16) a step.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
biomedlm=".venv/bin/biomedlm"
settings=()
for argument in "$@"; do
  case "$argument" in --config=*) config="${argument#--config=}" ;; esac
  case "$argument" in --config[=.]*) settings+=("$argument") ;; esac
done
: "${config:?give --config=FILE}"
"$biomedlm" plan "${settings[@]}" --topology=local
if [ "${BENCH:-1}" = 1 ]; then
  # FILE or FILE:ARGUMENT, as on the command line
  shape="$(.venv/bin/python - "$config" <<'PROGRAM'
import runpy
import sys

path, _, argument = sys.argv[1].partition(":")
get_config = runpy.run_path(path)["get_config"]
model = get_config(argument).model if argument else get_config().model
names = {"context_length": "length", "compute_dtype": "dtype"}
for name in ("layers", "width", "heads", "vocab_size", "context_length", "compute_dtype", "unroll"):
    print(f"--{names.get(name, name)}={model[name]}")
PROGRAM
)"
  # shellcheck disable=SC2086 # words of a flag each
  "$biomedlm" bench train $shape --batch_size="${BATCH:-16}" --peers="torch sdpa compile fused" \
    --json=bench_train.json --profile=bench_profile
fi
exec "$biomedlm" pretrain "$@"
