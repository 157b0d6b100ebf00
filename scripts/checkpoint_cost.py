"""Measure what hashing costs a checkpoint: alternating saves with and without SHA256SUMS.

    python scripts/checkpoint_cost.py --out=/tmp/checkpoints [--megabytes=500] [--rounds=7]

Saves the training state of a model (parameters and both moments) of about that size. A side's time
is that from the call to the finished directory; `blocked` is the part for which training waits.
`hash` reads and hashes a finished step alone, `verify` compares it, `restore` reads it.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path

import jax
import optax

from biomedlm_jax.benchmarks.rounds import benchmark_header
from biomedlm_jax.integrity import damage, write_sums
from biomedlm_jax.mesh import abstract_sharded, one_device
from biomedlm_jax.model.gpt2 import GPT2Config
from biomedlm_jax.training import checkpoint, saved_steps
from biomedlm_jax.training.state import init_state, random_model


def main() -> None:
    """Read the flags, measure, and print medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=Path, help="a new directory; it is removed")
    parser.add_argument("--megabytes", type=int, default=500, help="size of the state")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    options.out.mkdir(parents=True)

    width = 512
    per_layer = 12 * width**2
    layers = max(1, round((options.megabytes * 1e6 / 12 - 8_192 * width) / per_layer))
    config = GPT2Config(
        vocab_size=8_192, context_length=256, eos_token_id=0, layers=layers, width=width, heads=8
    )
    tx = optax.adamw(1e-3)
    mesh = one_device()

    def make():
        state = init_state(random_model(config, seed=0), tx)
        leaves, structure = jax.tree.flatten(state)  # moments of zeros would be compressed
        keys = jax.random.split(jax.random.key(1), len(leaves))
        return structure.unflatten(
            jax.random.normal(key, leaf.shape) if leaf.ndim else leaf
            for key, leaf in zip(keys, leaves, strict=True)
        )

    abstract = abstract_sharded(make, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state = jax.block_until_ready(jax.jit(make, out_shardings=shardings)())
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    times: dict[str, list[float]] = {}

    def measure(name: str, call) -> None:
        began = time.perf_counter()
        call()
        times.setdefault(name, []).append(time.perf_counter() - began)

    for number in range(options.rounds + 1):
        for side, write in (("hashes", write_sums), ("none", lambda directory: None)):
            checkpoint.write_sums = write  # ty: ignore[invalid-assignment]
            run = options.out / f"{side}{number}"
            checkpointer = checkpoint.Checkpointer(run, keep=1)

            def save(checkpointer=checkpointer, side=side) -> None:
                measure(f"blocked, {side}", lambda: checkpointer.save(state, {}))
                checkpointer.wait()

            measure(f"save, {side}", save)
            checkpointer.close()
            if side == "hashes":
                folder = run / saved_steps.FOLDER / "0"
                measure("hash", lambda folder=folder: write_sums(folder))
                measure("verify", lambda folder=folder: damage(folder))
                again = checkpoint.Checkpointer(run, keep=1)
                measure("restore", lambda again=again: again.restore(abstract, 0))
                again.close()
            shutil.rmtree(run)
        if number == 0:
            times.clear()  # the first round opens libraries and files
    shutil.rmtree(options.out)
    header = benchmark_header("", ("jax", "orbax-checkpoint"))
    print(header["machine"], *(f"{n} {v}" for n, v in header["versions"].items()), sep=", ")
    print(f"{size / 1e6:,.0f} MB, {options.rounds} rounds, medians (least to most) in s")
    for name, values in times.items():
        print(f"{name:16} {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    with_hashes, without = times["save, hashes"], times["save, none"]
    ratios = [a / b for a, b in zip(with_hashes, without, strict=True)]
    print(f"save with hashes / without: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
