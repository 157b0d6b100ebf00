"""Batches: token rows -> global arrays [batch, length] laid out over the devices, in one order.

Row i of step s is row s * batch_size + i of the split's order, on any number of devices and
processes: a process works out which rows of a batch its own devices hold and reads only those.
So a position is one number, and a run resumes on other hosts than it was saved on.

Grain shuffles by index, anew in every pass, and its threads read, lay out and transfer a few
batches ahead, so that a device does not wait for the next one.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from biomedlm_jax.corpus.rows import Rows

READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


class Batches:
    """An endless (or `passes` long) iterator of int32 arrays [batch_size, length].

    Args:
      path: a directory of token rows.
      sharding: the layout of a batch; None puts it on this process's first device.
      shuffle: visit the rows in an order that differs with `seed` and from pass to pass; else in
        that of the file. A batch may reach over from one pass into the next.
      passes: stop after so many passes over the split, with the last full batch.

    Raises:
      ValueError: a batch size that does not divide over the sharding, or exceeds the split's rows;
        and whatever `Rows` refuses.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        split: str = "train",
        batch_size: int,
        sharding: Sharding | None = None,
        shuffle: bool = True,
        seed: int = 0,
        passes: int | None = None,
    ):
        self._rows = Rows(path, split)
        self._layout = _Layout(sharding, batch_size, self._rows.manifest["length"])
        if batch_size > len(self._rows):
            raise ValueError(
                f"got batch_size={batch_size}, but {path} has {len(self._rows)} {split} rows; "
                "give more text or a smaller batch"
            )
        order = grain.MapDataset.range(len(self._rows))
        if shuffle:
            order = order.shuffle(_seed_32_bit(seed))
        self._order = order.repeat(passes)
        self._identity = {
            "dataset": self._rows.manifest["fingerprint"],
            "tokenizer": self._rows.manifest["tokenizer_hash"],
            "split": split,
            "batch_size": batch_size,
            "shuffle": shuffle,
            "seed": seed,
        }
        self._steps = len(self._order) // batch_size
        self._start(0)

    def __iter__(self) -> Iterator[jax.Array]:
        return self

    def __next__(self) -> jax.Array:
        batch = next(self._batches)
        self._step += 1
        return batch

    def position(self) -> dict:
        """Where the iterator stands, for JSON: the batches handed out, and of what they are."""
        return {"step": self._step, **self._identity}

    def restore(self, position: dict) -> None:
        """Go on after the batches that had been handed out when `position` was taken.

        Raises ValueError, and changes nothing, if it was taken from other data, or from batches
        of another size, split, seed or shuffling: the rows that follow would not be the same.
        """
        here = self._identity
        got = {key: value for key, value in position.items() if key != "step"}
        differing = [key for key in here | got if here.get(key) != got.get(key)]
        if differing:
            changes = ", ".join(
                f"{key} {str(got.get(key))[:12]} (now {str(here.get(key))[:12]})"
                for key in differing
            )
            raise ValueError(
                f"the position was saved with another {changes}; go on with what it was saved "
                "with, or start a new run"
            )
        step = position.get("step")
        if not isinstance(step, int) or not 0 <= step <= self._steps:
            raise ValueError(f"got a position at step {step}; it is between 0 and {self._steps}")
        self._batches.close()
        self._start(step)

    def close(self) -> None:
        """End the reading threads."""
        self._batches.close()

    def _start(self, step: int) -> None:
        self._step = step
        self._batches = _read_ahead(self._load, step, self._steps)

    def _load(self, step: int) -> jax.Array:
        first = step * self._layout.batch_size
        indices = [self._order[first + row] for row in self._layout.rows.tolist()]
        return self._layout.place(self._rows.__getitems__(indices).astype(np.int32))


