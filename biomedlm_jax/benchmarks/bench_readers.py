"""Benchmark of the readers of NLM's XML against lxml's `iterparse` over the same files.

The baselines build the same trees and drop them: `iterparse` with its defaults passes every element
to Python, with `tag=` the records only. The files are read once before, from the page cache.
"""

import gzip
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from lxml import etree  # ty: ignore[missing-module-member]

from biomedlm_jax.benchmarks import rounds as timed
from biomedlm_jax.corpus import jats, medline
from biomedlm_jax.corpus.articles import Article
from biomedlm_jax.errors import InputError
from biomedlm_jax.streams import open_binary, read_blocks

BARE, RECORDS = "iterparse", "iterparse, records"


def measure(path: str | Path, *, rounds: int = 5) -> dict[str, Any]:
    """Time the readers on an XML file, or on those of a directory; return MB per second of XML.

    Each file is MEDLINE's or JATS, by its content, plain or with `.gz`. `ratio` is a side's time
    over that of the readers: the speed of the readers relative to the side.
    """
    files = _files(Path(path))
    megabytes = sum(len(block) for file in files for block in read_blocks(file)) / 1e6
    readers = {file: _reader(file) for file in files}

    def ours() -> int:
        return sum(isinstance(item, Article) for file in files for item in readers[file][0](file))

    def iterate(**options: Any) -> None:
        for file in files:
            with _opened(file) as stream:
                for _, element in etree.iterparse(stream, **options):
                    element.clear()

    def records() -> None:
        tags = [tag for _, tags in readers.values() for tag in tags]
        iterate(tag=list(dict.fromkeys(tags)))

    sides = {timed.OURS: ours, BARE: iterate, RECORDS: records}
    timings = timed.alternate(sides, rounds=rounds)
    table = timed.summarise_timings(timings, "mb", megabytes)
    for name, side in table.items():
        side["mb_per_cpu_second"] = megabytes / statistics.median(timings[name].cpu_seconds)
    articles = timings[timed.OURS].first
    work = f"{megabytes:.1f} MB of XML, {articles:,} articles in {len(files):,} files"
    return {
        **timed.benchmark_header(work, ["lxml"]),
        "articles": articles,
        "xml_bytes": round(megabytes * 1e6),
        "tables": {"readers": table},
    }


def _files(path: Path) -> list[Path]:
    suffixes = (".xml", ".nxml", ".xml.gz", ".nxml.gz")
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in files if file.name.lower().endswith(suffixes)]
    if not files:
        raise InputError(f"no file to read in {path}; expected {', '.join(suffixes)}")
    return files


def _reader(file: Path) -> tuple[Callable, tuple[str, ...]]:
    head = next(read_blocks(file), b"")
    of_pubmed = any(f"<{root}".encode() in head for root in medline.ROOTS)
    module, read = (medline, medline.read_medline) if of_pubmed else (jats, jats.read_jats)
    return read, module.RECORDS


def _opened(file: Path) -> BinaryIO:
    stream = open_binary(file)
    return cast(BinaryIO, gzip.open(stream)) if file.suffix.lower() == ".gz" else stream
