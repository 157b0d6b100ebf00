"""The published speeds and shares agree with each other, and the plans with docs/benchmarks.md."""

from pathlib import Path

import pytest

from biomedlm_jax.benchmarks.published import PLANNED, PUBLISHED
from biomedlm_jax.chips import CHIPS

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
# Parameters, layers, width, length and chip of the models whose speed is published.
MODELS = {
    "BioMedLM 2.7B, 1,024 tokens": (2_594_247_680, 32, 2560, 1024, "NVIDIA A100-SXM4-40GB"),
    "llm-foundry 3B, 1,024 tokens, 8 GPUs": (
        2_649_216_000,
        32,
        2560,
        1024,
        "NVIDIA H100 80GB HBM3",
    ),
}


@pytest.mark.parametrize("row", [row for row in PUBLISHED if row.tokens_per_second])
def test_the_share_follows_from_the_speed(row):
    parameters, layers, width, length, chip = MODELS[row.name]
    flops = 6 * parameters + 12 * layers * width * length
    share = 100 * row.tokens_per_second * flops / CHIPS[chip].bf16_flops
    assert share == pytest.approx(row.mfu, abs=0.06)


def test_the_planned_rows_are_those_of_the_documentation():
    lines = DOCS.read_text(encoding="utf-8").replace("*", "").replace("`", "").splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("|")]
    for planned in PLANNED:
        figures = [f"{planned.op_seconds:.3f} s", f"{planned.exposed_gib:g} GiB"]
        names = planned.step.replace("minimal", "remat_policy=minimal").replace(
            "save_qkv", "remat_policy=save_qkv"
        )
        assert any(
            row[1].startswith(names) and figures == row[-3:-1] and planned.libtpu in row[3]
            for row in rows
            if len(row) > 5
        ), planned
