"""Benchmark of `build-tokens`, from files to rows on disk, against `tokenizers` alone.

The build runs in this process, in several, which it starts, and with Apache Beam if there are flags
for it. The baselines tokenise texts in memory with all threads and discard the result:
`encode_batch`, which also computes the offset of each token, and `encode_batch_fast`, which does
not and which the build calls.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from biomedlm_jax.benchmarks import rounds as timed
from biomedlm_jax.corpus.documents import DocumentReader, read_documents
from biomedlm_jax.corpus.input_files import input_files
from biomedlm_jax.corpus.tokenizer import load_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens_from_files

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
    each with files of its own (small ones are batched), `beam` the flags of a third; their CPU
    time is not known. `ratio` is a side's time over that of the first build: the speed of that
    relative to the side. All texts are held in memory.
    """
    loaded, paths = load_tokenizer(tokenizer), input_files(paths)
    texts = [document.text for document in read_documents(paths, text_field=text_field)]
    megabytes = sum(len(text.encode("utf-8")) for text in texts) / 1e6

    def baseline(encode: Callable) -> None:
        for first in range(0, len(texts), BATCH):
            encode(texts[first : first + BATCH], add_special_tokens=False)

    def build(workers: int, beam: Sequence[str] | None = None) -> None:
        with tempfile.TemporaryDirectory() as directory:
            options = {"reader": DocumentReader(text_field=text_field), "length": length}
            out = Path(directory, "tokens")
            build_tokens_from_files(paths, loaded, out, workers=workers, beam=beam, **options)

    sides = {
        BUILD: lambda: build(1),  # first: it imports TFDS and fills the cache of the tokenizer
        f"{BUILD}, {workers} processes": lambda: build(workers),
        **({} if beam is None else {f"{BUILD}, Beam": lambda: build(1, beam)}),
        "encode_batch": lambda: baseline(loaded.encode_batch),
        "encode_batch_fast": lambda: baseline(loaded.encode_batch_fast),
    }
    timings = timed.alternate(sides, rounds=rounds)
    table = timed.summarise_timings(timings, "mb", megabytes, BUILD)
    for name, side in table.items():
        cpu_seconds = statistics.median(timings[name].cpu_seconds)
        known = "," not in name  # other processes
        side["mb_per_cpu_second"] = megabytes / cpu_seconds if known else None
    work = f"{megabytes:.1f} MB in {len(texts):,} documents"
    packages = ("tokenizers", "tensorflow-datasets", "array_record", "numpy")
    return {
        **timed.benchmark_header(work, packages),
        "documents": len(texts),
        "text_bytes": round(megabytes * 1e6),
        "tables": {"tokens": table},
    }
