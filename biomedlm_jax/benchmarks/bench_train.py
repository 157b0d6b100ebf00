"""Benchmark of a training step: this library against transformers with torch's AdamW.

All sides train the same model, with equal weights at the start, on the same tokens with the same
number of threads. On a CPU all run in one process and rounds alternate. On a GPU each needs the
whole memory, so blocks of rounds alternate: a side starts in a process of its own, warms up, is
timed and ends; then the next side.
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
from biomedlm_jax.benchmarks.energy import open_meter
from biomedlm_jax.benchmarks.kernels import profile_lines, profile_steps
from biomedlm_jax.benchmarks.own_process import measure_alone, on_gpu, peak_memory
from biomedlm_jax.benchmarks.peers import check_torch, read_hf
from biomedlm_jax.benchmarks.release import execution_of, random_release
from biomedlm_jax.benchmarks.rounds import OURS, Timing
from biomedlm_jax.benchmarks.training_steps import JaxSteps, TorchSteps
from biomedlm_jax.benchmarks.utilisation import utilisation
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.model import attention
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.training.config import OptimizerSettings
from biomedlm_jax.training.loss import next_token_loss

BLOCKS_ON_GPU = 2
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
    a process of its own in each of so many blocks, and is timed for `rounds` rounds there; None is
    `BLOCKS_ON_GPU` on a GPU, and elsewhere one process in which rounds alternate. `profile` is a
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
    names, failures = (OURS, *peers), {}
    work: dict[str, Any] = {
        "length": config.context_length,
        "batch_size": batch_size,
        "loss_chunks": loss_chunks,
    }
    gpu = on_gpu()
    blocks = BLOCKS_ON_GPU if blocks is None and gpu else blocks
    if blocks is None:
        # As pretrain() does, before jax starts its threads; it applies to the peers, too.
        keep_freed_memory()
    with random_release(config, apart=blocks is not None) as release:
        work |= {"release": str(release), "execution": execution_of(config)}
        profiled, memory = None, {}
        if blocks is None:
            device, energy = about(**work), open_meter(gpu=False)
            sides = {name: functools.partial(make_side, name, **work) for name in names}
            timings, parts = _alternate(sides, rounds, steps, failures, energy[1], details)
            if profile:
                profiled = profile_steps(parts.pop("profiled"), profile)
            energy = energy[0]
        else:
            calls = rounds * steps
            timings, parts, answer = _in_blocks(work, names, blocks, calls, profile, failures)
            device, profiled, energy = answer["about"], answer["profile"], answer["energy"]
            memory = answer["memory"]
        parts.pop("profiled", None)
        if details and not memory:
            memory, lines = peak_memory("bench_train", timings, work)
            notes += lines
    notes += [f"{name} is left out, as it fails here: {text}" for name, text in failures.items()]
    tokens = batch_size * config.context_length
    table = timed.summarise_timings(timings, "tokens", tokens)
    for name, side in table.items():
        losses = [(timing.first[0], timing.last[0]) for timing in (timings[name], timings[OURS])]
        side["first_loss"], side["last_loss"] = losses[0]
        side["difference"] = max(abs(a / b - 1) for a, b in zip(*losses, strict=True))
    tables = {"train": table}
    if details:
        tables["parts of a step"] = split_step(table, parts)
        share, line = utilisation(config, table, device["device_kind"], device["dtype"])
        tables["utilisation of FLOPs"] = share
        tables["peak memory"] = memory
        notes += [line, "the forward pass of torch stores what its backward pass needs, ours not"]
    notes = [f"attention of {OURS}: {device['attention']}", f"energy: {energy}", *notes]
    if blocks:
        notes.append(f"each side in processes of its own, alternating in blocks: {blocks}")
    config = dataclasses.replace(config, compute_dtype=device["dtype"])
    size = f"length {config.context_length}, batch {batch_size}"
    packages = ("jax", "flax", "torch", "transformers")
    header = timed.benchmark_header(size, packages, config=config, device=device["device_kind"])
    return {
        **header,
        "notes": notes + (profile_lines(profiled) if profiled else []),
        "errors": timed.unequal(table, "losses", TOLERANCE[device["dtype"]]),
        "attention": device["attention"],
        "blocks": blocks,
        "tables": {title: rows for title, rows in tables.items() if rows},
        "profile": profiled,
    }


def _alternate(makers: Mapping, rounds: int, steps: int, failures: dict, meter, details: bool):
    """Time the steps of all sides in turn, then the parts of a step; return both timings."""
    sides = {name: make() for name, make in makers.items()}
    options: dict[str, Any] = {"rounds": rounds, "failures": failures, "warmup": 1}
    whole = {name: calls[STEP] for name, calls in sides.items()}
    timings = timed.alternate(whole, calls=steps, meter=meter, **options)
    parts: dict[str, Any] = {}
    for part in (FORWARD, GRADIENT) if details else ():
        calls = {name: sides[name][part] for name in timings}
        parts[part] = timed.alternate(calls, calls=steps, case=part, **options)
    return timings, {**parts, "profiled": whole[OURS]}


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
    """Return the device, dtype and attention kernel of this library in this process."""
    config = model_config(release, **execution)
    return {
        "device_kind": jax.devices()[0].device_kind,
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


def _in_blocks(work: dict, names, blocks: int, calls: int, profile: str | None, failures: dict):
    """Time each side in a process of its own, in turn; this process does not use the GPU.

    A peer whose first process fails is left out, and its error is put into `failures`.
    """
    timings: dict[str, Timing] = {}
    parts: dict[str, Any] = {FORWARD: {}, GRADIENT: {}}
    ours, memory = {}, {}
    for block in range(blocks):
        for name in names:
            if name in failures:
                continue
            timed.progress(f"block {block + 1} of {blocks}: {name}")
            traced = profile if name == OURS and block == blocks - 1 else None
            options: dict[str, Any] = {"calls": calls, "warmup": 1, "profile": traced}
            try:
                answer = measure_alone("bench_train", name, work, **options)
            except InputError as error:
                if name == OURS or name in timings:
                    raise
                failures[name] = str(error)
                continue
            memory[name] = {f"{k}_gb": value / 1e9 for k, value in answer["memory"].items()}
            if name == OURS:  # jax has no GPU in a peer's process
                ours = answer
                execution = {**work["execution"], "compute_dtype": answer["about"]["dtype"]}
                work = {**work, "execution": execution}
            for part, given in answer["timings"].items():
                timing, into = Timing(**given), timings if part == STEP else parts[part]
                if part == STEP:
                    timed.record_round("", block + 1, name, timing.seconds)
                if name in into:
                    into[name].seconds.extend(timing.seconds)
                    into[name].joules.extend(timing.joules)
                else:
                    into[name] = timing
    return timings, parts, {**ours, "memory": memory}
