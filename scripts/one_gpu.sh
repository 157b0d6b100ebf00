#!/usr/bin/env bash
# One GPU: plan the step for it, measure it beside PyTorch, then train.
#
#   scripts/one_gpu.sh --config=configs/gpt_125m.py --config.data.path=TOKENS --workdir=RUN
#
# Needs the extra `cuda13` (or `cuda12`), and `hf` for the comparison, which BENCH=0 leaves out.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
biomedlm=".venv/bin/biomedlm"
for argument in "$@"; do
  case "$argument" in --config=*) config="$argument" ;; esac
done
"$biomedlm" plan "${config:?give --config=FILE}" --topology=local
if [ "${BENCH:-1}" = 1 ]; then
  "$biomedlm" bench train --layers=32 --width=2560 --heads=20 --length=1024 --batch_size=16 \
    --peers="torch sdpa compile fused" --json=bench_train.json
fi
exec "$biomedlm" pretrain "$@"
