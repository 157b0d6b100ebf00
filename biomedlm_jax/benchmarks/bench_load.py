"""Benchmark of loading: from a Hugging Face directory to the first logits, in a new process.

Imports are not counted: each process imports its libraries, then the clock starts. The files are in
the page cache of the kernel on all sides.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from biomedlm_jax.benchmarks import rounds as timed
from biomedlm_jax.benchmarks.own_process import in_gb, measure_alone, on_gpu
from biomedlm_jax.benchmarks.peers import UNCACHED, check_hf, load_hf
from biomedlm_jax.benchmarks.release import execution_of, random_release, weight_bytes
from biomedlm_jax.benchmarks.rounds import OURS, Timing
from biomedlm_jax.benchmarks.sides import for_device
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.model.config import ModelConfig

PEERS = ("hf eager", "hf sdpa")
KEPT = 8  # logits of the last position that are compared
# Largest difference of logits.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}


def measure(
    config: ModelConfig,
    *,
    length: int = 32,
    rounds: int = 5,
    peers: Iterable[str] = PEERS,
) -> dict[str, Any]:
    """Time each side from the directory to the logits of one row of `length` tokens.

    Each measurement is a process of its own, and the processes of the sides alternate. `load` is
    the time to the model in memory, `logits` that from there to the first logits, compilation
    included. `difference` is the largest one between logits and ours.
    """
    notes: list[str] = []
    for peer in peers:
        check_hf(peer, UNCACHED)
    peers = timed.available_peers(peers, notes)
    timings = {name: Timing() for name in (OURS, *peers)}
    memory: dict[str, dict] = {}
    parts: dict[str, list] = {name: [] for name in timings}
    config, about = for_device(config, None)[0], {}
    with random_release(config, apart=on_gpu()) as release:
        work = {"release": str(release), "execution": execution_of(config), "length": length}
        weights = weight_bytes(release) / 1e6
        for number in range(1, rounds + 1):
            for name, timing in list(timings.items()):
                try:
                    answer = measure_alone("bench_load", name, work)
                except InputError as error:
                    if name == OURS or number > 1:
                        raise
                    notes.append(f"{name} is left out: {error}")
                    del timings[name]
                    continue
                given = answer["timings"]["first logits"]
                timing.first = given["first"]["logits"]
                timing.seconds.append(given["first_seconds"])
                parts[name].append(given["first"]["load_seconds"])
                memory[name], about = in_gb(answer["memory"]), about or answer["about"]
                timed.record_round("", number, name, timing.seconds[-1:])
    table = timed.summarise_timings(timings, "mb", weights)
    for name, side in table.items():
        del side["first_seconds"], side["compile_seconds"]
        side["load_seconds"] = statistics.median(parts[name])
        side["logits_seconds"] = side["median_seconds"] - side["load_seconds"]
    timed.compare_first(table, timings)
    dtype = np.dtype(config.dtype).name
    notes.append("each measurement in a process of its own; imports are not counted")
    size = f"{weights:,.0f} MB of weights, one row of {length} tokens"
    packages = ("jax", "flax", "torch", "transformers")
    return {
        **timed.benchmark_header(size, packages, config=config, about=about),
        "notes": notes,
        "errors": timed.unequal(table, "logits", TOLERANCE[dtype]),
        "tables": {"to the first logits": table, "peak memory": memory},
    }


def make_side(
    name: str, *, release: str, execution: Mapping[str, Any], length: int
) -> dict[str, Callable]:
    """Return a call that loads the model and returns some of its logits and the seconds to load."""
    config = model_config(release, **execution)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, length))
    if name == OURS:
        call = functools.partial(_ours, release, execution)
    else:
        call = functools.partial(_theirs, name, release, np.dtype(config.dtype).name)
    return {"first logits": functools.partial(call, tokens)}


def _ours(release: str, execution: Mapping[str, Any], tokens: np.ndarray) -> dict:
    start = time.perf_counter()
    model, _ = load(release, **execution)
    jax.block_until_ready(model)
    seconds = time.perf_counter() - start
    logits = jax.jit(lambda model, tokens_BxL: model(tokens_BxL))(model, jnp.asarray(tokens))
    return {"load_seconds": seconds, "logits": np.asarray(logits[0, -1, :KEPT], float).tolist()}


def _theirs(name: str, release: str, dtype: str, tokens: np.ndarray) -> dict:
    import torch

    torch.zeros(1, device=timed.torch_device())  # ours has started the device, too
    start = time.perf_counter()
    model = load_hf(name, release, dtype=dtype)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens).to(model.device)).logits
    return {"load_seconds": seconds, "logits": logits[0, -1, :KEPT].float().tolist()}
