"""Provenance: content hashes of what a run starts from, and its record in the run directory.

`run.json` says how a directory was trained: its recipe, the config's groups, and in `started_from`
hashes of the weights, tokenizer and data it started from. `config.json` says what the model is.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from biomedlm_jax.files import read_json, write_json
from biomedlm_jax.model.language_model import named_leaves
from biomedlm_jax.training.config import RunSettings, differences, to_json

RUN_FILE = "run.json"
NOT_COMPARED = ("path",)  # of started_from: the same content may lie elsewhere


def content_hash(value: Any) -> str:
    """Return the SHA-256 (hexadecimal) of a JSON value, such as token ids."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()


def weights_hash(model: Any) -> str:
    """Return the SHA-256 of a model's parameters (names, shapes, values), equal on every mesh."""
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(model).items()):
        if jax.process_count() > 1:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {array.shape}".encode("ascii"))
        digest.update(array.reshape(-1).view(np.uint8).data)  # bfloat16 has no buffer of its own
    return digest.hexdigest()


def check_run(
    workdir: Path, recipe: str, settings: RunSettings, started_from: Mapping[str, Any]
) -> bool:
    """Return whether `workdir` holds this run already (False: it is empty or absent).

    Raises ValueError for other files, another recipe, other fixed settings, or another start.
    """
    file = workdir / RUN_FILE
    if not file.exists():
        if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
            raise ValueError(
                f"{workdir} exists and holds no run ({RUN_FILE}); choose an empty --workdir"
            )
        return False
    before = read_json(file)
    differing = differences(before, settings)
    if before.get("recipe") != recipe:
        differing.insert(0, f"recipe={before.get('recipe')!r} (now {recipe!r})")
    old = before.get("started_from", {})
    differing += [
        f"{name}={str(old.get(name))[:12]} (now {str(started_from.get(name))[:12]})"
        for name in sorted({*old, *started_from} - {*NOT_COMPARED})
        if old.get(name) != started_from.get(name)
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds a run with {', '.join(differing[:4])}; resume it with its own "
            "config and data, or choose another --workdir"
        )
    return True


def write_run(
    workdir: Path, recipe: str, settings: RunSettings, started_from: Mapping[str, Any]
) -> None:
    """Write `run.json`; what may change (the mesh, a path) is updated on a resume."""
    record = {"recipe": recipe, **to_json(settings), "started_from": dict(started_from)}
    write_json(workdir / RUN_FILE, record)
