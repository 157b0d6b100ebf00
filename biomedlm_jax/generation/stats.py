"""Stats: how fast tokens come, and how near that is to what the memory allows.

At small batches a decode step is the time to read every weight, and the cache, once.
"""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from biomedlm_jax import chips
from biomedlm_jax import mesh as meshes
from biomedlm_jax.generation.decoder import Decoder, cache_bytes, mesh_of


class Stats:
    """Sums over the batches that a generator decoded; those that compiled are left out."""

    def __init__(self, decoder: Decoder):
        self._decoder, self._shapes = decoder, set()
        self.clear()

    def clear(self) -> None:
        """Forget all figures, but not which shapes were compiled."""
        self.prefill_tokens = self.decode_tokens = self.steps = self.step_bytes = 0
        self.prefill_seconds = self.decode_seconds = 0.0

    def add(self, found, prompts: Sequence, tokens: Sequence, beams: int) -> None:
        """Count a `Decoded` or `Searched` with its prompts and new tokens."""
        known = (*found.shape, beams) in self._shapes
        self._shapes.add((*found.shape, beams))
        if not known:
            return
        self.prefill_tokens += sum(map(len, prompts))
        self.prefill_seconds += found.prefill_seconds
        self.decode_tokens += sum(map(len, tokens))
        self.decode_seconds += found.decode_seconds
        self.steps += found.steps
        B, P, N = found.shape
        self.step_bytes += found.steps * step_bytes(self._decoder, B, P + beams * N)

    def lines(self) -> list[str]:
        """The figures in words."""
        if not self.steps:
            return ["no figures: every batch compiled; decode more of one shape"]
        rate = self.decode_tokens / self.decode_seconds
        moved = self.step_bytes / self.decode_seconds
        mesh = mesh_of(self._decoder)
        limit, source = bandwidth(1 if mesh is None else mesh.size)
        return [
            f"prefill  {self.prefill_tokens:,} tokens, "
            f"{self.prefill_tokens / self.prefill_seconds:,.0f} tokens/s",
            f"decode   {self.decode_tokens:,} tokens, {rate:,.1f} tokens/s, "
            f"{1e3 * self.decode_seconds / self.steps:.2f} ms a step",
            f"memory   {self.step_bytes / self.decode_tokens / 1e6:,.1f} MB a token, "
            f"{moved / 1e9:,.1f} GB/s: {moved / limit:.0%} of {limit / 1e9:,.0f} GB/s ({source})",
        ]


def step_bytes(decoder: Decoder, batch: int, slots: int) -> int:
    """Bytes that a step must read: each weight once, and the cache of every row.

    The embeddings count once, for the output head; a lookup takes only its rows. Devices that
    share a batch read all weights each.
    """
    mesh = mesh_of(decoder)
    copies = 1 if mesh is None else meshes.batch_shards(mesh)
    head = decoder.tables.get("head", decoder.tables["wte"])
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(decoder.layers)) + head.nbytes
    return copies * weights + batch * cache_bytes(decoder.config, slots)


def bandwidth(devices: int) -> tuple[float, str]:
    """Bytes per second of this machine's memory for so many devices, and where that is from."""
    chip = chips.chip(jax.devices()[0].device_kind)
    if chip is None:
        return _measured(), "measured now: a sum over 256 MB"
    return devices * chip.memory_bandwidth / chip.devices, "data sheet"


def _measured() -> float:
    x, total = jnp.asarray(np.ones(1 << 26, np.float32)), jax.jit(jnp.sum)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        total(x).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return x.nbytes / min(seconds)
