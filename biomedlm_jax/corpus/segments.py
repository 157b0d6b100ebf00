"""The documents and numbers of all parts of a corpus, and the shards that are made of them."""

import functools
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from biomedlm_jax.corpus.input_files import describe
from biomedlm_jax.corpus.line_writer import LineWriter
from biomedlm_jax.corpus.parts import SegmentReader
from biomedlm_jax.corpus.parts_folder import unique_name
from biomedlm_jax.corpus.signatures import shingles
from biomedlm_jax.files import read_json, write_json

SEGMENTS, TIMES = "segments.json", "times"
_OPEN = 64  # segments of which a reader keeps documents


class Segments:
    """The segments of all parts, as `deduplicate` and the writers of shards need them.

    A record has a number: its place among those of all segments. `sizes`, `sources` and `folders`
    have an entry for each segment: its records, the number of its source, and its part with its
    number there.
    """

    def __init__(self, parts: Sequence[tuple[int, Path, dict[str, Any]]], bands: int):
        self.bands = bands
        self._parts = [(number, folder, part["segments"]) for number, folder, part in parts]
        self.sizes = [size for *_, sizes in self._parts for size in sizes]
        self.sources = [number for number, _, sizes in self._parts for _ in sizes]
        self.folders = [(folder, i) for _, folder, sizes in self._parts for i in range(len(sizes))]
        self.starts = np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])
        self._open: OrderedDict[int, SegmentReader] = OrderedDict()

    def __len__(self) -> int:
        """Return how many records there are."""
        return int(self.starts[-1])

    def write(self, work: Path) -> None:
        """Write what `open_segments` reads."""
        rows = [[number, str(folder), {"segments": n}] for number, folder, n in self._parts]
        write_json(work / SEGMENTS, {"bands": self.bands, "parts": rows})

    def of(self, segment: int) -> slice:
        """Return the numbers of the records of a segment."""
        return slice(*self.starts[segment : segment + 2].tolist())

    def column(self, segment: int, name: str) -> np.ndarray:
        """Return a number of each record of a segment, by its name."""
        return self._reader(segment).columns([name])[name]

    def columns(self, first: int, end: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return some numbers of each record of the segments from `first`, and "record"."""
        parts = [self._reader(segment).columns(names) for segment in range(first, end)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in names}
        records = np.arange(self.starts[first], self.starts[end], dtype=np.uint32)
        return {"record": records, **joined}

    def lines(self, segment: int, rows: np.ndarray) -> Iterator[bytes]:
        """Yield rows of a segment as JSON lines; a record without text has an empty one."""
        return self._reader(segment).lines(rows.tolist())

    def document(self, record: int) -> dict[str, Any]:
        """Return a document, empty for a record without text."""
        segment = int(np.searchsorted(self.starts, record, side="right")) - 1
        rows = np.array([record - self.starts[segment]])
        return json.loads(next(self.lines(segment, rows)) or b"{}")

    def shingles(self, record: int) -> np.ndarray:
        """Return the hashes of the shingles of a document."""
        return shingles(self.document(record)["text"])

    def _reader(self, segment: int) -> SegmentReader:
        if segment not in self._open:
            self._open[segment] = SegmentReader(*self.folders[segment])
            if len(self._open) > _OPEN:  # each may keep a frame
                self._open.popitem(last=False)
        self._open.move_to_end(segment)
        return self._open[segment]


@functools.lru_cache(1)
def open_segments(work: Path) -> Segments:
    """Return the segments that were written to a directory, which no other build may use."""
    content = read_json(work / SEGMENTS)
    parts = [(number, Path(folder), part) for number, folder, part in content["parts"]]
    return Segments(parts, content["bands"])


def read_times(file: Path, records: slice) -> np.ndarray:
    """Return how often records are in the corpus, from a file of int32."""
    return np.fromfile(file, np.int32, records.stop - records.start, offset=4 * records.start)


def write_shard(
    path: Path, folder: Path, content: Sequence[tuple[int, Path, int, int, int, int]]
) -> dict[str, Any]:
    """Write a file of documents; return its name, counts and hash.

    `content` has pass, part, segment, number of its first record, and the first and the end of the
    rows among those that are in the pass, by the file TIMES in `folder`. The id of a document ends
    in #2 in the second pass over its source, and so on. The file is written in `folder`, and then
    moved.
    """
    documents = text_bytes = 0
    new = unique_name(folder / path.name)
    with LineWriter(new) as lines:
        for turn, part, segment, start, first, end in content:
            reader = SegmentReader(part, segment)
            sizes = reader.columns(["text_bytes"])["text_bytes"]
            times = read_times(folder / TIMES, slice(start, start + len(sizes)))
            rows = np.flatnonzero(times > turn)[first:end]
            for line in reader.lines(rows.tolist()):
                if turn:
                    row = json.loads(line)
                    row["id"] += f"#{turn + 1}"
                    line = json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
                lines.add_line(line)
            text_bytes += int(sizes[rows].sum(dtype=np.int64))
            documents += len(rows)
    described = describe(new)
    os.replace(new, path)
    described = {"name": path.name} | {name: described[name] for name in ("bytes", "sha256")}
    return described | {"documents": documents, "text_bytes": text_bytes}
