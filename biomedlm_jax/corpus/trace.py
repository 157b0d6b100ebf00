"""Trace a text to the documents of a corpus that share its longest spans.

A span is a run of words of the text, at least `least` of them, that a document has as a run, too.
It is maximal: no document has it with the word before it, nor with the one after it. Words are
those of ngrams.py: case, punctuation and line breaks do not count. Spans of one text may overlap.
"""

import os
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from biomedlm_jax.corpus.corpus_manifest import is_corpus, read_corpus_manifest, shards_of
from biomedlm_jax.corpus.ngrams import word_spans, words
from biomedlm_jax.corpus.parts_folder import locked
from biomedlm_jax.corpus.process_pool import worker_processes
from biomedlm_jax.corpus.suffix_index import SuffixIndex, build_index, is_index, stale
from biomedlm_jax.errors import InputError
from biomedlm_jax.outputs import remove_tree

LEAST_WORDS = 8  # of a span
DOCUMENTS = 3  # that are shown of a span
SPANS = 10  # whose documents are shown
AROUND = 12  # words before and after a span in an excerpt
_FIX = "fix: biomedlm trace --build"


@dataclass(frozen=True)
class TracedDocument:
    """A document with a span: the first place of it there."""

    names: Mapping[str, str]
    title: str  # the beginning of its first line
    before: str
    match: str
    after: str


@dataclass(frozen=True)
class Span:
    """A maximal run of words that documents share with the text."""

    first: int  # word of the text
    words: int
    start: int  # character of the text in NFKC
    end: int
    occurrences: int
    documents: int
    examples: tuple[TracedDocument, ...] = ()  # the first documents, for the longest spans


@dataclass(frozen=True)
class Trace:
    """The spans of a text in its order, and where its words are."""

    text: str  # in NFKC
    word_spans: tuple[tuple[int, int], ...]
    spans: tuple[Span, ...]
    least: int

    @property
    def longest(self) -> list[Span]:
        """The spans, the longest first."""
        return sorted(self.spans, key=lambda span: (-span.words, span.first))

    @property
    def covered(self) -> int:
        """The number of the text's words that are in a span."""
        return len({w for span in self.spans for w in range(span.first, span.first + span.words)})


def index_folder(corpus: Path) -> Path:
    """Return the directory of a corpus's indexes, beside it."""
    path = Path(os.path.realpath(corpus))
    return path.with_name(f"{path.name}.trace")


