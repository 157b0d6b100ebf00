"""Benchmark of `build-tokens`, from files to rows on disk, against `tokenizers` alone.

The baselines tokenise texts in memory and discard the result: `encode_batch`, which also computes
the offset of each token, and `encode_batch_fast`, which does not and which the build calls. Rounds
alternate between the sides, and ratios are computed within a round, so that load on the machine
affects both.
"""

import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from biomedlm_jax.corpus.documents import input_files, read_documents
from biomedlm_jax.corpus.tokenizer import load_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens

BATCH = 1000  # documents in a call of encode_batch, which occupies all cores
BUILD = "build-tokens"


def run_benchmark(
    paths: Iterable[str | Path],
    tokenizer: str | Path,
    *,
    text_field: str = "text",
    subsets: Iterable[str] = (),
    length: int = 1024,
    repeats: int = 5,
) -> dict:
    """Measure as `measure_tokens` does, print a table, and return the figures.

    `tokenizer` is a directory or a tokenizer.json.
    """
    loaded = load_tokenizer(tokenizer)
    figures = measure_tokens(
        paths, loaded, text_field=text_field, subsets=subsets, length=length, repeats=repeats
    )
    table = Table("side", "MB/s", "MB per CPU second", f"{BUILD} relative")
    for name, side in figures["sides"].items():
        speeds = f"{side['mb_per_second']:.2f}", f"{side['mb_per_cpu_second']:.2f}"
        table.add_row(name, *speeds, f"{side['ratio']:.0%}" if name != BUILD else "")
    console = Console(markup=False, emoji=False)
    console.print(table)
    console.print(
        f"medians of {repeats} alternating rounds over {figures['text_bytes'] / 1e6:.1f} MB "
        f"in {figures['documents']:,} documents; {figures['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    )
    return figures


def measure_tokens(
    paths: Iterable[str | Path],
    tokenizer: Tokenizer,
    *,
    text_field: str = "text",
    subsets: Iterable[str] = (),
    length: int = 1024,
    repeats: int = 5,
) -> dict:
    """Return the median MB (10^6 bytes of UTF-8 text) per second of each side over the rounds.

    CPU seconds are those of this process, over all threads. A side's `ratio` is the speed of the
    build divided by its own, the median over the rounds (above 1: the build is faster). All texts
    are held in memory.

    Raises ValueError for fewer than one repeat, and what reading and building raise.
    """
    if repeats < 1:
        raise ValueError(f"got repeats={repeats}; expected at least 1")
    paths, subsets = input_files(paths), list(subsets)
    reading = {"text_field": text_field, "subsets": subsets}
    texts = [document.text for document in read_documents(paths, **reading)]
    text_bytes = sum(len(text.encode("utf-8")) for text in texts)

    def baseline(encode: Callable) -> Callable[[], None]:
        def run() -> None:
            for first in range(0, len(texts), BATCH):
                encode(texts[first : first + BATCH], add_special_tokens=False)

        return run

    def build() -> None:
        with tempfile.TemporaryDirectory() as directory:
            documents = read_documents(paths, **reading)
            out = Path(directory, "tokens")
            build_tokens(documents, tokenizer, out, length=length, inputs=paths)

    sides = {
        "encode_batch": baseline(tokenizer.encode_batch),
        "encode_batch_fast": baseline(tokenizer.encode_batch_fast),
        BUILD: build,
    }
    build()  # imports TFDS and fills the cache of the tokenizer
    wall, cpu = ({name: [] for name in sides} for _ in range(2))
    for _ in range(repeats):
        for name, run in sides.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - start_cpu)
    return {
        "documents": len(texts),
        "text_bytes": text_bytes,
        "length": length,
        "repeats": repeats,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("tokenizers", "tensorflow-datasets", "array_record", "numpy")
        },
        "sides": {
            name: {
                "mb_per_second": text_bytes / 1e6 / statistics.median(wall[name]),
                "mb_per_cpu_second": text_bytes / 1e6 / statistics.median(cpu[name]),
                "ratio": statistics.median(
                    own / built for own, built in zip(wall[name], wall[BUILD], strict=True)
                ),
                "seconds": wall[name],
                "cpu_seconds": cpu[name],
            }
            for name in sides
        },
    }
