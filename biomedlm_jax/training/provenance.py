"""Provenance: content hashes of what a run starts from, and its record in the run directory.

`run.json` says how a directory was trained: its recipe, the config's groups, and in `started_from`
hashes of the weights, tokenizer and data it started from. `config.json` says what the model is.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from biomedlm_jax.agreement import from_first_process
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import flatten, read_json, write_json
from biomedlm_jax.model.language_model import named_leaves
from biomedlm_jax.settings import check_object
from biomedlm_jax.training.config import RunSettings, changed_settings, to_json
from biomedlm_jax.training.lock import LOCK

RUN_FILE = "run.json"
PART_BYTES = 2**26  # of a leaf that several processes gather at once
NOT_COMPARED = ("path", "left_out")  # of started_from: the same content may lie elsewhere


def weights_hash(model: Any) -> str:
    """Return the SHA-256 of a model's parameters (names, shapes, values), equal on every mesh.

    The values are hashed as float32, so that a model has one hash in each dtype that holds it.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(model).items()):
        digest.update(f"{name} float32 {leaf.shape}".encode("ascii"))
        for part in _host_parts(leaf):
            digest.update(part.astype(np.float32, copy=False).reshape(-1).data)
    return digest.hexdigest()


def _host_parts(leaf: jax.Array) -> Iterator[np.ndarray]:
    """Yield the values of a leaf in order; no device gathers more than PART_BYTES or a layer."""
    size = len(leaf)
    if jax.process_count() > 1 or leaf.dtype != np.float32:
        size = max(1, size * PART_BYTES // leaf.nbytes)
    for start in range(0, len(leaf), size):
        part = leaf
        if jax.process_count() > 1 or size < len(leaf):
            part = jax.lax.dynamic_slice_in_dim(leaf, start, min(size, len(leaf) - start))
        if jax.process_count() > 1:
            part = multihost_utils.process_allgather(part, tiled=True)
        yield np.ascontiguousarray(part)


def read_run(workdir: Path) -> dict[str, Any]:
    """Return a run's record, {} if there is none; raises InputError if it has another form."""
    file = workdir / RUN_FILE
    if not file.exists():
        return {}
    record = read_json(file)
    groups = {"started_from", "training", "model", "mesh", "optimizer", "lora", "checkpoint"}
    for name in {*groups, "logging", "faults", "data", "task", "sweep", "evaluation", "generation"}:
        check_object(record.get(name), f"{file} has {name}")
    if not isinstance(record.get("history", []), list):
        raise InputError(f"{file} has a history that is no list")
    return record


def check_run(workdir: Path, *arguments: Any, may_change: Sequence[str] = ()) -> bool:
    """Return whether `workdir` holds this run already (False: it is empty or absent).

    The arguments are recipe, settings and started_from, as in `write_run`. Process 0 reads the
    directory. Raises InputError for other files, another recipe, other fixed settings (those of
    `may_change` excepted, such as training.steps), or another start.
    """
    return from_first_process(lambda: _check_run(workdir, *arguments, may_change=may_change))


def _check_run(
    workdir: Path,
    recipe: str,
    settings: RunSettings,
    started_from: Mapping[str, Any],
    *,
    may_change: Sequence[str] = (),
) -> bool:
    file = workdir / RUN_FILE
    if not file.exists():
        if workdir.exists() and (not workdir.is_dir() or any(map(_is_other, workdir.iterdir()))):
            lost = "restore it from a copy, or " if (workdir / "checkpoints").is_dir() else ""
            raise InputError(
                f"{workdir} exists and holds no run ({RUN_FILE}); {lost}choose an empty --workdir"
            )
        return False
    before = read_run(workdir)
    differing = changed_settings(before, settings, may_change=may_change)
    if before.get("recipe") != recipe:
        differing.insert(0, f"recipe={before.get('recipe')!r} (now {recipe!r})")
    old = before.get("started_from", {})
    started_from = json.loads(json.dumps(started_from))  # tuples are lists in the file
    old, new = flatten(old), flatten(started_from)
    differing += [
        f"{name}={str(old.get(name))[:12]} (now {str(new.get(name))[:12]})"
        for name in sorted({*old, *new} - {*NOT_COMPARED})
        if old.get(name) != new.get(name)
    ]
    if differing:
        raise InputError(
            f"{workdir} holds a run with {', '.join(differing[:4])}; resume it with its own "
            "config and data, or choose another --workdir"
        )
    return True


def _is_other(path: Path) -> bool:
    # Of a process that begins now, or was killed when it began.
    return not path.name.lstrip(".").startswith((LOCK, RUN_FILE))


def run_record(
    recipe: str,
    settings: RunSettings,
    started_from: Mapping[str, Any],
    *,
    history: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Return what `run.json` holds.

    `history` lists the changes of settings that decide the result, such as training.steps.
    """
    record = {"recipe": recipe, **to_json(settings), "started_from": dict(started_from)}
    record |= {"history": [dict(change) for change in history]} if history else {}
    return json.loads(json.dumps(record))  # tuples are lists in the file


def write_run(workdir: Path, record: Mapping[str, Any]) -> None:
    """Write `run.json`; what may change (the mesh, a path) is updated on a resume."""
    write_json(workdir / RUN_FILE, record)


def changes(workdir: Path, record: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what of a run's record differs now: [before, now] by dotted name."""
    before = read_run(workdir)
    old, new = (
        flatten({name: value for name, value in of.items() if name != "history"})
        for of in (before, record)
    )
    return {n: [old.get(n), new.get(n)] for n in sorted({*old, *new}) if old.get(n) != new.get(n)}
