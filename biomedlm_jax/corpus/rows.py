"""Rows: random access to the token rows that `build_tokens` wrote."""

import operator
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from biomedlm_jax.corpus.packing import SPLITS
from biomedlm_jax.corpus.tokens import ROWS, read_manifest


class Rows(Sequence):
    """The rows of a split, each an array [length] of `manifest["dtype"]`, read when asked for.

    Raises ValueError for an unknown split, or shards that do not hold what the manifest says.
    """

    def __init__(self, path: str | Path, split: str):
        self.manifest, self._path = read_manifest(path), Path(path)
        if split not in SPLITS:
            raise ValueError(f"got the split {split!r}; it is one of {', '.join(SPLITS)}")
        self._indices = range(self.manifest["splits"][split]["rows"])
        self._source: Sequence = ()
        if self._indices:  # TFDS cannot open a split without shards
            import tensorflow_datasets as tfds

            try:
                builder = tfds.builder_from_directory(self._path / ROWS)
                for shard in builder.info.splits[split].filepaths:
                    shard.stat()  # else a lost one is found when its first row is read
                self._source = builder.as_data_source(split)
            except Exception as error:  # of many kinds, as they come from TFDS and ArrayRecord
                raise ValueError(f"cannot open the {split} rows of {path}: {error}") from error
        if len(self._source) != len(self):
            raise ValueError(f"{path} has {len(self._source)} {split} rows instead of {len(self)}")

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> np.ndarray:
        """Read several rows at once, in the order asked for: [len(indices), length]."""
        positions = [self._indices[index] for index in indices]
        read = np.stack([record["tokens"] for record in self._source.__getitems__(positions)])
        if read.max() >= self.manifest["vocab_size"]:  # the model would look past its embedding
            raise ValueError(
                f"{self._path} holds the token id {read.max()}, but its vocabulary has "
                f"{self.manifest['vocab_size']} entries: the rows are damaged; build them again"
            )
        return read
