"""Rows: random access to the token rows that `build_tokens` wrote."""

import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from biomedlm_jax.corpus.manifest import ROWS, read_manifest
from biomedlm_jax.corpus.packer import SPLITS
from biomedlm_jax.errors import InputError


class Rows:
    """The rows of a split, each an array [length] of `manifest["dtype"]`, read on access.

    Raises InputError for an unknown split, or shards that do not match the manifest.
    """

    def __init__(self, path: str | Path, split: str):
        self.manifest, self._path = read_manifest(path), Path(path)
        if split not in SPLITS:
            raise InputError(f"got the split {split!r}; expected one of {', '.join(SPLITS)}")
        self._indices = range(self.manifest["splits"][split]["rows"])
        self._source: Any = ()
        if self._indices:  # TFDS cannot open a split without shards
            import tensorflow_datasets as tfds

            try:
                builder: Any = tfds.builder_from_directory(str(self._path / ROWS))
                for shard in builder.info.splits[split].filepaths:
                    shard.stat()  # otherwise a missing shard is noticed at its first row
                self._source = builder.as_data_source(split)
            except Exception as error:  # TFDS and ArrayRecord raise many kinds
                raise InputError(f"cannot open the {split} rows of {path}: {error}") from error
        if len(self._source) != len(self):
            raise InputError(
                f"expected {len(self)} {split} rows in {path}, got {len(self._source)}"
            )

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> np.ndarray:
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> np.ndarray:
        """Read several rows at once: [len(indices), length], in the order of `indices`."""
        positions = [self._indices[index] for index in indices]
        rows = np.stack([record["tokens"] for record in self._source.__getitems__(positions)])
        if rows.max() >= self.manifest["vocab_size"]:  # an embedding lookup would clamp the id
            raise InputError(
                f"{self._path} holds token id {rows.max()}, but its vocabulary has "
                f"{self.manifest['vocab_size']} entries: the rows are damaged; build them again"
            )
        return rows
