"""Batches: token rows as global arrays [batch, length] over the devices, in one fixed order.

Row i of step s is row s * batch_size + i of the order of the split, or of a mixture of several
sources (mixtures.py), on any number of devices and processes: a process reads only the rows of a
batch that its own devices hold. A position is therefore one number, and a run resumes on other
hosts than those that saved it.

Grain shuffles by index, differently in every pass. Its threads read, lay out and transfer a few
batches ahead, so that devices do not wait for data.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from biomedlm_jax.corpus.mixtures import MixedRows, Source
from biomedlm_jax.corpus.rows import Rows
from biomedlm_jax.errors import InputError

READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


class Batches:
    """An endless (or `passes` long) iterator of int32 arrays [batch_size, length].

    Args:
      path: a directory of token rows, or the sources of a mixture, whose rows are numbered through
        in their order.
      sharding: the layout of a batch; None puts it on this process's first device.
      shuffle: visit the rows in an order that depends on `seed` and the pass, else in the order
        of the file. A batch may span two passes.
      passes: stop after this many passes over the split, with the last full batch; a mixture has
        no end.

    Raises InputError for a batch size that does not divide over the sharding or exceeds the rows of
    the split, and what `Rows` raises, then and from `next`: an error of a reading thread comes with
    its batch, and leaves the position, so that another `next` tries the same batch again.
    """

    def __init__(
        self,
        path: str | Path | Sequence[Source],
        *,
        split: str = "train",
        batch_size: int,
        sharding: Sharding | None = None,
        shuffle: bool = True,
        seed: int = 0,
        passes: int | None = None,
    ):
        if isinstance(path, str | Path):
            self._rows: Rows | MixedRows = Rows(path, split)
        else:
            self._rows = MixedRows(path, split)
        manifest = self._rows.manifest
        self._layout = _Layout(sharding, batch_size, manifest["length"])

        def order_of(rows: int, passes: int | None = None) -> Any:
            order = grain.MapDataset.range(rows)
            if shuffle:
                # Grain shuffles pass p with seed + p: without a hash, seeds would share orders.
                digest = hashlib.blake2b(str(seed).encode(), digest_size=4).digest()
                order = order.shuffle(int.from_bytes(digest, "big"))
            return order.repeat(passes)

        if isinstance(self._rows, MixedRows):
            if passes is not None:
                raise InputError(f"got passes={passes} over a mixture, which has no end")
            self._rows.check_batch(batch_size)
            self._order, dataset = self._rows.order(order_of), self._rows.fingerprint()
        else:
            if batch_size > len(self._rows):
                raise InputError(
                    f"got batch_size={batch_size}, but {path} has {len(self._rows)} {split} rows; "
                    "give more text or a smaller batch"
                )
            self._order = order_of(len(self._rows), passes)
            dataset = manifest["fingerprint"]
        self._identity = {
            "dataset": dataset,
            "tokenizer": manifest["tokenizer_hash"],
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
        try:
            batch = next(self._batches)
        except StopIteration:
            raise
        except BaseException:  # Grain would return the batch after the one that failed
            self._batches.close()
            self._start(self._step)
            raise
        self._step += 1
        return batch

    def position(self) -> dict:
        """Return the number of batches returned so far and their identity, for JSON."""
        return {"step": self._step, **self._identity}

    def restore(self, position: dict) -> None:
        """Continue after the batches that had been returned when `position` was taken.

        Raises InputError, without any change, if the position belongs to other data, or to another
        batch size, split, seed or shuffling: the rows that follow would differ.
        """
        changes = [
            f"{key} {str(position.get(key))[:12]} (now {str(self._identity.get(key))[:12]})"
            for key in self._identity | position
            if key != "step" and position.get(key) != self._identity.get(key)
        ]
        if changes:
            raise InputError(
                f"the position was saved with another {', '.join(changes)}; resume with the saved "
                "values, or start a new run"
            )
        step = position.get("step")
        if not isinstance(step, int) or not 0 <= step <= self._steps:
            raise InputError(f"got a position at step {step}; expected 0 to {self._steps}")
        self._batches.close()
        self._start(step)

    def rows_of(self, step: int) -> list[int]:
        """Return the row numbers in the split of the whole batch of a step, in its order."""
        return self._numbers(step, range(self._layout.batch_size))

    def at(self, step: int) -> jax.Array:
        """Load the batch of a step, whatever the position, which stays as it is.

        Every process that holds a part of the batch must call it to use the result.
        """
        return self._load(step)

    def close(self) -> None:
        """Stop the reading threads."""
        self._batches.close()

    def _start(self, step: int) -> None:
        self._step = step
        self._batches = _read_ahead(self._load, step, self._steps)

    def _load(self, step: int) -> jax.Array:
        indices = self._numbers(step, self._layout.rows.tolist())
        return self._layout.place(self._rows.__getitems__(indices).astype(np.int32))

    def _numbers(self, step: int, rows: Iterable[int]) -> list[int]:
        if not 0 <= step < self._steps:  # Grain would count from the end, or start again
            raise InputError(f"got step {step}; expected 0 to {self._steps - 1}")
        first = step * self._layout.batch_size
        return [int(cast(int, self._order[first + row])) for row in rows]


def validation_batches(
    path: str | Path,
    *,
    batch_size: int,
    sharding: Sharding | None = None,
    limit: int | None = None,
    split: str = "validation",
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Return the rows of a split once, in order: (tokens [B, L] int32, weights [B] float32).

    The last batch is padded with rows of zeros of weight 0; all other weights are 1, so that
    weighted sums are exact. `weights` has the batch axis of `sharding`. `limit` is the largest
    number of batches: their rows are spread evenly over the split, whose first documents may be of
    another kind than its last.

    Raises InputError before the first batch, as `Batches` does, or if the split has no rows.
    """
    rows = Rows(path, split)
    layout = _Layout(sharding, batch_size, rows.manifest["length"])
    if not len(rows):
        raise InputError(
            f"{path} has no {split} rows; build them with a larger validation_fraction"
        )

    total = len(rows) if limit is None else min(len(rows), limit * batch_size)

    def load(step: int) -> tuple[jax.Array, jax.Array]:
        indices = step * batch_size + layout.rows
        real = indices < total
        tokens = np.zeros((len(indices), layout.length), np.int32)
        if real.any():
            spread = indices[real] * len(rows) // total
            tokens[real] = rows.__getitems__(spread.tolist())
        return layout.place(tokens), layout.place(real.astype(np.float32))

    return _closing(_read_ahead(load, 0, -(-total // batch_size)))


class _Layout:
    """The layout of a batch over the devices, and the `rows` of it that this process reads."""

    def __init__(self, sharding: Sharding | None, batch_size: int, length: int):
        if batch_size < 1:
            raise InputError(f"got batch_size={batch_size}; expected at least 1")
        self.batch_size, self.length = batch_size, length
        self._sharding = sharding or SingleDeviceSharding(jax.local_devices()[0])
        try:
            shards = self._sharding.addressable_devices_indices_map((batch_size, length))
        except ValueError as error:
            raise InputError(
                f"a batch of {batch_size} rows of {length} tokens does not divide over "
                f"{self._sharding}; choose a multiple"
            ) from error
        held = [np.arange(batch_size)[index[0]] for index in shards.values() if index]
        self.rows = np.unique(np.concatenate(held))

    def place(self, local: np.ndarray) -> jax.Array:
        """Build the global array [batch_size, ...] from the `rows` that this process has read."""
        sharding = self._sharding
        if local.ndim == 1 and isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            batch, *others = index or [slice(None)]
            first, last, _ = batch.indices(self.batch_size)
            start = np.searchsorted(self.rows, first)
            return local[(slice(start, start + last - first), *others)]

        return jax.make_array_from_callback((self.batch_size, *local.shape[1:]), sharding, shard)


def _read_ahead(load: Callable, first: int, last: int) -> grain.DatasetIterator:
    steps = grain.MapDataset.range(first, last).map(load)
    return iter(steps.to_iter_dataset(READ_AHEAD))


def _closing(batches: grain.DatasetIterator) -> Iterator:
    try:
        yield from batches
    finally:
        batches.close()
