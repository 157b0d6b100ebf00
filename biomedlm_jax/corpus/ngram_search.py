"""Look for the n-grams of some texts in the documents of a corpus, in several processes.

A text has an owner, such as the question that it is part of, and an owner a group. The result does
not depend on the number of processes: counts are sums, and examples have an order.
"""

import functools
import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from biomedlm_jax.corpus.documents import DocumentReader, Skipped
from biomedlm_jax.corpus.input_files import describe
from biomedlm_jax.corpus.ngrams import NgramIndex
from biomedlm_jax.corpus.process_pool import worker_processes

EXAMPLES = 3  # of an owner, each of another document
FILES_EACH = 4  # files for each process, from which a file is not shared among them


class Example(NamedTuple):
    """The longest run of consecutive n-grams of an owner's text that a document has."""

    order: tuple[int, int, int]  # minus the n-grams, file and place in it: the longest is first
    start: int  # of the first n-gram among the tokens of all texts
    text: int
    place: str  # "file:line"
    names: Mapping[str, str]  # of the document

    @property
    def ngrams(self) -> int:
        """The n-grams of the run."""
        return -self.order[0]


@dataclass
class UnitMatches:
    """What is in the documents of the n-grams of one unit."""

    starts: np.ndarray  # of the n-grams that are in a document, sorted, each once
    documents: Counter[int] = field(default_factory=Counter)  # by owner
    group_documents: Counter[int] = field(default_factory=Counter)  # by group
    examples: dict[int, list[Example]] = field(default_factory=dict)  # by owner

    def add(self, other: "UnitMatches") -> None:
        """Add what is in other documents."""
        self.starts = np.union1d(self.starts, other.starts)
        self.documents.update(other.documents)
        self.group_documents.update(other.group_documents)
        for owner, examples in other.examples.items():
            both = [*self.examples.get(owner, ()), *examples]
            self.examples[owner] = heapq.nsmallest(EXAMPLES, both)


@dataclass
class Matches:
    """The matches of each unit, and what was read."""

    units: dict[str, UnitMatches]
    documents: int = 0
    text_bytes: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    inputs: list[dict[str, Any]] = field(default_factory=list)  # path, bytes and SHA-256


def search_documents(
    indexes: Sequence[NgramIndex],
    owners: np.ndarray,
    groups: np.ndarray,
    paths: Sequence[str | Path],
    folder: Path,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    reader: DocumentReader | None = None,
) -> Matches:
    """Return which n-grams of the indexed texts are in the documents of `paths`.

    Args:
      indexes: one for each unit, of the same texts.
      owners: the owner of each text, a number from 0.
      groups: the group of each owner.
      folder: a new directory, where the indexes are written for the processes.
      workers: processes. Several share a file if there are few.
      progress: called with the number of finished tasks and that of all.
      reader: how the files are read.

    Raises InputError for bad input, and if there is no document.
    """
    units = {index.unit: index.length for index in indexes}
    for index in indexes:
        index.save(folder)
    np.save(folder / "owners.npy", owners)
    np.save(folder / "groups.npy", groups)
    result = Matches({unit: _none() for unit in units})
    reader = reader or DocumentReader()
    files = reader.files(paths, result.skipped)
    shares = 1 if len(files) >= FILES_EACH * workers else workers
    tasks = [
        (folder, units, number, file, (share, shares), reader)
        for number, file in enumerate(files)
        for share in range(shares)
    ]
    try:
        with worker_processes(workers) as run_map:
            for number, part in enumerate(run_map(search_file, tasks), 1):
                for unit, matches in part.units.items():
                    result.units[unit].add(matches)
                result.documents += part.documents
                result.text_bytes += part.text_bytes
                result.inputs += part.inputs
                if part.inputs:
                    result.skipped.add(part.skipped)
                if progress:
                    progress(number, len(tasks))
    finally:  # after an error, too: the next search of this process may use the same folder
        _loaded.cache_clear()
    if not result.documents:
        raise reader.no_documents(files, result.skipped)
    return result


def search_file(
    folder: Path,
    units: Mapping[str, int],
    number: int,
    file: Path,
    share: tuple[int, int],
    reader: DocumentReader,
) -> Matches:
    """Return the matches in a file's documents: of share (i, n) every n-th, from the i-th."""
    indexes, owners, groups = _loaded(folder, tuple(units.items()))
    first, step = share
    skipped = Skipped()
    result = Matches({unit: _none() for unit in units}, skipped=skipped)
    result.inputs = [] if first else [describe(file)]
    matched: dict[str, list[np.ndarray]] = {unit: [] for unit in units}
    for place, document in enumerate(reader.read([file], skipped)):
        if place % step != first:
            continue
        result.documents += 1
        result.text_bytes += len(document.text.encode("utf-8", "surrogatepass"))
        for unit, index in indexes.items():
            matches, here = result.units[unit], index.find(document.text)
            if not here.starts.size:
                continue
            matched[unit].append(here.starts)
            for owner, ngrams, start, text in _longest_runs(here.starts, here.texts, owners):
                order = (-ngrams, number, place)
                one = Example(order, start, text, document.source, document.names)
                matches.documents[owner] += 1
                kept = matches.examples.setdefault(owner, [])
                kept[:] = heapq.nsmallest(EXAMPLES, [*kept, one])
            matches.group_documents.update(np.unique(groups[owners[here.texts]]).tolist())
    for unit, starts in matched.items():
        result.units[unit].starts = np.unique(np.concatenate([_none().starts, *starts]))
    return result


def _longest_runs(
    starts: np.ndarray, texts: np.ndarray, owners: np.ndarray
) -> Iterator[tuple[int, int, int, int]]:
    """Yield (owner, n-grams, first start, text) of the longest run of each owner."""
    edges = np.flatnonzero((np.diff(starts) != 1) | (np.diff(texts) != 0)) + 1
    first, last = np.append(0, edges), np.append(edges, starts.size)
    lengths, of_run = last - first, owners[texts[first]]
    order = np.lexsort((first, -lengths, of_run))
    _, best = np.unique(of_run[order], return_index=True)
    for run in order[best].tolist():
        values = of_run[run], lengths[run], starts[first[run]], texts[first[run]]
        yield int(values[0]), int(values[1]), int(values[2]), int(values[3])


def _none() -> UnitMatches:
    return UnitMatches(np.empty(0, np.int64))


@functools.lru_cache(1)
def _loaded(
    folder: Path, units: tuple[tuple[str, int], ...]
) -> tuple[dict[str, NgramIndex], np.ndarray, np.ndarray]:
    indexes = {unit: NgramIndex.load(folder, unit, length) for unit, length in units}
    return indexes, np.load(folder / "owners.npy"), np.load(folder / "groups.npy")
