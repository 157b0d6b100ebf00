"""Deduplication: which records of a corpus are versions, copies or parts of others.

Records are numbered in the order of the sources, files and records. The steps, each on what the
earlier ones left:

1. identity  records with one PMID, PMCID or DOI are one article. Of citations (without a body) and
             of full texts, the greatest version wins, of equal ones the last; a citation whose full
             text is in the corpus is left out. A deletion removes the citations before it.
2. exact     equal texts but for white space: the first stays.
3. near      Jaccard similarity of the shingles of at least `near`: the first stays. MinHash bands
             find the pairs, and the texts themselves decide.
4. contained a text of which at least `contained` of the shingles are in one twice as long.

Every step joins keys by sorting them, a limited number at a time: memory is a few bytes a record,
and the result depends on the records and their order only. A library's index, a hash table in
memory, would need a kilobyte a record.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from biomedlm_jax.corpus.parts import DELETION, HAS_BODY, HAS_TEXT
from biomedlm_jax.corpus.signatures import SEEDS, containment, jaccard
from biomedlm_jax.errors import InputError

JOINED = 1 << 22  # keys that are sorted at once
LOOKED_UP = 1 << 19  # short texts that are looked up in all longer ones at once
COMMON = 64  # texts with a seed: beyond, it is a phrase of many articles, and says nothing
LEAST_SHINGLES = 40  # of a text that is looked up in longer ones
MOST_SHINGLES = 1000  # of such a text: an abstract
LONGER = 2  # times as many shingles has the text that contains it
CACHED = 1 << 22  # shingles of texts that are kept for more comparisons

# Reasons, by their number in `Decisions.reason`; 0 is a document of the corpus.
REASONS = (
    "",
    "no_text",  # a record that the filters refused, or a deletion
    "deleted",
    "older_version",
    "abstract_of_article",
    "exact_duplicate",
    "near_duplicate",
    "contained",
)
STAGES = {  # the reasons of each step
    "identity": ("deleted", "older_version", "abstract_of_article"),
    "exact": ("exact_duplicate",),
    "near": ("near_duplicate",),
    "contained": ("contained",),
}


class Columns(Protocol):
    """The numbers of the records, which are stored in segments."""

    sizes: Sequence[int]  # records of each segment
    bands: int  # columns "band0", "band1", ...

    def column(self, segment: int, name: str) -> np.ndarray:
        """Return a column of `parts.COLUMNS`, or "band0", "seed0", "sample", "sample_row"."""
        raise NotImplementedError


@dataclass
class Decisions:
    """For each record: why it is left out, and because of which other one (-1: none)."""

    reason: np.ndarray  # uint8, index in REASONS
    other: np.ndarray  # int32

    def leave_out(self, records: np.ndarray | int, reason: str, other: np.ndarray | int) -> None:
        """Leave out records because of others."""
        self.reason[records] = REASONS.index(reason)
        self.other[records] = other

    @property
    def kept(self) -> np.ndarray:
        """Return whether each record is a document of the corpus."""
        return self.reason == 0


def deduplicate(
    columns: Columns,
    shingles_of: Callable[[int], np.ndarray],
    *,
    near: float = 0.8,
    contained: float = 0.8,
    progress: Callable[[str], None] = lambda step: None,
) -> Decisions:
    """Decide which records are documents of the corpus.

    Args:
      shingles_of: returns the shingles of a record's text.
      near: smallest Jaccard similarity of near duplicates; 0 skips the step. The bands of the
        columns must be those of `Banding.of(near)`.
      contained: smallest containment of a text in a longer one; 0 skips the step.
      progress: called with the name of each step before it.
    """
    records = Records(columns)
    if len(records) >= 2**31:
        raise InputError(f"got {len(records):,} records; build corpora of at most 2,147,483,647")
    kind = records.all("kind")
    decisions = Decisions(np.zeros(len(kind), np.uint8), np.full(len(kind), -1, np.int32))
    decisions.leave_out(kind & HAS_TEXT == 0, "no_text", -1)
    progress("identity")
    _choose_versions(records, kind, decisions)
    progress("exact")
    _leave_out_copies(records, decisions)
    cached = Cache(shingles_of)
    if near:
        progress("near")
        _leave_out_near(records, cached, decisions, near)
    if contained:
        progress("contained")
        _leave_out_contained(records, cached, decisions, contained)
    return decisions


class Records:
    """The records of all segments, numbered through."""

    def __init__(self, columns: Columns):
        self._columns, self.bands = columns, columns.bands
        self.starts = np.concatenate([[0], np.cumsum(columns.sizes, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def all(self, name: str) -> np.ndarray:
        """Return a column of all records."""
        parts = [self._columns.column(i, name) for i in range(len(self._columns.sizes))]
        return np.concatenate(parts) if parts else np.empty(0, np.uint8)

    def keys(self, name: str, owners: str = "") -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (keys, records) of each segment; `owners` is the column with their rows."""
        for i, start in enumerate(self.starts[:-1].tolist()):
            keys = self._columns.column(i, name)
            rows = self._columns.column(i, owners) if owners else np.arange(len(keys))
            yield keys, rows.astype(np.int64) + start

    def repeated(self, name: str, chosen: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (group, records): the chosen records whose key another has, numbered by key.

        A key of 0 is none. There are several pairs of arrays for many records, each with groups
        of its own, and each sorted by group and record.
        """
        turns = -(-len(self) // JOINED)
        for turn in range(turns):
            parts = []
            for keys, records in self.keys(name):
                these = (keys % keys.dtype.type(turns) == turn) & (keys != 0) & chosen[records]
                parts.append((keys[these], records[these]))
            keys, records = (np.concatenate(part) for part in zip(*parts, strict=True))
            if not keys.size:
                continue
            order = np.argsort(keys, kind="stable")  # records ascend
            keys, records = keys[order], records[order]
            new = np.concatenate([[True], keys[1:] != keys[:-1]])
            group = np.cumsum(new) - 1
            these = np.bincount(group)[group] > 1
            if these.any():
                yield group[these], records[these]


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


def _choose_versions(records: Records, kind: np.ndarray, decisions: Decisions) -> None:
    pmids, pmcids = records.all("pmid"), records.all("pmcid")
    article, edges = (kind & DELETION) == 0, [np.empty((2, 0), np.int64)]
    for name, others in (("pmid", ()), ("pmcid", (pmids,)), ("doi", (pmids, pmcids))):
        for group, these in records.repeated(name, article):
            # An identifier that articles with different PMIDs share, such as the DOI of a
            # supplement with hundreds of abstracts, identifies none of them.
            same = group[1:] == group[:-1]
            for other in others:
                same &= ~_ambiguous(group, other[these])[1:]
            edges.append(np.stack([these[:-1][same], these[1:][same]]))
    deleted = _leave_out_deleted(records, kind, decisions)
    nodes, pairs = np.unique(np.concatenate(edges, axis=1), return_inverse=True)
    if not nodes.size:  # every article is a single record
        return
    links = tuple(pairs.reshape(2, -1))
    graph = coo_array((np.ones(len(links[0]), bool), links), shape=(len(nodes), len(nodes)))
    component = connected_components(graph, directed=False)[1]
    nodes, component = nodes[~deleted[nodes]], component[~deleted[nodes]]
    if not nodes.size:
        return
    version = records.all("version")[nodes]
    body = (kind[nodes] & HAS_BODY) != 0
    order = np.lexsort((nodes, version, body, component))
    nodes, component, body = nodes[order], component[order], body[order]
    # The newest of the citations and of the full texts of each article: the filters may have
    # refused it, and then there is none.
    last = np.append((component[1:] != component[:-1]) | (body[1:] != body[:-1]), True)
    newest = nodes[last][np.searchsorted(np.flatnonzero(last), np.arange(len(nodes)))]
    old = (nodes != newest) & decisions.kept[nodes]
    decisions.leave_out(nodes[old], "older_version", newest[old])
    full = body & decisions.kept[nodes]
    text_of = np.full(component.max(initial=0) + 1, -1, np.int64)
    text_of[component[full]] = nodes[full]
    covered = ~body & decisions.kept[nodes] & (text_of[component] >= 0)
    decisions.leave_out(nodes[covered], "abstract_of_article", text_of[component[covered]])


def _ambiguous(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return for each row whether the rows of its group have several values, 0 not counted."""
    largest = np.zeros(group.max(initial=0) + 1, values.dtype)
    smallest = np.full_like(largest, np.iinfo(values.dtype).max)
    known = values != 0
    np.maximum.at(largest, group[known], values[known])
    np.minimum.at(smallest, group[known], values[known])
    return (largest > smallest)[group]


def _leave_out_deleted(records: Records, kind: np.ndarray, decisions: Decisions) -> np.ndarray:
    """Return which records, documents or not, a later deletion removes."""
    gone = np.zeros(len(kind), bool)
    for group, these in records.repeated("pmid", (kind & HAS_BODY) == 0):
        deletion = (kind[these] & DELETION) != 0
        last = np.full(group.max(initial=0) + 1, -1, np.int64)
        np.maximum.at(last, group[deletion], these[deletion])
        deleted = ~deletion & (these < last[group])
        gone[these[deleted]] = True
        deleted &= decisions.kept[these]
        decisions.leave_out(these[deleted], "deleted", -1)
    return gone


def _leave_out_copies(records: Records, decisions: Decisions) -> None:
    rest = records.all("exact_rest")
    for group, these in records.repeated("exact", decisions.kept):
        order = np.lexsort((these, rest[these], group))
        group, these = group[order], these[order]
        new = np.append(True, (group[1:] != group[:-1]) | (rest[these[1:]] != rest[these[:-1]]))
        first = these[np.flatnonzero(new)][np.cumsum(new) - 1]
        decisions.leave_out(these[~new], "exact_duplicate", first[~new])


def _leave_out_near(records: Records, cache: Cache, decisions: Decisions, least: float) -> None:
    parts, buckets = [np.empty((2, 0), np.int64)], 0
    for band in range(records.bands):
        for group, these in records.repeated(f"band{band}", decisions.kept):
            parts.append(np.stack([these, group + buckets]))
            buckets += int(group.max(initial=-1)) + 1
    these, bucket = np.concatenate(parts, axis=1)
    order = np.argsort(these, kind="stable")
    these, bucket = these[order], bucket[order]
    firsts = np.flatnonzero(np.diff(these, prepend=-1)).tolist()
    members: dict[int, list[int]] = {}  # the kept records of each bucket
    for first, last in pairwise([*firsts, len(these)]):
        record, own = int(these[first]), bucket[first:last].tolist()
        for other in sorted({one for number in own for one in members.get(number, ())}):
            if jaccard(cache[record], cache[other]) >= least:
                decisions.leave_out(record, "near_duplicate", other)
                break
        else:
            for number in own:
                members.setdefault(number, []).append(record)


def _leave_out_contained(
    records: Records, cache: Cache, decisions: Decisions, least: float
) -> None:
    sizes = records.all("shingles")
    kept = decisions.kept
    short = np.flatnonzero(kept & (sizes >= LEAST_SHINGLES) & (sizes <= MOST_SHINGLES))
    # The longest first: a text that a longer one contains must not replace a shorter one.
    short = short[np.argsort(-sizes[short].astype(np.int64), kind="stable")]
    long = kept & (sizes >= LONGER * LEAST_SHINGLES)
    for start in range(0, len(short), LOOKED_UP):
        wanted = np.zeros(len(kept), bool)
        wanted[short[start : start + LOOKED_UP]] = True
        parts, wholes = _candidates(records, wanted, long, sizes)
        order = np.lexsort((wholes, parts, -sizes[parts].astype(np.int64)))
        for part, whole in zip(parts[order].tolist(), wholes[order].tolist(), strict=True):
            if decisions.reason[part] or decisions.reason[whole]:
                continue
            if containment(cache[part], cache[whole]) >= least:
                decisions.leave_out(part, "contained", whole)


def _candidates(
    records: Records, short: np.ndarray, long: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of a short text and a longer one that has two of its seeds, or its only one."""
    seeds, owners = [], []
    for number in range(SEEDS):
        for keys, these in records.keys(f"seed{number}"):
            there = short[these] & (keys != 0)
            seeds.append(keys[there])
            owners.append(these[there])
    seeds, owners = np.concatenate(seeds), np.concatenate(owners)
    order = np.lexsort((owners, seeds))
    table, first, count = np.unique(seeds[order], return_index=True, return_counts=True)
    owners = owners[order]
    seen = np.zeros(len(table), np.int64)
    places, wholes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for keys, these in records.keys("sample", "sample_row") if len(table) else ():
        keys, these = keys[long[these]], these[long[these]]
        place = np.minimum(np.searchsorted(table, keys), len(table) - 1)
        match = (table[place] == keys) & (seen[place] <= COMMON)
        np.add.at(seen, place[match], 1)
        places.append(place[match])
        wholes.append(these[match])
    place, whole = np.concatenate(places), np.concatenate(wholes)
    rare = (seen[place] <= COMMON) & (count[place] <= COMMON)
    place, whole = place[rare], whole[rare]
    repeats = count[place]
    within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    part = owners[np.repeat(first[place], repeats) + within]
    whole = np.repeat(whole, repeats)
    longer = sizes[whole] >= LONGER * sizes[part]
    pairs, shared = np.unique(part[longer] * len(sizes) + whole[longer], return_counts=True)
    part, whole = np.divmod(pairs, len(sizes))
    enough = shared >= np.minimum(2, np.bincount(owners, minlength=len(sizes))[part])
    return part[enough], whole[enough]
