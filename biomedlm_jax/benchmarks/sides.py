"""The sides of the training benchmark: this library's step and that of transformers with torch.

A side can also be measured in a process of its own, which ends with all its memory:

    python -m biomedlm_jax.benchmarks.sides REQUEST ANSWER

reads what to measure from a JSON file and writes what it found to another.
"""

import dataclasses
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from biomedlm_jax import mesh as meshes
from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.benchmarks.kernels import profile_steps
from biomedlm_jax.model import attention
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.training.loss import next_token_loss
from biomedlm_jax.training.optimizer import make_optimizer
from biomedlm_jax.training.state import abstract_state, compile_step, init_state, train_step

OURS = "biomedlm_jax"
OPTIMIZER = {
    "learning_rate": 1.6e-4,
    "warmup_steps": 100,
    "final_lr_fraction": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 1.6e-5,
    "clip_norm": 1.0,
}


def make_side(
    name: str, config: GPTConfig, *, batch_size: int, loss_chunks: int
) -> Callable[[], float]:
    """A step of this library (`OURS`) or of a peer on the same random tokens; it returns the loss.

    A peer is "torch ATTENTION [fused] [compile]". Raises ValueError for another one.
    """
    length = config.context_length
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (batch_size, length))
    if name == OURS:
        return _ours(config, tokens, loss_chunks)
    check_peer(name)
    return _torch(config, tokens, *name.split()[1:])


def check_peer(name: str) -> None:
    """Raise ValueError unless `name` is that of a peer."""
    words = name.split()
    if words[:1] != ["torch"] or len(words) < 2 or set(words[2:]) - {"fused", "compile"}:
        raise ValueError(
            f"got the peer {name!r}; name one as 'torch ATTENTION [fused] [compile]', where "
            "ATTENTION is transformers' attn_implementation, such as sdpa or eager"
        )


def about(config: GPTConfig) -> dict[str, str]:
    """What our side runs on and how: device, machine, dtype, and the attention kernel chosen."""
    kind = jax.devices()[0].device_kind
    return {
        "device_kind": kind,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {kind}",
        "dtype": config.dtype.__name__,
        "attention": attention.check_training(config, meshes.make_mesh()),
    }


def warm_up(step: Callable[[], float]) -> float:
    """Two steps, of which the first compiles; returns its loss."""
    loss = step()
    step()
    return loss


def timed(step: Callable[[], float], steps: int) -> list[float]:
    """Seconds of so many steps."""
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return seconds


def measure_in_process(name: str, config: GPTConfig, *, steps: int, **options) -> dict:
    """Measure one side in a process of its own: a warm-up, then `steps` steps.

    `options` are `batch_size`, `loss_chunks` and `profile`. Returns `seconds`, `first_loss` and,
    for our side, `about` and `profile`. Raises ValueError if the process fails.
    """
    request = {"name": name, "config": dataclasses.asdict(config), "steps": steps, **options}
    # The process has the GPU to itself, of which jax would take three quarters; a peer needs jax
    # for nothing there, and must not let it take any.
    environment = {"JAX_PLATFORMS": "cpu"}
    if name == OURS:
        fraction = "XLA_PYTHON_CLIENT_MEM_FRACTION"
        environment = {fraction: os.environ.get(fraction, "0.95")}
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        program = [sys.executable, "-m", "biomedlm_jax.benchmarks.sides", asked, answer]
        # What it prints goes to stderr (2): standard output is for the table.
        done = subprocess.run(program, env={**os.environ, **environment}, stdout=2)
        if done.returncode or not answer.exists():
            raise ValueError(
                f"the process that measured {name} ended with {done.returncode}; it says above "
                "why. If memory ran out, take a smaller batch_size"
            )
        return json.loads(answer.read_text(encoding="utf-8"))


def _measure(*, name: str, config: dict, steps: int, profile: str | None = None, **options) -> dict:
    keep_freed_memory()  # as measure_train() does
    config = GPTConfig(**config)
    found = {"about": about(config)} if name == OURS else {}
    step = make_side(name, config, **options)
    found["first_loss"] = warm_up(step)
    found["seconds"] = timed(step, steps)
    if profile:
        found["profile"] = profile_steps(step, profile)
    return found


def _ours(config: GPTConfig, tokens: np.ndarray, loss_chunks: int):
    mesh = meshes.make_mesh()
    tx, _ = make_optimizer(steps=1000, **OPTIMIZER)
    with jax.set_mesh(mesh):
        abstract = abstract_state(config, tx, mesh)
        state = init_state(config, tx, mesh, seed=0)
        loss_of = functools.partial(next_token_loss, chunks=loss_chunks)
        update = compile_step(train_step, abstract=abstract, tx=tx, seed=0, loss_of=loss_of)
    batch = jax.device_put(tokens.astype(np.int32), meshes.sharding(mesh, "batch", "length"))

    def step() -> float:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = update(state, batch)
        return float(metrics["loss"])

    return step


def _torch(config: GPTConfig, tokens: np.ndarray, attention: str, *options: str):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(os.cpu_count())
    model_config = GPT2Config(**config.to_hf())
    model_config._attn_implementation = attention
    model = GPT2LMHeadModel(model_config).to(device).train()
    if "compile" in options:
        model = torch.compile(model)
    rate = OPTIMIZER["learning_rate"]
    adamw = {
        "lr": rate,
        "betas": (OPTIMIZER["beta1"], OPTIMIZER["beta2"]),
        "weight_decay": OPTIMIZER["weight_decay"] / rate,
    }
    optimizer = torch.optim.AdamW(model.parameters(), **adamw, fused="fused" in options)
    batch = torch.from_numpy(tokens).long().to(device)
    half = config.dtype == jax.numpy.bfloat16

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = model(batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER["clip_norm"])
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


if __name__ == "__main__":
    asked, answer = map(Path, sys.argv[1:])
    found = _measure(**json.loads(asked.read_text(encoding="utf-8")))
    answer.write_text(json.dumps(found), encoding="utf-8")
