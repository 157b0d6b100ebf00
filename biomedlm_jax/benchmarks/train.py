"""A training step of this library beside transformers' GPT-2 with torch's AdamW.

Both sides train the same model on the same tokens with the same number of threads. On a CPU both
live in one process and rounds alternate, so that a busy machine slows both. On a GPU neither could
have its memory beside the other, so blocks of rounds alternate instead: a side starts in a process
of its own, warms up, measures its rounds of the block and ends, then the other; and again.
"""

import dataclasses
import importlib.metadata
import statistics
import subprocess
import sys

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.benchmarks import sides
from biomedlm_jax.benchmarks.kernels import print_kernels, profile_steps
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.training.metrics import flops_per_token, peak_flops

BLOCKS_ON_GPU = 2


def run_benchmark(
    *,
    length: int,
    dtype: str,
    peers: list[str],
    layers: int,
    width: int,
    heads: int,
    vocab_size: int,
    unroll: int,
    **options,
) -> dict:
    """Measure as `measure_train` does, on a model of this shape; print a table, return it all."""
    rates = ("embedding_dropout", "attention_dropout", "residual_dropout")
    config = GPTConfig(
        context_length=length,
        compute_dtype=dtype,
        layers=layers,
        width=width,
        heads=heads,
        vocab_size=vocab_size,
        unroll=unroll,
        **dict.fromkeys(rates, 0.0),
    )
    figures = measure_train(config, peers=tuple(peers), **options)
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
    blocks: int | None = None,
    profile: str | None = None,
) -> dict:
    """Median seconds per step of each side, over `rounds` alternating rounds of `steps` steps.

    `peers` name PyTorch variants: "torch ATTENTION [fused] [compile]". With `blocks` each side has
    a process of its own in each of so many blocks, and measures `rounds` rounds there; None is
    `BLOCKS_ON_GPU` on a GPU, and elsewhere one process in which rounds alternate. `profile` is a
    directory for a trace of our side, after its last round.

    Returns a dictionary with the figures, the attention kernel, the versions and the machine;
    `ratio` is the peer's time over ours: above 1, ours is faster.
    """
    for peer in peers:
        sides.check_peer(peer)
    names = (sides.OURS, *peers)
    shared = {"batch_size": batch_size, "loss_chunks": loss_chunks}
    if blocks is None and _on_gpu():
        blocks = BLOCKS_ON_GPU
    if blocks is None:
        measured = _alternating(config, names, rounds, steps, profile, shared)
    else:
        measured = _in_blocks(config, names, blocks, rounds * steps, profile, shared)
    ours, about = measured[sides.OURS], measured[sides.OURS]["about"]
    seconds = {name: found["seconds"] for name, found in measured.items()}
    median = statistics.median(ours["seconds"])
    tokens = batch_size * config.context_length
    flops = flops_per_token(config) * tokens
    peak = peak_flops(about["device_kind"])
    return {
        "parameters": config.parameter_count,
        "shape": f"{config.layers} layers, width {config.width}, length {config.context_length}, "
        f"batch {batch_size}, vocabulary {config.vocab_size:,}, {about['dtype']}",
        "machine": about["machine"],
        "attention": about["attention"],
        "blocks": blocks,
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("jax", "flax", "torch", "transformers")
        },
        "sides": {
            name: {
                "median_seconds": statistics.median(times),
                "fastest_seconds": min(times),
                "tokens_per_second": tokens / statistics.median(times),
                "flops_per_second": flops / statistics.median(times),
                "mfu": flops / statistics.median(times) / peak if peak else None,
                "first_loss": measured[name]["first_loss"],
                "ratio": statistics.median(times) / median,
            }
            for name, times in seconds.items()
        },
        "profile": ours.get("profile"),
    }


def _alternating(config, names, rounds: int, steps: int, profile: str | None, shared: dict) -> dict:
    """All sides in this process, a round of each in turn."""
    keep_freed_memory()  # as pretrain() does; the peers in this process have it, too
    about = sides.about(config)
    made = {name: sides.make_side(name, config, **shared) for name in names}
    measured = {
        name: {"first_loss": sides.warm_up(step), "seconds": []} for name, step in made.items()
    }
    for _ in range(rounds):
        for name, step in made.items():
            measured[name]["seconds"] += sides.timed(step, steps)
    measured[sides.OURS]["about"] = about
    if profile:
        measured[sides.OURS]["profile"] = profile_steps(made[sides.OURS], profile)
    return measured


def _in_blocks(config, names, blocks: int, steps: int, profile: str | None, shared: dict) -> dict:
    """Each side in a process of its own, in turn, `blocks` times; this one stays off the GPU."""
    measured = {}
    for block in range(blocks):
        for name in names:
            last = name == sides.OURS and block == blocks - 1
            asked = {**shared, "steps": steps, "profile": profile if last else None}
            print(f"block {block + 1} of {blocks}: {name}", file=sys.stderr, flush=True)
            found = sides.measure_in_process(name, config, **asked)
            if name == sides.OURS:  # a peer's process does not see the GPU through jax
                config = dataclasses.replace(config, compute_dtype=found["about"]["dtype"])
            before = measured.get(name, {"seconds": [], "first_loss": found["first_loss"]})
            seconds = before["seconds"] + found["seconds"]
            measured[name] = {**found, "seconds": seconds, "first_loss": before["first_loss"]}
    return measured


def _on_gpu() -> bool:
    """Whether jax runs on a GPU here; asked in another process, for an answer takes its memory."""
    program = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stdout.split()[-1:] == ["gpu"]


def print_table(figures: dict) -> None:
    """Print the figures of `measure_train` as a table."""
    print(f"{figures['parameters']:,} parameters: {figures['shape']}")
    print(figures["machine"], ", ".join(f"{n} {v}" for n, v in figures["versions"].items()))
    print(f"attention of biomedlm_jax: {figures['attention']}")
    if figures["blocks"]:
        print(f"each side in processes of its own, alternating in blocks: {figures['blocks']}")
    print(f"{'':24} {'s/step':>8} {'fastest':>8} {'tokens/s':>10} {'GFLOP/s':>9} {'ratio':>6}")
    for name, side in figures["sides"].items():
        print(
            f"{name:24} {side['median_seconds']:8.3f} {side['fastest_seconds']:8.3f} "
            f"{side['tokens_per_second']:10,.0f} {side['flops_per_second'] / 1e9:9,.0f} "
            f"{side['ratio']:6.2f}" + (f"  MFU {side['mfu']:.1%}" if side["mfu"] else "")
        )
    print("ratio: the side's median over that of biomedlm_jax; above 1, biomedlm_jax is faster")
    if figures["profile"]:
        print_kernels(figures["profile"])
