"""Rows: random access to the token rows that `build_tokens` wrote.

Each record of a shard has a hash, and so has the index of records: no flipped bit becomes a token.
ArrayRecord reports everything, damage and errors of the storage, by one class without the file's
name. Rows find the file and the cause by reading again.
"""

import contextlib
import errno
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from biomedlm_jax.buckets import as_path
from biomedlm_jax.corpus.manifest import (
    MISSING,
    ROWS,
    check_ends,
    check_files,
    damaged,
    naming,
    read_manifest,
)
from biomedlm_jax.corpus.packer import SPLITS
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json

INFO, FEATURES = "dataset_info.json", "features.json"  # of TFDS


class Rows:
    """The rows of a split, each an array [length] of `manifest["dtype"]`, read on access.

    Opening checks names and sizes of all files; the first row of a shard checks whether it is of
    this build.

    Raises:
      InputError: unknown split or damaged files, on opening and on access.
      OSError: the storage fails, on opening and on access.
    """

    def __init__(self, path: str | Path, split: str):
        self.manifest, self._path = read_manifest(path), as_path(path)
        if split not in SPLITS:
            raise InputError(f"got the split {split!r}; expected one of {', '.join(SPLITS)}")
        self._indices = range(self.manifest["splits"][split]["rows"])
        self._files = {entry["name"]: entry for entry in self.manifest.get("files", ())}
        if self._files:
            check_files(self._path / ROWS, self._files)
        self._source: Any = ()
        if self._indices:  # TFDS cannot open a split without shards
            self._open(split)

    def _open(self, split: str) -> None:
        import tensorflow_datasets as tfds

        directory = self._path / ROWS
        for name in (INFO, FEATURES):
            try:
                with naming(directory / name):
                    read_json(directory / name)
            except (InputError, *MISSING) as error:
                raise damaged(directory / name, "is missing or is not JSON") from error
        try:
            builder: Any = tfds.builder_from_directory(str(directory))
            lengths = builder.info.splits[split].shard_lengths
            splits = builder.info.splits.values()
            shards = {info.name: [file.name for file in info.filepaths] for info in splits}
            row = builder.info.features["tokens"]
            self._connect = lambda: builder.as_data_source(split)
            self._source = self._connect()
        except OSError:
            raise
        except Exception as error:  # TFDS raises many kinds
            raise damaged(directory / INFO, f"or {FEATURES} is damaged ({error})") from error
        if not self._files:  # as an earlier version built them
            names = [name for of_split in shards.values() for name in of_split]
            check_files(directory, dict.fromkeys([INFO, FEATURES, *names]))
        if sum(lengths) != len(self):
            raise damaged(directory / INFO, f"has {sum(lengths)} {split} rows, not {len(self)}")
        if (row.shape, row.np_dtype) != ((self.manifest["length"],), self.manifest["dtype"]):
            got = f"rows of {row.shape} {np.dtype(row.np_dtype)}"
            raise damaged(directory / FEATURES, f"has {got}, which the manifest has not")
        self._shards, self._ends = shards[split], np.cumsum(lengths)
        self._unread = {shard for shard, name in enumerate(self._shards) if name in self._files}

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> np.ndarray:
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> np.ndarray:
        """Read several rows at once: [len(indices), length], in the order of `indices`."""
        positions = [self._indices[index] for index in indices]
        if not positions:
            return np.empty((0, self.manifest["length"]), self.manifest["dtype"])
        shards = np.searchsorted(self._ends, positions, side="right")
        try:
            for shard in self._unread.intersection(shards.tolist()):
                check_ends(self._path / ROWS, self._files[self._shards[shard]])
                self._unread.discard(shard)
            rows = np.stack([record["tokens"] for record in self._source.__getitems__(positions)])
        except (InputError, MemoryError):
            raise
        except Exception as error:  # those of ArrayRecord, TFDS and the storage
            raise self._cause(error, positions, shards) from error
        if rows.max() >= self.manifest["vocab_size"]:  # an embedding lookup would clamp the id
            raise InputError(
                f"{self._path} holds token id {rows.max()}, but its vocabulary has "
                f"{self.manifest['vocab_size']} entries: the rows are damaged; build them again"
            )
        return rows

    def _cause(self, error: Exception, positions: list[int], shards: np.ndarray) -> Exception:
        """Read again, shard by shard; return the error of the first file that fails.

        It is damage if all bytes of the file can be read, but its rows still cannot. A storage that
        works again gives an OSError, too: the reader of a run may have been cut off for a while.
        """
        self._source = self._connect()  # a reader of ArrayRecord repeats its first error for ever
        for shard in dict.fromkeys(shards.tolist()):
            file = self._path / ROWS / self._shards[shard]
            rows = np.asarray(positions)[shards == shard].tolist()
            with contextlib.suppress(Exception):
                self._read_alone(rows)
                continue
            try:
                with naming(file):
                    with file.open("rb") as content:
                        while content.read(1 << 20):
                            pass
                    self._read_alone(rows)
            except MISSING:
                return damaged(file, "is missing")
            except (OSError, MemoryError) as other:
                return other
            except Exception as damage:
                return damaged(file, f"is damaged ({damage or 'ArrayRecord cannot read it'})")
        reason = f"rows could not be read at first ({error}), but then could"
        return OSError(errno.EIO, reason, str(self._path / ROWS))

    def _read_alone(self, positions: list[int]) -> None:
        """Read rows one by one with new readers, without threads."""
        source = self._connect()
        for position in positions:
            source[position]
