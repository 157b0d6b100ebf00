"""Origin: what a fine-tuning run starts from, so that it goes on with nothing else."""

import hashlib
import json
from pathlib import Path

import numpy as np
from jax.experimental import multihost_utils

from biomedlm_jax.model.gpt import GPT


def content_hash(value) -> str:
    """Identify what is learnt: the SHA-256 (hexadecimal) of a JSON value, of token ids mostly."""
    return hashlib.sha256(json.dumps(value).encode("ascii")).hexdigest()


def weights_hash(gpt: GPT) -> str:
    """Identify a model, the same on every mesh: the SHA-256 (hexadecimal) of its positions."""
    # The positions' embedding is small, and every step of training changes it.
    wpe_LxD = multihost_utils.process_allgather(gpt.wpe[...], tiled=True)
    return hashlib.sha256(np.ascontiguousarray(wpe_LxD).tobytes()).hexdigest()


def check_origin(file: Path, facts: dict) -> None:
    """Raise ValueError if the run that wrote `file` started from something else."""
    if not file.exists():
        return
    before = json.loads(file.read_text(encoding="utf-8")).get("started_from")
    if before != facts:
        raise ValueError(
            f"{file.parent} holds a run that started from {before}, and this one would from "
            f"{facts}; choose another --workdir"
        )