def validation_batches(
    path: str | Path,
    *,
    batch_size: int,
    sharding: Sharding | None = None,
    limit: int | None = None,
    split: str = "validation",
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Return every row of a split once, in order: (tokens [B, L] int32, weights [B] float32).

    The last batch is filled up with rows of zeros that have weight 0, all others have weight 1,
    so that weighted sums are exact. `weights` is laid out as the batch axis of `sharding` is.
    `limit` ends after so many batches.

    Raises ValueError at once, before the first batch, as `Batches` does, or if there are no rows.
    """
    rows = Rows(path, split)
    layout = _Layout(sharding, batch_size, rows.manifest["length"])
    if not len(rows):
        raise ValueError(
            f"{path} has no {split} rows; build them with a larger validation_fraction"
        )

    def load(step: int) -> tuple[jax.Array, jax.Array]:
        indices = step * batch_size + layout.rows
        real = indices < len(rows)
        tokens = np.zeros((len(indices), layout.length), np.int32)
        if real.any():
            tokens[real] = rows.__getitems__(indices[real].tolist())
        return layout.place(tokens), layout.place(real.astype(np.float32))

    steps = -(-len(rows) // batch_size)
    return _closing(_read_ahead(load, 0, steps if limit is None else min(limit, steps)))


def check_tokens(
    manifest: dict,
    *,
    vocab_size: int,
    length: int,
    eos_id: int | None = None,
    tokenizer_hash: str | None = None,
) -> None:
    """Raise ValueError unless a model of this vocabulary and context can train on these rows."""
    if manifest["length"] != length:
        raise ValueError(
            f"the token rows have length {manifest['length']}, but the model's context is "
            f"{length}; build them with --length={length}, or change the model's context"
        )
    if manifest["vocab_size"] != vocab_size:
        raise ValueError(
            f"the token rows have ids of a vocabulary of {manifest['vocab_size']} entries, but "
            f"the model's has {vocab_size}; set --config.model.vocab_size={manifest['vocab_size']} "
            f"--config.model.eos_token_id={manifest['eos_id']}, or build the rows with the model's "
            "tokenizer"
        )
    if eos_id not in (None, manifest["eos_id"]):
        raise ValueError(
            f"the token rows end their texts with id {manifest['eos_id']}, and the model's "
            f"eos_token_id is {eos_id}; set it to {manifest['eos_id']}"
        )
    if tokenizer_hash not in (None, manifest["tokenizer_hash"]):
        raise ValueError(
            f"the token rows were made with the tokenizer {manifest['tokenizer_hash'][:12]}, not "
            f"with {tokenizer_hash[:12]}; build them with the model's tokenizer"
        )


class _Layout:
    """How a batch lies over the devices, and which of its rows this process therefore reads."""

    def __init__(self, sharding: Sharding | None, batch_size: int, length: int):
        if batch_size < 1:
            raise ValueError(f"got batch_size={batch_size}; it is at least 1")
        self.batch_size, self.length = batch_size, length
        self._sharding = sharding or SingleDeviceSharding(jax.local_devices()[0])
        try:
            parts = self._sharding.addressable_devices_indices_map((batch_size, length))
        except ValueError as error:
            raise ValueError(
                f"a batch of {batch_size} rows of {length} tokens does not divide over "
                f"{self._sharding}; choose a multiple of its parts"
            ) from error
        held = [np.arange(batch_size)[rows] for rows, *_ in parts.values()]
        self.rows = np.unique(np.concatenate(held))

    def place(self, local: np.ndarray) -> jax.Array:
        """Build the global [batch_size, ...] array out of the `rows` this process has read."""
        sharding = self._sharding
        if local.ndim == 1 and isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))

        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(self.batch_size)
            start = np.searchsorted(self.rows, first)
            return local[(slice(start, start + last - first), *index[1:])]

        return jax.make_array_from_callback((self.batch_size, *local.shape[1:]), sharding, part)


def _seed_32_bit(seed: int) -> int:
    # Grain shuffles pass p with seed + p, so neighbouring seeds would share their orders.
    return int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest(), "big")


def _read_ahead(load: Callable, first: int, last: int) -> grain.DatasetIterator:
    steps = grain.MapDataset.range(first, last).map(load)
    return iter(steps.to_iter_dataset(READ_AHEAD))


def _closing(batches: grain.DatasetIterator) -> Iterator:
    try:
        yield from batches
    finally:
        batches.close()
