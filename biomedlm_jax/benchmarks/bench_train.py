"""Benchmark of a training step: this library against transformers with torch's AdamW.

All sides train the same model, with equal weights at the start, on the same tokens with the same
number of threads.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from biomedlm_jax import mesh as meshes
from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.benchmarks import rounds as timed
from biomedlm_jax.benchmarks.kernels import profile_lines
from biomedlm_jax.benchmarks.peers import check_torch, read_hf
from biomedlm_jax.benchmarks.release import execution_of, random_release
from biomedlm_jax.benchmarks.rounds import OURS, Timing
from biomedlm_jax.benchmarks.sides import for_device, measure_sides
from biomedlm_jax.benchmarks.training_steps import JaxSteps, TorchSteps
from biomedlm_jax.benchmarks.utilisation import utilisation
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.model import attention
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.training.config import OptimizerSettings
from biomedlm_jax.training.loss import next_token_loss

# A constant rate from the first step on: a warmup would start at 0, and nothing would be compared.
OPTIMIZER = OptimizerSettings(
    schedule="constant",
    learning_rate=1.6e-4,
    final_lr_fraction=1.0,
    warmup_steps=0,
    beta2=0.95,
    weight_decay=1.6e-5,
    decoupled=True,
)
PEERS = ("torch eager fused", "torch sdpa fused", "torch sdpa fused compile")
STEP, FORWARD, GRADIENT = "step", "forward", "forward and backward"
# Largest difference of losses, relative to ours: after some steps, rounding has grown.
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}


def measure(
    config: ModelConfig,
    *,
    batch_size: int,
    loss_chunks: int = 1,
    rounds: int = 5,
    steps: int = 4,
    peers: Iterable[str] = PEERS,
    blocks: int | None = None,
    profile: str | None = None,
    details: bool = True,
) -> dict[str, Any]:
    """Time each side in `rounds` alternating rounds of `steps` steps; return the figures.

    `peers` name PyTorch variants: "torch ATTENTION [fused] [compile]". With `blocks` each side has
    a process of its own in each of so many blocks, and is timed for `rounds` rounds there; None are
    some on a GPU, and elsewhere one process in which rounds alternate. `profile` is a
    directory for a trace of our side, after its last round. `difference` is the largest one between
    the losses of a side and ours, of the first and of the last step, relative to ours: the result
    has an error if it is above `TOLERANCE`. `details` adds the parts of a step, the FLOPs
    utilisation and the peak memory.
    """
    config = dataclasses.replace(config, **timed.NO_DROPOUT)  # whose samples differ on the sides
    for peer in peers:
        check_torch(peer)
    notes: list[str] = []
    peers = timed.available_peers(peers, notes)
    work: dict[str, Any] = {
        "length": config.context_length,
        "batch_size": batch_size,
        "loss_chunks": loss_chunks,
    }
    keep_freed_memory()  # as pretrain() does, before jax starts its threads; for the peers, too
    config, blocks = for_device(config, blocks)
    with random_release(config, apart=blocks is not None) as release:
        work |= {"release": str(release), "execution": execution_of(config)}
        options: dict[str, Any] = {"rounds": rounds, "calls": steps, "warmup": 1, "blocks": blocks}
        options |= {"memory_of": STEP if details else None, "profile": profile}
        parts = [STEP, *((FORWARD, GRADIENT) if details else ())]
        measured = measure_sides("bench_train", (OURS, *peers), work, parts, **options)
    device, timings = measured.about, measured.timings[STEP]
    notes += measured.notes
    tokens = batch_size * config.context_length
    table = timed.summarise_timings(timings, "tokens", tokens)
    for name, side in table.items():
        losses = [(timing.first[0], timing.last[0]) for timing in (timings[name], timings[OURS])]
        side["first_loss"], side["last_loss"] = losses[0]
        side["difference"] = max(abs(a / b - 1) for a, b in zip(*losses, strict=True))
    tables = {"train": table}
    if details:
        tables["parts of a step"] = split_step(table, measured.timings)
        share, line = utilisation(config, table, device["device_kind"], device["dtype"])
        tables["utilisation of FLOPs"] = share
        tables["peak memory"] = measured.memory
        notes += [line, "the forward pass of torch stores what its backward pass needs, ours not"]
    notes = [f"attention of {OURS}: {device['attention']}", f"energy: {measured.energy}", *notes]
    config = dataclasses.replace(config, compute_dtype=device["dtype"])
    size = f"length {config.context_length}, batch {batch_size}"
    packages = ("jax", "flax", "torch", "transformers")
    return {
        **timed.benchmark_header(size, packages, config=config, about=device),
        "notes": notes + (profile_lines(measured.profile) if measured.profile else []),
        "errors": timed.unequal(table, "losses", TOLERANCE[device["dtype"]]),
        "attention": device["attention"],
        "blocks": blocks,
        "tables": {title: rows for title, rows in tables.items() if rows},
        "profile": measured.profile,
    }


def split_step(table: Mapping[str, Mapping], parts: Mapping[str, Mapping[str, Timing]]) -> dict:
    """Return the seconds of forward and backward pass and update, of the medians of each side.

    A forward pass is timed alone, then with the backward pass, then the whole step; each part is
    the difference to the part before it.
    """
    split = {}
    for name, side in table.items():
        ends = [float(np.median(parts[part][name].seconds)) for part in (FORWARD, GRADIENT)]
        forward, both, whole = *ends, side["median_seconds"]
        split[name] = {
            "forward_seconds": forward,
            "backward_seconds": both - forward,
            "update_seconds": whole - both,
            "step_seconds": whole,
            "compile_seconds": side["compile_seconds"],
        }
    return split


def about(*, release: str, execution: Mapping[str, Any], **work: Any) -> dict[str, str]:
    """Return the dtype and attention kernel of this library in this process."""
    config = model_config(release, **execution)
    return {
        "dtype": np.dtype(config.dtype).name,
        "attention": attention.training_kernel(config, meshes.one_device()),
    }


def make_side(
    name: str,
    *,
    release: str,
    execution: Mapping[str, Any],
    length: int,
    batch_size: int,
    loss_chunks: int,
) -> dict[str, Callable]:
    """Return a step of this library (`OURS`) or of a peer, and its parts, on random tokens."""
    config = model_config(release, **execution)
    shape = batch_size, length
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, shape).astype(np.int32)
    if name == OURS:
        mesh = meshes.one_device()  # as many as torch has
        model, _ = load(release, mesh=mesh, **execution)
        loss_fn = functools.partial(next_token_loss, chunks=loss_chunks)
        copy = functools.partial(jax.tree.map, jax.numpy.copy)  # a step reuses the model's buffers
        side: Any = JaxSteps(mesh, copy, loss_fn, [tokens], OPTIMIZER, model)
    else:
        check_torch(name)
        side = _torch_side(release, config, tokens, *name.split()[1:])
    return {STEP: side, FORWARD: side.forward, GRADIENT: side.gradient}


def _torch_side(release: str, config: ModelConfig, tokens, kernel: str, *options: str):
    import torch

    device, half = timed.torch_device(), config.dtype == jax.numpy.bfloat16
    model: Any = read_hf(release, attn_implementation=kernel, dtype=torch.float32)
    model = model.to(device).train()
    model = torch.compile(model) if "compile" in options else model
    batch = torch.from_numpy(tokens).long().to(device)

    def loss():
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return model(batch, labels=batch, use_cache=False).loss

    parameters = list(model.parameters())
    return TorchSteps(parameters, [loss], OPTIMIZER, fused="fused" in options)
