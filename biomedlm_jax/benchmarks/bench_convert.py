"""Benchmark of conversion: Hugging Face directory, this library's run directory, and back.

The peer reads the directory with transformers' `from_pretrained` and writes it with
`save_pretrained`. All sides write float32 safetensors, whose tensors are compared with the source.
"""

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.benchmarks import rounds as timed
from biomedlm_jax.benchmarks.peers import read_hf
from biomedlm_jax.benchmarks.release import random_release, weight_bytes
from biomedlm_jax.benchmarks.rounds import OURS
from biomedlm_jax.benchmarks.sides import for_device, measure_sides
from biomedlm_jax.interop.huggingface import export_directory, import_hf
from biomedlm_jax.model.config import ModelConfig

CONVERT = "round trip"
PEER = "transformers, load and save"


def measure(
    config: ModelConfig, *, rounds: int = 5, blocks: int | None = None, details: bool = True
) -> dict[str, Any]:
    """Time both directions in alternating rounds; return the figures.

    `blocks` is as in `sides.measure_sides`; None are some on a GPU. `changed_tensors` counts those
    of the written directory that are not bit for bit those of the source; there is an error if any
    is. `details` adds the peak memory.
    """
    keep_freed_memory()
    notes: list[str] = []
    names = (OURS, *timed.available_peers((PEER,), notes))
    config, blocks = for_device(dataclasses.replace(config, compute_dtype="float32"), blocks)
    with random_release(config, apart=blocks is not None) as release:
        work = {"release": str(release), "folder": str(release.parent)}
        options: dict[str, Any] = {"rounds": rounds, "blocks": blocks}
        options["memory_of"] = CONVERT if details else None
        measured = measure_sides("bench_convert", names, work, [CONVERT], **options)
        timings, megabytes = measured.timings[CONVERT], weight_bytes(release) / 1e6
        table = timed.summarise_timings(timings, "mb", megabytes)
        for name, side in table.items():
            del side["compile_seconds"]  # nothing is compiled
            side["changed_tensors"] = changed_tensors(release, Path(timings[name].last))
    tables = {"Hugging Face, run and back": table, "peak memory": measured.memory}
    notes += measured.notes
    notes.append(
        f"{OURS} writes a checkpoint and a release, each with hashes, and reads the release back "
        "to verify it; transformers writes the release once and does not verify it"
    )
    size = f"{megabytes:,.0f} MB of weights"
    packages = ("jax", "orbax-checkpoint", "safetensors", "torch", "transformers")
    return {
        **timed.benchmark_header(size, packages, config=config, about=measured.about),
        "notes": [f"energy: {measured.energy}", *notes],
        "errors": [
            f"{name}: {side['changed_tensors']} tensors changed in the round trip"
            for name, side in table.items()
            if side["changed_tensors"]
        ],
        "tables": {title: rows for title, rows in tables.items() if rows},
    }


def make_side(name: str, *, release: str, folder: str) -> dict[str, Callable]:
    """Return a call that converts there and back and returns the directory that it wrote."""
    call = _ours if name == OURS else _theirs
    return {CONVERT: functools.partial(call, Path(release), Path(folder))}


def _ours(release: Path, folder: Path) -> str:
    run, back = folder / "run", folder / "back"
    _remove(run, back)
    import_hf(release, run, notify=lambda line: None)
    export_directory(run, back, notify=lambda line: None)
    return str(back)


def _theirs(release: Path, folder: Path) -> str:
    import torch

    back = folder / "back_transformers"
    _remove(back)
    read_hf(release, dtype=torch.float32).save_pretrained(back)
    return str(back)


def _remove(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def changed_tensors(before: Path, after: Path) -> int:
    """Return how many tensors of two directories differ in name or in any bit."""
    with contextlib.ExitStack() as stack:
        first, second = (_tensors(path, stack) for path in (before, after))
        changed = {*first} ^ {*second}
        for name in {*first} - changed:
            pair = first[name].get_tensor(name), second[name].get_tensor(name)
            if not np.array_equal(*(array.view(np.uint8) for array in pair)):
                changed.add(name)
    return len(changed)


def _tensors(path: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Return the open file of each tensor of a directory."""
    files = [stack.enter_context(safe_open(file, "numpy")) for file in path.glob("*.safetensors")]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118, it is no dict
