"""Benchmark of a training step: this library against transformers with torch's AdamW.

Both sides train the same model on the same tokens with the same number of threads. On a CPU both
run in one process and rounds alternate. On a GPU each needs the whole memory, so blocks of rounds
alternate: a side starts in a process of its own, warms up, is timed and ends; then the next side.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from biomedlm_jax import mesh as meshes
from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.benchmarks import rounds as timed
from biomedlm_jax.benchmarks.kernels import profile_lines, profile_steps
from biomedlm_jax.benchmarks.rounds import OURS, Timing
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json, write_json
from biomedlm_jax.model import attention
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import abstract_model, config_to_hf, make_config
from biomedlm_jax.training.config import OptimizerSettings
from biomedlm_jax.training.loss import next_token_loss
from biomedlm_jax.training.metrics import flops_per_token, peak_flops
from biomedlm_jax.training.optimizer import make_optimizer
from biomedlm_jax.training.state import (
    TrainState,
    init_state,
    jit_step,
    random_model,
    train_step,
)

Steps = Callable[[], list[float]]  # one or more training steps; returns their losses

BLOCKS_ON_GPU = 2
OPTIMIZER = OptimizerSettings(
    schedule="cosine",
    learning_rate=1.6e-4,
    warmup_steps=100,
    beta2=0.95,
    weight_decay=1.6e-5,
    decoupled=True,
)


def measure(
    config: ModelConfig,
    *,
    batch_size: int,
    loss_chunks: int = 1,
    rounds: int = 5,
    steps: int = 4,
    peers: tuple[str, ...] = ("torch sdpa", "torch sdpa fused"),
    blocks: int | None = None,
    profile: str | None = None,
) -> dict[str, Any]:
    """Time each side in `rounds` alternating rounds of `steps` steps; return the figures.

    `peers` name PyTorch variants: "torch ATTENTION [fused] [compile]". With `blocks` each side has
    a process of its own in each of so many blocks, and is timed for `rounds` rounds there; None is
    `BLOCKS_ON_GPU` on a GPU, and elsewhere one process in which rounds alternate. `profile` is a
    directory for a trace of our side, after its last round.
    """
    for peer in peers:
        check_peer(peer)
    names, shared = (OURS, *peers), {"batch_size": batch_size, "loss_chunks": loss_chunks}
    blocks = BLOCKS_ON_GPU if blocks is None and _on_gpu() else blocks
    if blocks is None:
        keep_freed_memory()  # as pretrain() does; it applies to the peers in this process, too
        about = device_of(config)
        sides = {name: make_side(name, config, **shared) for name in names}
        timings = timed.alternate(sides, rounds=rounds, calls=steps, warmup=1)
        profiled = profile_steps(sides[OURS], profile) if profile else None
    else:
        timings, about, profiled = _in_blocks(
            config, names, blocks, steps=rounds * steps, profile=profile, **shared
        )
    tokens = batch_size * config.context_length
    flops = flops_per_token(abstract_model(config), config.context_length) * tokens
    sides = timed.summarise_timings(timings, "tokens", tokens)
    peak = peak_flops(about["device_kind"])
    for name, side in sides.items():
        speed = flops / side["median_seconds"]
        side |= {"flops_per_second": speed, "mfu": speed / peak if peak else None}
        side["first_loss"] = timings[name].first[0]
    notes = [f"attention of {OURS}: {about['attention']}"]
    if blocks:
        notes.append(f"each side in processes of its own, alternating in blocks: {blocks}")
    config = dataclasses.replace(config, compute_dtype=about["dtype"])
    work = f"length {config.context_length}, batch {batch_size}"
    packages = ("jax", "flax", "torch", "transformers")
    return {
        **timed.benchmark_header(work, packages, config=config, device=about["device_kind"]),
        "notes": notes + (profile_lines(profiled) if profiled else []),
        "attention": about["attention"],
        "blocks": blocks,
        "tables": {"train": sides},
        "profile": profiled,
    }


def check_peer(name: str) -> None:
    """Raise InputError unless `name` is the name of a peer."""
    words = name.split()
    if words[:1] != ["torch"] or len(words) < 2 or set(words[2:]) - {"fused", "compile"}:
        raise InputError(
            f"got the peer {name!r}; expected 'torch ATTENTION [fused] [compile]', where "
            "ATTENTION is transformers' attn_implementation, such as sdpa or eager"
        )


def device_of(config: ModelConfig) -> dict[str, str]:
    """Return the device, dtype and attention kernel of this library in this process."""
    return {
        "device_kind": jax.devices()[0].device_kind,
        "dtype": np.dtype(config.dtype).name,
        "attention": attention.training_kernel(config, meshes.make_mesh()),
    }


def make_side(name: str, config: ModelConfig, *, batch_size: int, loss_chunks: int) -> Steps:
    """Return one step of this library (`OURS`) or of a peer, on random tokens."""
    shape = batch_size, config.context_length
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, shape).astype(np.int32)
    if name == OURS:
        loss_fn = functools.partial(next_token_loss, chunks=loss_chunks)
        make = functools.partial(random_model, config, seed=0)
        return jax_steps(meshes.make_mesh(), make, loss_fn, [tokens], OPTIMIZER)
    check_peer(name)
    return _torch_side(config, tokens, *name.split()[1:])


def jax_steps(
    mesh: Mesh, make: Callable, loss_fn: Callable, batches, settings: OptimizerSettings, *base: Any
) -> Steps:
    """Return a call that updates the model `make(*base)` once with each batch."""
    tx, _ = make_optimizer(settings, steps=1_000_000)
    layout = meshes.sharding(mesh, "batch", None)

    def start(*base) -> TrainState:
        return init_state(make(*base), tx)

    with jax.set_mesh(mesh):
        abstract = meshes.abstract_sharded(start, mesh, *base)
        state = jax.jit(start, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(*base)
        update = jit_step(train_step, abstract=abstract, tx=tx, seed=0, loss_fn=loss_fn)

    def run() -> list[float]:
        nonlocal state
        losses = []
        with jax.set_mesh(mesh):
            for batch in batches:
                placed = jax.tree.map(lambda array: meshes.place(array, layout), batch)
                state, metrics = update(state, placed)
                losses.append(metrics["loss"])
        return [float(loss) for loss in losses]

    return run


def torch_steps(parameters, losses: Sequence[Callable], settings, *, fused: bool = False) -> Steps:
    """Return a call that updates `parameters` once with each function of `losses`."""
    import torch

    parameters, rate = list(parameters), settings.learning_rate
    betas, decay = (settings.beta1, settings.beta2), settings.weight_decay / rate
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=decay, fused=fused)

    def update(loss_fn: Callable) -> float:
        loss = loss_fn()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return lambda: [update(loss_fn) for loss_fn in losses]


def _torch_side(config: ModelConfig, tokens: np.ndarray, kernel: str, *options: str) -> Steps:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    device, half = timed.torch_device(), config.dtype == jax.numpy.bfloat16
    hf_config = AutoConfig.for_model(**config_to_hf(config))
    model: Any = AutoModelForCausalLM.from_config(hf_config, attn_implementation=kernel)
    model = model.to(device).train()
    model = torch.compile(model) if "compile" in options else model
    batch = torch.from_numpy(tokens).long().to(device)

    def loss():
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return model(batch, labels=batch, use_cache=False).loss

    return torch_steps(model.parameters(), [loss], OPTIMIZER, fused="fused" in options)


def _on_gpu() -> bool:
    """Return whether jax runs on a GPU; checked in another process, as jax reserves its memory."""
    program = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stdout.split()[-1:] == ["gpu"]


def _in_blocks(config: ModelConfig, names, blocks: int, *, profile: str | None, **options):
    """Time each side in a process of its own, in turn; this process does not use the GPU."""
    timings, about, profiled = {}, {}, None
    for block in range(blocks):
        for name in names:
            timed.progress(f"block {block + 1} of {blocks}: {name}")
            traced = profile if name == OURS and block == blocks - 1 else None
            result = measure_in_process(name, config, profile=traced, **options)
            if name == OURS:  # jax has no GPU in a peer's process
                about, profiled = result["about"], result["profile"]
                config = dataclasses.replace(config, compute_dtype=about["dtype"])
            timing = Timing(**result["timing"])
            timings.setdefault(name, dataclasses.replace(timing, seconds=[]))
            timings[name].seconds.extend(timing.seconds)
    return timings, about, profiled


def measure_in_process(name: str, config: ModelConfig, **options) -> dict[str, Any]:
    """Time `steps` steps of one side in a process of its own; returns what `_measure` does.

    `options` are `steps`, `batch_size`, `loss_chunks` and `profile`. Raises InputError if the
    process fails.
    """
    # The process has the GPU to itself, of which jax would reserve three quarters. A peer does not
    # need jax there, which must not reserve any.
    environment = {"JAX_PLATFORMS": "cpu"}
    if name == OURS:
        fraction = "XLA_PYTHON_CLIENT_MEM_FRACTION"
        environment = {fraction: os.environ.get(fraction, "0.95")}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        request = json.dumps({"name": name, "config": config.to_json(), **options})
        program = [sys.executable, "-m", __name__, request, str(answer)]
        # Its output goes to stderr (2): standard output is for the tables.
        done = subprocess.run(program, env={**os.environ, **environment}, stdout=2)
        if done.returncode or not answer.exists():
            raise InputError(
                f"the process that measured {name} ended with {done.returncode}; its error is "
                "above. If memory ran out, take a smaller batch_size"
            )
        return read_json(answer)


def _measure(*, name: str, config: dict, steps: int, profile: str | None = None, **options) -> dict:
    keep_freed_memory()
    model_config, timing = make_config(config), Timing()
    about = device_of(model_config) if name == OURS else {}
    side = make_side(name, model_config, **options)
    timing.call(side)
    side()
    timing.call(side, steps)
    profiled = profile_steps(side, profile) if profile else None
    return {"timing": dataclasses.asdict(timing), "about": about, "profile": profiled}


if __name__ == "__main__":
    write_json(Path(sys.argv[2]), _measure(**json.loads(sys.argv[1])))
