"""Benchmark of conversion: Hugging Face directory, this library's run directory, and back.

The peer reads the directory with transformers' `from_pretrained` and writes it with
`save_pretrained`. All sides write float32 safetensors, whose tensors are compared with the source.
"""

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.benchmarks import rounds as timed
from biomedlm_jax.benchmarks.energy import open_meter
from biomedlm_jax.benchmarks.own_process import peak_memory
from biomedlm_jax.benchmarks.peers import read_hf
from biomedlm_jax.benchmarks.release import random_release, weight_bytes
from biomedlm_jax.benchmarks.rounds import OURS
from biomedlm_jax.interop.huggingface import export_directory, import_hf
from biomedlm_jax.model.config import ModelConfig

PEER = "transformers, load and save"


def measure(config: ModelConfig, *, rounds: int = 5, details: bool = True) -> dict[str, Any]:
    """Time both directions in alternating rounds; return the figures.

    `changed_tensors` counts those of the written directory that are not bit for bit those of the
    source; there is an error if any is. `details` adds the peak memory.
    """
    keep_freed_memory()
    notes: list[str] = []
    names = (OURS, *timed.available_peers((PEER,), notes))
    source, meter = open_meter(gpu=jax.default_backend() == "gpu")
    with random_release(config) as release, tempfile.TemporaryDirectory() as folder:
        work = {"release": str(release), "folder": folder}
        sides = {name: make_side(name, **work)["round trip"] for name in names}
        timings = timed.alternate(sides, rounds=rounds, meter=meter)
        megabytes = weight_bytes(release) / 1e6
        table = timed.summarise_timings(timings, "mb", megabytes)
        for name, side in table.items():
            del side["compile_seconds"]  # nothing is compiled
            side["changed_tensors"] = changed_tensors(release, Path(timings[name].last))
        tables = {"Hugging Face, run and back": table}
        if details:
            tables["peak memory"], lines = peak_memory("bench_convert", names, work)
            notes += lines
    notes.append(
        f"{OURS} writes a checkpoint and a release, each with hashes, and reads the release back "
        "to verify it; transformers writes the release once and does not verify it"
    )
    packages = ("jax", "orbax-checkpoint", "safetensors", "torch", "transformers")
    return {
        **timed.benchmark_header(f"{megabytes:,.0f} MB of weights", packages, config=config),
        "notes": [f"energy: {source}", *notes],
        "errors": [
            f"{name}: {side['changed_tensors']} tensors changed in the round trip"
            for name, side in table.items()
            if side["changed_tensors"]
        ],
        "tables": tables,
    }


def make_side(name: str, *, release: str, folder: str) -> dict[str, Callable]:
    """Return a call that converts there and back and returns the directory that it wrote."""
    call = _ours if name == OURS else _theirs
    return {"round trip": functools.partial(call, Path(release), Path(folder))}


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
