"""Measure the time and the memory of the deduplication of millions of records.

    python scripts/deduplication_memory.py --millions=20 --workers=2 --work=DIRECTORY

Makes parts as build-corpus makes them, with random keys and signatures. Of the records, a tenth
revises an earlier one, a twentieth each is the full text of one, has a key of MinHash in common
with another one, and can be in a longer text; a hundredth copies a text. All texts are the same
few words, so that each pair that is compared is a near duplicate. Then decides which are documents,
and prints the seconds and the peaks of resident memory of the parent and of its largest worker.
Needs about 800 bytes of disk a record.
"""

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import zstandard

from biomedlm_jax.corpus.deduplication import REASONS, deduplicate
from biomedlm_jax.corpus.parts import COLUMNS, HAS_BODY, HAS_TEXT, SEGMENT
from biomedlm_jax.corpus.process_pool import worker_processes
from biomedlm_jax.corpus.segments import Segments
from biomedlm_jax.corpus.signatures import SEEDS, Banding

FRAME = 512  # rows
SAMPLES = 16  # of a record


def write_part(folder: Path, number: int, records: int) -> int:
    """Write a part of one segment, whose records follow those of `number` such parts."""
    folder.mkdir()
    random = np.random.default_rng(number)
    line = json.dumps({"id": "x", "text": "all texts have these words"}).encode() + b"\n"
    frame = zstandard.ZstdCompressor(3).compress(line * FRAME)
    frames = records // FRAME
    (folder / "00000.docs").write_bytes(frame * frames)
    row, first = np.arange(records), number * records
    record = (first + row).astype(np.uint64)

    def some(one_in: int, offset: int) -> np.ndarray:
        return (row % one_in == offset) & (first + row > records)

    def keys(values: np.ndarray, salt: int) -> np.ndarray:
        """Return hashes of numbers."""
        return (values * np.uint64(2) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15 + 2 * salt)

    earlier = (record * random.random(records)).astype(np.uint64)
    of = np.where(some(10, 0) | some(20, 1), earlier, record)  # the article of a record
    text = np.where(some(100, 2), earlier, record)
    columns: dict[str, np.ndarray] = {
        name: np.zeros(records, dtype) for name, dtype in COLUMNS.items()
    }
    columns["record"][:] = row
    columns["kind"][:] = HAS_TEXT | some(20, 1) * HAS_BODY
    columns["version"][:] = 1
    columns["pmid"][:] = of + np.uint64(1)
    columns["doi"][:] = keys(of, 1)
    columns["pmcid"][:] = np.where(some(20, 1), of + np.uint64(1), 0)
    columns["exact"][:], columns["exact_rest"][:] = keys(text, 2), keys(text, 3)
    columns["text_bytes"][:], columns["shingles"][:] = 1200, np.where(some(20, 3), 90, 180)
    for band in range(Banding.of(0.8).bands):
        value = np.where(some(20, 5) & (band == 0), earlier, record)
        columns[f"band{band}"] = keys(value, 10 + band)
    of_seed = np.where(some(20, 3), earlier, record)
    for seed in range(SEEDS):
        columns[f"seed{seed}"] = keys(of_seed * np.uint64(SAMPLES) + np.uint64(seed), 4)
    sample = np.repeat(record * np.uint64(SAMPLES), SAMPLES) + np.tile(
        np.arange(SAMPLES, dtype=np.uint64), records
    )
    columns["sample"] = keys(sample, 4)
    columns["sample_row"] = np.repeat(row, SAMPLES).astype(np.uint32)
    columns["frame_offset"] = np.arange(frames + 1, dtype=np.uint64) * np.uint64(len(frame))
    columns["frame_row"] = np.arange(frames + 1) * FRAME
    with (folder / "00000.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **columns)
    return records


def main() -> None:
    """Make the parts, decide, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--millions", type=float, default=20, help="records")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--work", help="directory for the files; a temporary one by default")
    parser.add_argument("--segment", type=int, default=SEGMENT, help="records of a part")
    options = parser.parse_args()
    size = options.segment // FRAME * FRAME
    count = -(-int(options.millions * 1e6) // size)
    folder = Path(tempfile.mkdtemp(dir=options.work))
    try:
        with worker_processes(options.workers) as run_map:
            start = time.perf_counter()
            names = [folder / f"part-{number:06d}" for number in range(count)]
            tasks = ((name, number, size) for number, name in enumerate(names))
            sizes = list(run_map(write_part, tasks))
            print(f"made {sum(sizes):,} records in {time.perf_counter() - start:.0f} s", flush=True)
            parts = [(0, name, {"segments": [n]}) for name, n in zip(names, sizes, strict=True)]
            segments = Segments(parts, Banding.of(0.8).bands)
            start = time.perf_counter()

            def progress(step: str) -> None:
                print(f"{time.perf_counter() - start:6.0f} s  {step}", flush=True)

            decisions = deduplicate(segments, run_map, folder, progress=progress)
            seconds = time.perf_counter() - start
        counts = Counter(dict(enumerate(np.bincount(decisions.reason).tolist())))
        for number, reason in enumerate(REASONS):
            print(f"{counts[number]:>12,} {reason or 'documents'}")
        own, workers = _peak(resource.RUSAGE_SELF), _peak(resource.RUSAGE_CHILDREN)
        print(
            f"{len(segments):,} records, {options.workers} workers: {seconds:.0f} s, peak "
            f"{own:.0f} MB of the parent and {workers:.0f} MB of a worker, "
            f"load {os.getloadavg()[0]:.1f}"
        )
    finally:
        shutil.rmtree(folder)


def _peak(who: int) -> float:
    return resource.getrusage(who).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
