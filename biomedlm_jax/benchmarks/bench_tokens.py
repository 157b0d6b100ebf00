"""Benchmark of `build-tokens`, from files to rows on disk, against `tokenizers` alone.

The build runs in one process, in several, and with Apache Beam if there are flags for it. The
baselines tokenise texts in memory with all threads and discard the result: `encode_batch`, which
also computes the offset of each token, and `encode_batch_fast`, which does not and which the build
calls.

Each side has a new process in each round, as a command has. In one process, the tokenizer of a
second build would be spread over the memory that the first one left, and be slower.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from biomedlm_jax.benchmarks import rounds as timed
from biomedlm_jax.corpus.documents import DocumentReader, read_documents
from biomedlm_jax.corpus.input_files import input_files
from biomedlm_jax.corpus.tokenizer import load_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens_from_files
from biomedlm_jax.errors import InputError

BATCH = 1000  # documents in a call of encode_batch, which occupies all cores
BUILD = "build-tokens"


def measure(
    paths: Iterable[str | Path],
    tokenizer: str | Path,
    *,
    text_field: str = "text",
    length: int = 1024,
    workers: int = 2,
    beam: Sequence[str] | None = None,
    rounds: int = 5,
) -> dict[str, Any]:
    """Time each side; return MB (10^6 bytes of UTF-8 text) per second and per CPU second.

    `tokenizer` is a directory or a tokenizer.json. `workers` are the processes of the second build,
    each with files of its own (small ones are batched), `beam` the flags of a third; their CPU time
    is not known. Times exclude the start of the process and the reading of the tokenizer. `ratio`
    is a side's time over that of the first build: the speed of that relative to the side. The
    baselines hold all texts in memory.

    Raises InputError for less than one round.
    """
    if rounds < 1:
        raise InputError(f"got rounds={rounds}; expected at least 1")
    paths, sizes = input_files(paths), []
    for document in read_documents(paths, text_field=text_field):
        sizes.append(len(document.text.encode("utf-8")))
    megabytes = sum(sizes) / 1e6
    given = (paths, tokenizer, text_field)
    sides = {
        BUILD: (time_build, *given, length, 1, None),
        f"{BUILD}, {workers} processes": (time_build, *given, length, workers, None),
        **({} if beam is None else {f"{BUILD}, Beam": (time_build, *given, length, 1, beam)}),
        "encode_batch": (time_baseline, *given, "encode_batch"),
        "encode_batch_fast": (time_baseline, *given, "encode_batch_fast"),
    }
    timings = {name: timed.Timing() for name in sides}
    for number in range(rounds + 1):
        for name, (function, *arguments) in sides.items():
            seconds, cpu_seconds = run_alone(function, *arguments)
            timed.progress(f"round {number} of {rounds}, {name}: {seconds:.2f} s")
            if number:
                timings[name].seconds.append(seconds)
                timings[name].cpu_seconds.append(cpu_seconds)
            else:
                timings[name].first_seconds = seconds
    table = timed.summarise_timings(timings, "mb", megabytes, BUILD)
    for name, side in table.items():
        cpu_seconds = statistics.median(timings[name].cpu_seconds)
        known = "," not in name  # other processes
        side["mb_per_cpu_second"] = megabytes / cpu_seconds if known else None
    work = f"{megabytes:.1f} MB in {len(sizes):,} documents, {len(paths):,} files"
    packages = ("tokenizers", "tensorflow-datasets", "array_record", "numpy")
    return {
        **timed.benchmark_header(work, packages),
        "documents": len(sizes),
        "text_bytes": sum(sizes),
        "tables": {"tokens": table},
    }


def run_alone(function: Callable[..., tuple[float, float]], *arguments: Any) -> tuple[float, float]:
    """Call a function in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def time_build(
    paths: Sequence[Path],
    tokenizer: str | Path,
    text_field: str,
    length: int,
    workers: int,
    beam: Sequence[str] | None,
) -> tuple[float, float]:
    """Build token rows in a temporary directory; return wall and CPU seconds of this process."""
    loaded, reader = load_tokenizer(tokenizer), DocumentReader(text_field=text_field)
    with tempfile.TemporaryDirectory() as directory:
        start, start_cpu = time.perf_counter(), time.process_time()
        options: dict[str, Any] = {"length": length, "workers": workers, "beam": beam}
        out = Path(directory, "tokens")
        build_tokens_from_files(paths, loaded, out, reader=reader, **options)
        return time.perf_counter() - start, time.process_time() - start_cpu


def time_baseline(
    paths: Sequence[Path], tokenizer: str | Path, text_field: str, method: str
) -> tuple[float, float]:
    """Tokenise all texts with a method of the tokenizer; return wall and CPU seconds."""
    encode = getattr(load_tokenizer(tokenizer), method)
    texts = [document.text for document in read_documents(paths, text_field=text_field)]
    start, start_cpu = time.perf_counter(), time.process_time()
    for first in range(0, len(texts), BATCH):
        encode(texts[first : first + BATCH], add_special_tokens=False)
    return time.perf_counter() - start, time.process_time() - start_cpu
