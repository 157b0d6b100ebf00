"""A training step of this library beside transformers' GPT-2 with torch's AdamW.

Both sides train the same model on the same tokens with the same number of threads; rounds
alternate, so that a busy machine slows both.
"""

import functools
import importlib.metadata
import os
import platform
import statistics
import time

import jax
import numpy as np

from biomedlm_jax import mesh as meshes
from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.training.loss import next_token_loss
from biomedlm_jax.training.metrics import flops_per_token, peak_flops
from biomedlm_jax.training.optimizer import make_optimizer
from biomedlm_jax.training.state import abstract_state, compile_step, init_state, train_step

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


def run_benchmark(
    *,
    length: int,
    dtype: str,
    peers: list[str],
    batch_size: int,
    loss_chunks: int,
    rounds: int,
    steps: int,
    **shape: int,
) -> dict:
    """Measure as `measure_train` does, on a model of `shape`; print a table, return the figures."""
    rates = ("embedding_dropout", "attention_dropout", "residual_dropout")
    config = GPTConfig(
        context_length=length, compute_dtype=dtype, **shape, **dict.fromkeys(rates, 0.0)
    )
    figures = measure_train(
        config,
        batch_size=batch_size,
        loss_chunks=loss_chunks,
        rounds=rounds,
        steps=steps,
        peers=tuple(peers),
    )
    print_table(figures)
    return figures


def measure_train(
    config: GPTConfig,
    *,
    batch_size: int,
    loss_chunks: int = 1,
    rounds: int = 5,
    steps: int = 4,
    peers: tuple[str, ...] = ("torch sdpa", "torch sdpa fused"),
) -> dict:
    """Median seconds per step of each side, over `rounds` alternating rounds of `steps` steps.

    `peers` name PyTorch variants: "torch ATTENTION [fused] [compile]". Returns a dictionary with
    the figures, the versions and the machine; `ratio` is the peer's time over ours: above 1, ours
    is faster.
    """
    for peer in peers:
        words = peer.split()
        if words[:1] != ["torch"] or len(words) < 2 or set(words[2:]) - {"fused", "compile"}:
            raise ValueError(
                f"got the peer {peer!r}; name one as 'torch ATTENTION [fused] [compile]', where "
                "ATTENTION is transformers' attn_implementation, such as sdpa or eager"
            )
    keep_freed_memory()  # as pretrain() does; the peers in this process have it, too
    length = config.context_length
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (batch_size, length))
    sides = {"biomedlm_jax": _ours(config, tokens, loss_chunks)}
    for peer in peers:
        sides[peer] = _torch(config, tokens, *peer.split()[1:])
    seconds = {name: [] for name in sides}
    first_losses = {name: step() for name, step in sides.items()}  # compiles, too
    for step in sides.values():
        step()
    for _ in range(rounds):
        for name, step in sides.items():
            for _ in range(steps):
                began = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - began)
    ours = statistics.median(seconds["biomedlm_jax"])
    flops = flops_per_token(config) * batch_size * length
    peak = peak_flops(jax.devices()[0].device_kind)
    return {
        "parameters": config.parameter_count,
        "shape": f"{config.layers} layers, width {config.width}, length {length}, "
        f"batch {batch_size}, vocabulary {config.vocab_size:,}, {config.dtype.__name__}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("jax", "flax", "torch", "transformers")
        },
        "sides": {
            name: {
                "median_seconds": statistics.median(times),
                "fastest_seconds": min(times),
                "tokens_per_second": batch_size * length / statistics.median(times),
                "flops_per_second": flops / statistics.median(times),
                "mfu": flops / statistics.median(times) / peak if peak else None,
                "first_loss": first_losses[name],
                "ratio": statistics.median(times) / ours,
            }
            for name, times in seconds.items()
        },
    }


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


def print_table(figures: dict) -> None:
    """Print the figures of `measure_train` as a table."""
    print(f"{figures['parameters']:,} parameters: {figures['shape']}")
    print(figures["machine"], ", ".join(f"{n} {v}" for n, v in figures["versions"].items()))
    print(f"{'':24} {'s/step':>8} {'fastest':>8} {'tokens/s':>10} {'GFLOP/s':>9} {'ratio':>6}")
    for name, side in figures["sides"].items():
        print(
            f"{name:24} {side['median_seconds']:8.3f} {side['fastest_seconds']:8.3f} "
            f"{side['tokens_per_second']:10,.0f} {side['flops_per_second'] / 1e9:9,.0f} "
            f"{side['ratio']:6.2f}" + (f"  MFU {side['mfu']:.1%}" if side["mfu"] else "")
        )
    print("ratio: the side's median over that of biomedlm_jax; above 1, biomedlm_jax is faster")
