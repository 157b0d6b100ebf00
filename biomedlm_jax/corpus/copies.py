"""Copies: equal texts, and near duplicates that MinHash bands find and the texts confirm."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from biomedlm_jax.corpus.segments import Segments, open_segments
from biomedlm_jax.corpus.signatures import jaccard
from biomedlm_jax.corpus.sorted_runs import Rows, load, read_range, repeated, save, select

CACHED = 1 << 22  # shingles of texts that are kept for more comparisons


class Cache:
    """The shingles of the texts that were compared last."""

    def __init__(self, shingles_of: Callable[[int], np.ndarray]):
        self._shingles_of, self._size = shingles_of, 0
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getitem__(self, record: int) -> np.ndarray:
        if record in self._kept:
            self._kept.move_to_end(record)
            return self._kept[record]
        shingles = self._kept[record] = self._shingles_of(record)
        self._size += shingles.size
        while self._size > CACHED and len(self._kept) > 2:
            self._size -= self._kept.popitem(last=False)[1].size
        return shingles


def text_rows(segments: Segments, first: int, end: int) -> Rows:
    """Return the hash of the text of each record of segments that has one."""
    rows = segments.columns(first, end, ("exact", "exact_rest"))
    rows = select(rows, rows["exact"] != 0)
    return {"key": rows["exact"], "record": rows["record"], "rest": rows["exact_rest"]}


def band_rows(segments: Segments, first: int, end: int) -> Rows:
    """Return the key of each band of each record of segments; keys of two bands are not equal."""
    names = [f"band{band}" for band in range(segments.bands)]
    rows = segments.columns(first, end, names)
    keys = np.concatenate([rows[name] for name in names])
    records = np.tile(rows["record"], len(names))
    return {"key": keys[keys != 0], "record": records[keys != 0]}


def join_texts(work: Path, runs: int, number: int, within: tuple[int, int]) -> str:
    """Write the records with the text of an earlier one, and these; return the file's name."""
    rows = read_range(work, "exact", runs, within, ("record", "rest"))
    rows = repeated(select(rows, load(work / "reason-exact.npy")[rows["record"]] == 0))
    order = np.lexsort((rows["record"], rows["rest"], rows["group"]))
    group, these, rest = (rows[name][order] for name in ("group", "record", "rest"))
    new = np.append(True, (group[1:] != group[:-1]) | (rest[1:] != rest[:-1]))[: len(these)]
    first = these[np.flatnonzero(new)][np.cumsum(new) - 1]
    name = f"copies-{number:06d}"
    save(work / f"{name}.npy", np.stack([these[~new], first[~new]]))
    return name


def join_bands(work: Path, runs: int, number: int, within: tuple[int, int]) -> dict[str, Any]:
    """Write the documents with a key that others have, by key; return name and counts."""
    rows = read_range(work, "band", runs, within, ("record",))
    rows = repeated(select(rows, load(work / "reason-near.npy")[rows["record"]] == 0))
    name = f"band-joined-{number:06d}"
    save(work / f"{name}-record.npy", rows["record"])
    save(work / f"{name}-group.npy", rows["group"])
    size = len(rows["record"])
    return {"name": name, "rows": size, "groups": int(rows["group"].max(initial=-1)) + 1}


def compare_texts(
    work: Path, joined: list[tuple[str, int]], least: float, task: int, tasks: int
) -> str:
    """Write the near duplicates of some components, and the documents that these are like.

    `joined` has the names of `join_bands`, and the number of the first group of each. Only records
    of one component can have a key in common: it is decided on its own, in the order of records.
    """
    label, parts = load(work / "label.npy"), [np.empty((2, 0), np.int64)]
    for name, start in joined:
        records = load(work / f"{name}-record.npy")
        mine = np.flatnonzero(label[records] % tasks == task)
        group = load(work / f"{name}-group.npy")[mine].astype(np.int64)
        parts.append(np.stack([records[mine].astype(np.int64), group + start]))
    these, bucket = np.concatenate(parts, axis=1)
    order = np.argsort(these, kind="stable")
    these, bucket = these[order], bucket[order]
    firsts = np.flatnonzero(np.diff(these, prepend=-1)).tolist()
    cache, left_out = Cache(open_segments(work).shingles), []
    members: dict[int, list[int]] = {}  # the kept records of each bucket
    for first, last in pairwise([*firsts, len(these)]):
        record, own = int(these[first]), bucket[first:last].tolist()
        for other in sorted({one for number in own for one in members.get(number, ())}):
            if jaccard(cache[record], cache[other]) >= least:
                left_out.append((record, other))
                break
        else:
            for number in own:
                members.setdefault(number, []).append(record)
    name = f"near-{task:06d}"
    save(work / f"{name}.npy", np.array(left_out, np.int64).reshape(-1, 2).T)
    return name
