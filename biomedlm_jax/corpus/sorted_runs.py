"""Sorted runs: keys of records in files, so that equal keys meet in bounded memory.

This is an external sort by two rounds of tasks. A task of the first round sorts the keys of some
segments into a run. One of the second reads the keys of a range, about JOINED or fewer, from all
runs. Keys are hashes: they are spread evenly over their 64 bits.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from biomedlm_jax.corpus.parts_folder import unique_name

JOINED = 1 << 22  # keys, or rows, that a task holds
SPREAD = (1 << 18, 16)  # keys of a range, unless there are more ranges: work for all processes
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: the product of a number has all its information
_SMALL = 4096  # bytes of a file that is not worth mapping, or cannot be as it is empty

Rows = dict[str, np.ndarray]  # columns of equal length; "key" is uint64


def save(path: Path, values: np.ndarray) -> None:
    """Write an array in one step."""
    new = unique_name(path)
    with new.open("wb") as file:
        np.save(file, values)
    os.replace(new, path)


def load(path: Path) -> np.ndarray:
    """Return an array of `save`, of which what is read comes into memory."""
    return np.load(path, mmap_mode="r" if path.stat().st_size > _SMALL else None)


def write_run(work: Path, name: str, number: int, rows: Rows) -> None:
    """Write rows in the order of their keys; those with equal keys stay in theirs."""
    order = np.argsort(rows["key"], kind="stable")
    for column, values in rows.items():
        save(_file(work, name, number, column), values[order])


def ranges(keys: int) -> list[tuple[int, int]]:
    """Return (first, end) of ranges that hold about JOINED or fewer of so many keys."""
    least, most = SPREAD
    count = max(1, -(-keys // JOINED), min(-(-keys // least), most))
    ends = [(number << 64) // count for number in range(count + 1)]
    return list(pairwise(ends))


def pieces(
    work: Path, name: str, runs: int, within: tuple[int, int], columns: Sequence[str]
) -> Iterator[Rows]:
    """Yield the rows of a range of keys of each run."""
    ends = np.array([within[0], min(within[1], 2**64 - 1)], np.uint64)
    for number in range(runs):
        keys = load(_file(work, name, number, "key"))
        first, end = np.searchsorted(keys, ends).tolist()
        end = len(keys) if within[1] >= 2**64 else end
        if first < end:
            files = {column: _file(work, name, number, column) for column in columns}
            yield {column: np.array(load(file)[first:end]) for column, file in files.items()}


def read_range(
    work: Path, name: str, runs: int, within: tuple[int, int], columns: Sequence[str]
) -> Rows:
    """Return the rows of a range of keys of all runs, by key and record."""
    there = list(pieces(work, name, runs, within, ("key", *columns)))
    empty = {column: np.empty(0, np.uint64) for column in ("key", *columns)}
    rows = {column: np.concatenate([one[column] for one in there or [empty]]) for column in empty}
    del there
    order = np.argsort(rows["key"], kind="stable")  # records ascend
    return {column: values[order] for column, values in rows.items()}


def select(rows: Rows, these: np.ndarray) -> Rows:
    """Return some of the rows, by a mask or by numbers."""
    return {column: values[these] for column, values in rows.items()}


def groups(keys: np.ndarray) -> np.ndarray:
    """Return the number of each sorted key among the different ones."""
    return np.cumsum(np.concatenate([[False], keys[1:] != keys[:-1]])[: len(keys)])


def repeated(rows: Rows) -> Rows:
    """Return the rows whose key another has, with their "group", a number of the key from 0."""
    group = groups(rows["key"])
    several = np.bincount(group)[group] > 1 if group.size else np.empty(0, bool)
    rows = select(rows, several)
    return rows | {"group": groups(rows["key"])}


def _file(work: Path, name: str, number: int, column: str) -> Path:
    return work / f"{name}-{number:06d}-{column}.npy"
