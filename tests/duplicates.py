"""Decisions of the deduplication about records that tests make."""

import random
import tempfile
from pathlib import Path

from biomedlm_jax.corpus import containment, copies, deduplication, parts, sorted_runs
from biomedlm_jax.corpus.articles import Article
from biomedlm_jax.corpus.deduplication import REASONS, deduplicate
from biomedlm_jax.corpus.process_pool import worker_processes
from biomedlm_jax.corpus.segments import Segments
from biomedlm_jax.corpus.signatures import Banding

BANDING = Banding.of(0.8)
RNG = random.Random(0)
WORDS = [f"word{i}" for i in range(5000)]
KEPT, NONE = ("", -1), ("no_text", -1)


def write_segments(folder, records, refused=(), *, segment=7) -> Segments:
    """Write records as a part in segments of so many."""
    sizes = []
    for first in range(0, len(records), segment):
        part = parts.Segment()
        for number, record in enumerate(records[first : first + segment], first):
            parts.append_record(part, number, record, BANDING, refused=number in refused)
        parts.save_segment(folder, len(sizes), part)
        sizes.append(len(part.columns))
    return Segments([(0, folder, {"segments": sizes})], BANDING.bands)


def decide(records, refused=(), *, segment=7, workers=1, **options) -> list[tuple[str, int]]:
    """Return (reason, other) of each record."""
    with tempfile.TemporaryDirectory() as name, worker_processes(workers) as run_map:
        folder = Path(name)
        segments = write_segments(folder, records, refused, segment=segment)
        decisions = deduplicate(segments, run_map, folder, **options)
        assert not list(folder.glob("dedup*"))
    return [
        (REASONS[reason], int(other))
        for reason, other in zip(decisions.reason, decisions.other, strict=True)
    ]


def text(count: int = 60) -> str:
    return " ".join(RNG.choices(WORDS, k=count))


def citation(**values) -> Article:
    return Article(place="", source="medline", **{"abstract": text(), **values})


def full(**values) -> Article:
    return Article(place="", source="pmc", **{"body": text(200), **values})


def edited(words: list[str], changes: int) -> list[str]:
    """Change words that are far from each other: each change takes five shingles."""
    places = RNG.sample(range(3, len(words) - 3, 7), changes)
    return [RNG.choice(WORDS) + "x" if i in places else word for i, word in enumerate(words)]


def small_tasks(monkeypatch, size):
    """Let there be many tasks, which hold about so many keys, rows or links."""
    for module in (sorted_runs, containment, deduplication):
        monkeypatch.setattr(module, "JOINED", size)
    monkeypatch.setattr(copies, "CACHED", size)
    monkeypatch.setattr(containment, "COMPARED", size)
    monkeypatch.setattr(containment, "_SAMPLED", 1 + size // 10)
    monkeypatch.setattr(deduplication, "RUN_BYTES", 1000 * size)
    monkeypatch.setattr(deduplication, "LINKS", size)
    monkeypatch.setattr(deduplication, "COMPARING", (size, 64))
