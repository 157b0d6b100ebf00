"""Decoding speed, and its share of the memory bandwidth, which limits it at small batches."""

from collections.abc import Sequence

import jax

from biomedlm_jax import chips
from biomedlm_jax import mesh as meshes
from biomedlm_jax.errors import counted
from biomedlm_jax.generation.decoder import Decoder, cache_bytes, mesh_of
from biomedlm_jax.generation.decoding import Decoded


class Stats:
    """Sums over the batches that a generator decoded, except those that compiled."""

    def __init__(self, decoder: Decoder):
        self._decoder, self._shapes = decoder, set()
        self.prefill_tokens = self.decode_tokens = self.steps = self.step_bytes = 0
        self.prefill_seconds = self.decode_seconds = 0.0

    def add(self, decoded: Decoded, prompts: Sequence[Sequence[int]], *, beams: int) -> None:
        """Count the result of one batch of prompts."""
        if (*decoded.shape, beams) not in self._shapes:
            self._shapes.add((*decoded.shape, beams))
            return
        self.prefill_tokens += sum(map(len, prompts))
        self.prefill_seconds += decoded.prefill_seconds
        self.decode_tokens += sum(map(len, decoded.rows))
        self.decode_seconds += decoded.decode_seconds
        self.steps += decoded.steps
        B, P, N = decoded.shape
        self.step_bytes += decoded.steps * step_bytes(self._decoder, B, P + beams * N)

    def lines(self) -> list[str]:
        """Return the figures as lines of text."""
        if not self.steps:
            return ["no speed: every batch compiled; decode more prompts of one length"]
        moved, mesh = self.step_bytes / self.decode_seconds, mesh_of(self._decoder)
        limit = bandwidth(1 if mesh is None else mesh.size)
        # A small model's weights stay in a cache, which is faster than the memory.
        share = f": {moved / limit:.0%} of the memory's" if limit and moved < limit else ""
        return [
            f"prefill  {counted(self.prefill_tokens, 'token')}, "
            f"{self.prefill_tokens / self.prefill_seconds:,.0f} tokens/s",
            f"decode   {counted(self.decode_tokens, 'token')}, "
            f"{self.decode_tokens / self.decode_seconds:,.1f} tokens/s, "
            f"{1e3 * self.decode_seconds / self.steps:.2f} ms/step",
            f"read     {self.step_bytes / self.decode_tokens / 1e6:,.1f} MB/token, "
            f"{moved / 1e9:,.1f} GB/s{share}",
        ]


def step_bytes(decoder: Decoder, batch: int, slots: int) -> int:
    """Return the bytes that a decode step reads: the weights per data shard, every row's cache.

    Of the embeddings only the output head counts; a lookup reads few rows.
    """
    mesh, model = mesh_of(decoder), decoder.model
    copies = 1 if mesh is None else meshes.batch_shards(mesh)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.blocks)) + model.head_weight.nbytes
    return copies * weights + batch * cache_bytes(decoder.config, slots)


def bandwidth(devices: int) -> float | None:
    """Return the memory bandwidth of so many devices in bytes/s; None if it is not published."""
    chip = chips.chip(jax.devices()[0].device_kind)
    return None if chip is None else devices * chip.memory_bandwidth / chip.devices
