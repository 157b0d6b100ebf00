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

The result depends on the records and their order only. Tasks of a `Map` sort keys into runs
(sorted_runs.py), join them by ranges, and compare texts; each holds a limited number. What needs
all records at once is done here: connected components, and the choice among pairs whose texts were
compared. They exchange arrays in files. A library's index, a hash table in memory, would need a
kilobyte a record.
"""

import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from biomedlm_jax.corpus.components import smallest_members
from biomedlm_jax.corpus.containment import (
    compare_pairs,
    join_seeds,
    pair_ranges,
    sample_rows,
    seed_rows,
)
from biomedlm_jax.corpus.copies import band_rows, compare_texts, join_bands, join_texts, text_rows
from biomedlm_jax.corpus.parts import HAS_TEXT
from biomedlm_jax.corpus.process_pool import Map
from biomedlm_jax.corpus.segments import Segments, open_segments
from biomedlm_jax.corpus.sorted_runs import JOINED, load, ranges, save, write_run
from biomedlm_jax.corpus.versions import (
    IDENTIFIERS,
    choose_versions,
    identifier_rows,
    join_identifiers,
)
from biomedlm_jax.errors import InputError

RUN_BYTES = 1 << 26  # of the numbers of segments whose keys are one run
SORTING = (1 << 22, 16)  # bytes of a run, unless there are more runs
LINKS = 1 << 20  # of components, in memory at once
COMPARING = (1 << 14, 64)  # rows of a task that compares texts, unless there are more tasks

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
    segments: Segments,
    run_map: Map,
    folder: Path,
    *,
    near: float = 0.8,
    contained: float = 0.8,
    progress: Callable[[str], None] = lambda step: None,
) -> Decisions:
    """Decide which records are documents of the corpus.

    Args:
      run_map: runs the tasks.
      folder: for files of the tasks, which are removed at the end.
      near: smallest Jaccard similarity of near duplicates; 0 skips the step. The bands of the
        segments must be those of `Banding.of(near)`.
      contained: smallest containment of a text in a longer one; 0 skips the step.
      progress: called with the name of each step before it.
    """
    if len(segments) >= 2**31:
        raise InputError(f"got {len(segments):,} records; build corpora of at most 2,147,483,647")
    work = folder / f"deduplication-{secrets.token_hex(8)}"
    work.mkdir()
    try:
        steps = _Steps(segments, run_map, work)
        progress("identity")
        names = [*IDENTIFIERS, "exact", *(["band"] if near else [])]
        counts = steps.sort(names)
        steps.choose_versions(counts)
        progress("exact")
        steps.leave_out_copies(counts)
        if near:
            progress("near")
            steps.leave_out_near(counts, near)
        if contained:
            progress("contained")
            steps.leave_out_contained(contained)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return steps.decisions


def sort_segments(
    work: Path, number: int, first: int, end: int, names: Sequence[str]
) -> dict[str, int]:
    """Sort keys of some segments into runs; return how many there are of each name."""
    segments, counts = open_segments(work), {}
    for name in names:
        if name in IDENTIFIERS:
            rows = identifier_rows(segments, name, first, end)
        elif name in ("exact", "band"):
            rows = {"exact": text_rows, "band": band_rows}[name](segments, first, end)
        else:
            kept = load(work / "reason-contained.npy") == 0
            rows = {"seed": seed_rows, "sample": sample_rows}[name](segments, kept, first, end)
        write_run(work, name, number, rows)
        counts[name] = len(rows["key"])
    return counts


class _Steps:
    """The steps of one deduplication, in their order."""

    def __init__(self, segments: Segments, run_map: Map, work: Path):
        self.segments, self.run_map, self.work = segments, run_map, work
        reason, sizes = np.zeros(len(segments), np.uint8), np.zeros(len(segments), np.uint32)
        self.decisions = Decisions(reason, np.full(len(segments), -1, np.int32))
        for segment in range(len(segments.sizes)):
            rows = segments.columns(segment, segment + 1, ("kind", "shingles"))
            reason[segments.of(segment)] = (rows["kind"] & HAS_TEXT == 0) * np.uint8(
                REASONS.index("no_text")
            )
            sizes[segments.of(segment)] = rows["shingles"]
        save(work / "shingles.npy", sizes)
        segments.write(work)
        self.runs: list[tuple[int, int]] = []  # first segment of each, and the one after the last
        there = [(part / f"{number:05d}.npz").stat().st_size for part, number in segments.folders]
        least, most = SORTING
        enough = min(RUN_BYTES, max(least, -(-sum(there) // most)))
        first = size = 0
        for segment, more in enumerate(there):
            size += more
            if size >= enough or segment + 1 == len(segments.folders):
                self.runs.append((first, segment + 1))
                first, size = segment + 1, 0

    def save_reasons(self, step: str) -> None:
        """Let the tasks of a step know what the earlier ones left."""
        save(self.work / f"reason-{step}.npy", self.decisions.reason)

    def sort(self, names: Sequence[str]) -> dict[str, int]:
        """Sort keys of all segments into runs; return the number of each name."""
        tasks = ((self.work, n, *run, list(names)) for n, run in enumerate(self.runs))
        counts = dict.fromkeys(names, 0)
        for there in self.run_map(sort_segments, tasks):
            for name, count in there.items():
                counts[name] += count
        return counts

    def link(self, names: Sequence[str], links: Callable[[str], tuple[np.ndarray, np.ndarray]]):
        """Write the component of each record for the tasks."""

        def pieces() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for name in names:
                one, other = links(name)
                for first in range(0, len(one), LINKS):
                    yield one[first : first + LINKS], other[first : first + LINKS]

        save(self.work / "label.npy", smallest_members(len(self.segments), pieces))

    def choose_versions(self, counts: dict[str, int]) -> None:
        tasks = (
            (self.work, name, len(self.runs), number, within)
            for name in IDENTIFIERS
            for number, within in enumerate(ranges(counts[name]))
            if counts[name]
        )
        joined, nodes, gone = [], 0, np.zeros(len(self.segments), bool)
        for join in self.run_map(join_identifiers, tasks):
            gone[load(self.work / f"{join['name']}-gone.npy")] = True
            if join["nodes"]:
                joined.append(join["name"])
                nodes += join["nodes"]
        self.decisions.leave_out(gone & self.decisions.kept, "deleted", -1)
        if not joined:  # every article is a single record
            return
        self.link(joined, lambda name: tuple(load(self.work / f"{name}-links.npy")))
        self.save_reasons("versions")
        save(self.work / "gone.npy", gone)
        del gone
        count = -(-nodes // JOINED)
        tasks = ((self.work, joined, number, count) for number in range(count))
        for name in self.run_map(choose_versions, tasks):
            for what, reason in (("old", "older_version"), ("covered", "abstract_of_article")):
                self.leave_out(f"{name}-{what}", reason)

    def leave_out_copies(self, counts: dict[str, int]) -> None:
        self.save_reasons("exact")
        tasks = self.range_tasks(counts["exact"])
        for name in self.run_map(join_texts, tasks):
            self.leave_out(name, "exact_duplicate")

    def leave_out_near(self, counts: dict[str, int], least: float) -> None:
        self.save_reasons("near")
        joined, start, rows = [], 0, 0
        for join in self.run_map(join_bands, self.range_tasks(counts["band"])):
            if join["rows"]:
                joined.append((join["name"], start))
                start, rows = start + join["groups"], rows + join["rows"]
        if not joined:
            return
        self.link([name for name, _ in joined], self.neighbours)
        least_rows, most = COMPARING
        count = max(-(-rows // JOINED), min(-(-rows // least_rows), most))
        tasks = ((self.work, joined, least, number, count) for number in range(count))
        for name in self.run_map(compare_texts, tasks):
            self.leave_out(name, "near_duplicate")

    def neighbours(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return links between the records with equal keys, each with the next one."""
        records, group = (load(self.work / f"{name}-{what}.npy") for what in ("record", "group"))
        same = group[1:] == group[:-1]
        return records[:-1][same], records[1:][same]

    def leave_out_contained(self, least: float) -> None:
        self.save_reasons("contained")
        counts = self.sort(("seed", "sample"))
        tasks = self.range_tasks(counts["seed"] + counts["sample"])
        names = [name for join in self.run_map(join_seeds, tasks) for name in join]
        within = pair_ranges(self.work, names)
        tasks = ((self.work, names, least, *task) for task in enumerate(within))
        compared = list(self.run_map(compare_pairs, tasks))
        part, whole = np.concatenate(
            [np.empty((2, 0), np.int64), *(load(self.work / f"{name}.npy") for name in compared)],
            axis=1,
        )
        # The longest first: a text that a longer one contains must not replace a shorter one.
        sizes = load(self.work / "shingles.npy")[part].astype(np.int64)
        reason = self.decisions.reason
        for i in np.lexsort((whole, part, -sizes)).tolist():
            if not (reason[part[i]] or reason[whole[i]]):
                self.decisions.leave_out(part[i], "contained", whole[i])

    def range_tasks(self, keys: int) -> Iterable[tuple[Any, ...]]:
        """Return the tasks of a join of so many keys."""
        runs = len(self.runs)
        return ((self.work, runs, *task) for task in enumerate(ranges(keys) if keys else ()))

    def leave_out(self, name: str, reason: str) -> None:
        """Leave out the records in a file, because of those beside them there."""
        records, others = load(self.work / f"{name}.npy")
        self.decisions.leave_out(records, reason, others)
