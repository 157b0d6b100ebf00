"""Containment: texts most of whose shingles are in a text twice as long.

A short text is looked up by its seeds, a few of its shingles, among the samples of longer texts.
All of these are small hashes: their products with a constant are spread over the ranges of joins.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np

from biomedlm_jax.corpus.copies import Cache
from biomedlm_jax.corpus.segments import Segments, open_segments
from biomedlm_jax.corpus.signatures import SEEDS, containment
from biomedlm_jax.corpus.sorted_runs import (
    FACTOR,
    JOINED,
    Rows,
    groups,
    load,
    pieces,
    read_range,
    save,
    select,
)

COMMON = 64  # texts with a seed: beyond, it is a phrase of many articles, and says nothing
LEAST_SHINGLES = 40  # of a text that is looked up in longer ones
MOST_SHINGLES = 1000  # of such a text: an abstract
LONGER = 2  # times as many shingles has the text that contains it
COMPARED = 1 << 18  # pairs of a task, with repetitions
_SAMPLED = 1 << 10  # one pair in so many shows how pairs are spread


def seed_rows(segments: Segments, kept: np.ndarray, first: int, end: int) -> Rows:
    """Return the seeds of the short documents of segments."""
    names = [f"seed{number}" for number in range(SEEDS)]
    rows = segments.columns(first, end, ("shingles", *names))
    sizes = rows["shingles"]
    short = kept[rows["record"]] & (sizes >= LEAST_SHINGLES) & (sizes <= MOST_SHINGLES)
    rows = select(rows, short)
    keys = np.concatenate([rows[name] for name in names])
    single = np.sum([rows[name] != 0 for name in names], axis=0) == 1
    there = keys != 0
    owners = {"record": np.tile(rows["record"], SEEDS), "single": np.tile(single, SEEDS)}
    return _without_common({"key": keys[there] * FACTOR, **select(owners, there)})


def sample_rows(segments: Segments, kept: np.ndarray, first: int, end: int) -> Rows:
    """Return the sampled shingles of the documents of segments that may contain a short one."""
    parts = []
    for segment in range(first, end):
        start = int(segments.starts[segment])
        rows = segments.columns(segment, segment + 1, ("shingles",))
        long = kept[rows["record"]] & (rows["shingles"] >= LONGER * LEAST_SHINGLES)
        own = segments.column(segment, "sample_row")
        these = long[own]
        parts.append((segments.column(segment, "sample")[these], own[these] + np.uint32(start)))
    keys, records = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _without_common({"key": keys * FACTOR, "record": records})


def _without_common(rows: Rows) -> Rows:
    """Return sorted rows, of each key at most one more than COMMON: enough to drop it later."""
    rows = select(rows, np.argsort(rows["key"], kind="stable"))
    group = groups(rows["key"])
    first = np.searchsorted(group, group)
    return select(rows, np.arange(len(group)) - first <= COMMON)


def join_seeds(work: Path, runs: int, number: int, within: tuple[int, int]) -> list[str]:
    """Write pairs of a short text and a longer one with its seed, for each common seed.

    A pair is there twice if the seed is the only one. Returns the names of sorted files.
    """
    seeds = read_range(work, "seed", runs, within, ("record", "single"))
    table, first, count = np.unique(seeds["key"], return_index=True, return_counts=True)
    seen = np.zeros(len(table), np.int64)
    places, wholes = [np.empty(0, np.int64)], [np.empty(0, np.uint32)]
    columns = ("key", "record")
    for rows in pieces(work, "sample", runs, within, columns) if len(table) else ():
        place = np.minimum(np.searchsorted(table, rows["key"]), len(table) - 1)
        match = (table[place] == rows["key"]) & (seen[place] <= COMMON) & (count[place] <= COMMON)
        np.add.at(seen, place[match], 1)
        places.append(place[match])
        wholes.append(rows["record"][match])
    place, whole = np.concatenate(places), np.concatenate(wholes)
    rare = seen[place] <= COMMON
    place, whole = place[rare], whole[rare]
    sizes, names = load(work / "shingles.npy"), []
    ends = np.cumsum(count[place])
    begin = 0
    while begin < len(place):  # so many pairs that they fit into memory
        before = int(ends[begin - 1]) if begin else 0
        end = max(int(np.searchsorted(ends, before + JOINED, side="right")), begin + 1)
        repeats = count[place[begin:end]]
        within_key = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        row = np.repeat(first[place[begin:end]], repeats) + within_key
        part, other = seeds["record"][row], np.repeat(whole[begin:end], repeats)
        longer = sizes[other].astype(np.int64) >= LONGER * sizes[part].astype(np.int64)
        pairs = (part.astype(np.uint64) << np.uint64(32)) | other.astype(np.uint64)
        pairs = np.repeat(pairs[longer], 1 + seeds["single"][row][longer])
        name = f"pairs-{number:06d}-{len(names):06d}"
        save(work / f"{name}.npy", np.sort(pairs))
        names.append(name)
        begin = end
    return names


def pair_ranges(work: Path, names: list[str]) -> list[tuple[int, int]]:
    """Return ranges of pairs, by their numbers, that hold about COMPARED; none if there are none.

    A pair's number is part * 2**32 + whole, and a part's pairs are in one range.
    """
    files = [load(work / f"{name}.npy") for name in names]
    if not sum(len(pairs) for pairs in files):
        return []
    sampled = np.sort(np.concatenate([pairs[::_SAMPLED] for pairs in files]))
    parts = sampled[:: max(1, COMPARED // _SAMPLED)] >> np.uint64(32)
    ends = [0, *(int(part) << 32 for part in np.unique(parts)[1:]), 2**64]
    return list(pairwise(ends))


def compare_pairs(
    work: Path, names: list[str], least: float, number: int, within: tuple[int, int]
) -> str:
    """Write the pairs of a range whose longer text contains the other; return the file's name.

    Only pairs with two common seeds are compared.
    """
    ends = np.array([within[0], min(within[1], 2**64 - 1)], np.uint64)
    there = [np.empty(0, np.uint64)]
    for name in names:
        pairs = load(work / f"{name}.npy")
        first, end = np.searchsorted(pairs, ends).tolist()
        there.append(np.array(pairs[first:end]))
    pairs, shared = np.unique(np.concatenate(there), return_counts=True)
    pairs = pairs[shared > 1]
    cache = Cache(open_segments(work).shingles)
    numbers = np.stack([pairs >> np.uint64(32), pairs & np.uint64(2**32 - 1)]).astype(np.int64)
    inside = np.array(
        [containment(cache[part], cache[whole]) >= least for part, whole in numbers.T.tolist()],
        bool,
    )
    name = f"contained-{number:06d}"
    save(work / f"{name}.npy", numbers[:, inside])
    return name