def build_indexes(
    corpus: str | Path,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Write the index of each shard of a corpus, and return the numbers of documents and words.

    An index that is there, of this shard and undamaged is kept, so that the same call continues
    after an interruption. Those of other shards are removed. Raises InputError for a directory that
    is no corpus, a changed shard, and while another process builds.
    """
    corpus = Path(corpus)
    if workers < 1:
        raise InputError(f"got workers={workers}; expected at least 1")
    shards, folder = _shards(corpus), index_folder(corpus)
    totals = {"documents": 0, "words": 0, "shards": len(shards)}
    tasks = [(file, sha256, folder / _name(file)) for file, sha256 in shards]
    names = {out.name for *_, out in tasks}
    with locked(folder, "these indexes"), worker_processes(workers) as run_map:
        for left in folder.iterdir():
            name = left.name.lstrip(".").partition(".")[0]
            unfinished = left.name.startswith(".") and left.name.endswith(".new")  # of a kill
            if name not in names and (unfinished or is_index(left)):
                remove_tree(left)
        for number, facts in enumerate(run_map(build_index, tasks), 1):
            totals["documents"] += facts["documents"]
            totals["words"] += facts["words"]
            if progress:
                progress(number, len(tasks))
    return totals


class Tracer:
    """The indexes of a corpus, opened."""

    def __init__(self, corpus: str | Path):
        """Open the indexes.

        Raises InputError if one is missing, damaged, or not of its shard, which is not read.
        """
        corpus = Path(corpus)
        folder = index_folder(corpus)
        self._indexes: list[SuffixIndex] = []
        for file, sha256 in _shards(corpus):
            index = folder / _name(file)
            broken = "is damaged: index.json" if index.exists() else "is missing"
            reason = stale(index, sha256) if is_index(index) else broken
            if reason:
                raise InputError(f"the index {index} {reason}; {_FIX} --corpus={corpus}")
            self._indexes.append(SuffixIndex(index))

    def trace(
        self,
        text: str,
        *,
        least: int = LEAST_WORDS,
        documents: int = DOCUMENTS,
        spans: int = SPANS,
    ) -> Trace:
        """Return the maximal spans of at least `least` words, with their documents.

        `documents` of each of the longest `spans` are described. Raises InputError for numbers
        below 1 and a text without words.
        """
        for name, value in (("least", least), ("documents", documents), ("spans", spans)):
            if value < 1:
                raise InputError(f"got {name}={value}; expected at least 1")
        text = unicodedata.normalize("NFKC", text)
        there, places = words(text), word_spans(text)
        if not there:
            raise InputError("got a text without words; expected some to look for")
        line = " ".join(["", *there, ""]).encode("utf-8", "surrogatepass")
        starts = [at for at, byte in enumerate(line) if byte == 32]
        number = {at: word for word, at in enumerate(starts)}
        maximal, last = [], 0
        for first, at in enumerate(starts[:-1]):
            size = max(index.longest(line[at:]) for index in self._indexes)
            end = number[at + size - 1] if size else first
            if end > last and end - first >= least:
                maximal.append((first, end - first, line[at : at + size]))
            last = max(last, end)
        order = sorted(range(len(maximal)), key=lambda n: (-maximal[n][1], n))
        shown = {*order[:spans]}
        result = []
        for n, (first, count, pattern) in enumerate(maximal):
            occurrences, holding, examples = self._documents(
                pattern, count, documents if n in shown else 0
            )
            around = places[first][0], places[first + count - 1][1]
            result.append(Span(first, count, *around, occurrences, holding, examples))
        return Trace(text, tuple(places), tuple(result), least)

    def _documents(
        self, pattern: bytes, count: int, wanted: int
    ) -> tuple[int, int, tuple[TracedDocument, ...]]:
        """Return the occurrences and documents of a span, and the first documents."""
        occurrences, holding, examples = 0, 0, []
        for index in self._indexes:
            rows = index.rows(pattern)
            if not rows:
                continue
            numbers, places = index.places(rows)
            numbers, first = np.unique(numbers, return_index=True)
            occurrences += len(rows)
            holding += numbers.size
            for number, at in zip(numbers.tolist(), places[first].tolist(), strict=True):
                if len(examples) >= wanted:
                    break
                start = index.words_before(number, at)
                described = _describe(index.document(number), start, count)
                if words(described.match) != pattern.decode("utf-8", "surrogatepass").split():
                    raise index.damaged("text is not that of the documents")
                examples.append(described)
        return occurrences, holding, tuple(examples)


def _describe(document: Mapping[str, Any], start: int, count: int) -> TracedDocument:
    text = unicodedata.normalize("NFKC", document["text"])
    spans = word_spans(text)
    there = spans[start : start + count] or [(0, 0)]  # there are none if the index is damaged
    around = spans[max(0, start - AROUND) : start + count + AROUND] or there
    (left, right), (begin, end) = ((of[0][0], of[-1][1]) for of in (there, around))
    title = text.lstrip().partition("\n")[0][:200].rstrip()
    return TracedDocument(
        document["names"], title, text[begin:left], text[left:right], text[right:end]
    )


def _shards(corpus: Path) -> list[tuple[Path, str]]:
    """Return the shards of a corpus with their hashes, which are those of the manifest."""
    if not is_corpus(corpus):
        fix = "build one with biomedlm build-corpus"
        raise InputError(f"{corpus} is no corpus; {fix}")
    hashes = {one["name"]: one["sha256"] for one in read_corpus_manifest(corpus)["files"]}
    return [(file, hashes[file.name]) for file in shards_of(corpus)]


def _name(shard: Path) -> str:
    return shard.name.partition(".")[0]
