"""Figures of other projects beside which a measurement is read; none of them is measured here."""

from typing import NamedTuple


class Published(NamedTuple):
    """A published training speed: tokens per second and chip, and MFU in percent of bf16's peak."""

    name: str
    chip: str
    tokens_per_second: float | None
    mfu: float  # percent
    convention: str
    source: str


GIVEN = "a second-hand figure, without its primary source"
PUBLISHED = (
    Published(
        "BioMedLM 2.7B, 1,024 tokens",
        "A100 40GB",
        4_340,
        23.1,
        "6N + 12LHKT",
        "300 B tokens in 6.25 days on 128 GPUs (arXiv 2403.18421); the share follows from that",
    ),
    Published(
        "llm-foundry 3B, 1,024 tokens, 8 GPUs",
        "H100 80GB",
        27_046,
        46.2,
        "6N + 12LHKT",
        "mosaicml/llm-foundry at 061f2c7ce64e, scripts/train/benchmarking/README.md",
    ),
    Published("MaxText, Llama 2 7B", "H100 80GB", None, 49.7, "not stated", GIVEN),
    Published("JAX-Toolbox, Llama 2 7B", "H100 80GB", None, 53.8, "not stated", GIVEN),
)


class Planned(NamedTuple):
    """A training step as the TPU compiler estimates it, from docs/benchmarks.md."""

    step: str
    gradient_sums: str
    libtpu: str
    op_seconds: float
    exposed_gib: float


PLANNED = (
    Planned("biomedlm_2_7b_fast", "bfloat16", "0.0.42.1", 0.391, 5.31),
    Planned("biomedlm_2_7b", "float32", "0.0.42.1", 0.396, 10.14),
    Planned("MaxText 0.2.5, GPT-3 block, minimal", "not stated", "0.0.52", 0.476, 6.3),
    Planned("MaxText 0.2.5, GPT-3 block, minimal_flash", "not stated", "0.0.52", 0.486, 6.3),
    Planned("MaxText 0.2.5, GPT-3 block, save_qkv_proj", "not stated", "0.0.52", 0.508, 6.7),
)
PLANNED_WORK = (
    "2,594,247,680 parameters, 1,024 rows of 1,024 tokens, v5e:16x16, data 8 x fsdp 32: estimates "
    "of the TPU compiler, made without a TPU, from docs/benchmarks.md. The dtype of MaxText's "
    "gradient sums is not known, and its rows are compiled by another version."
)
