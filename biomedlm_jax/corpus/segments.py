"""The documents and numbers of all parts of a corpus, and the shards that are made of them."""

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


class Segments:
    """The segments of all parts, as `deduplicate` and the writers of shards need them.

    A record has a number: its place among those of all segments.
    """

    def __init__(self, parts: Sequence[tuple[int, Path, dict[str, Any]]], bands: int):
        self.bands = bands
        sizes = [
            (number, folder, i, n)
            for number, folder, part in parts
            for i, n in enumerate(part["segments"])
        ]
        self.sizes: Sequence[int] = [size for *_, size in sizes]
        self.folders = [(folder, index) for _, folder, index, _ in sizes]
        self.sources = np.repeat([number for number, *_ in sizes], self.sizes).astype(np.int32)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])
        self._open: OrderedDict[int, SegmentReader] = OrderedDict()

    def column(self, segment: int, name: str) -> np.ndarray:
        """Return a number of each record of a segment, by its name."""
        return self._reader(segment).column(name)

    def all(self, name: str) -> np.ndarray:
        """Return a number of each record, by its name."""
        parts = [self.column(segment, name) for segment in range(len(self.sizes))]
        return np.concatenate(parts) if parts else np.empty(0, np.uint64)

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
            if len(self._open) > 64:  # each may keep a frame
                self._open.popitem(last=False)
        self._open.move_to_end(segment)
        return self._open[segment]


def write_shard(
    path: Path, scratch: Path, content: Sequence[tuple[int, Path, int, np.ndarray]]
) -> dict[str, Any]:
    """Write (pass, part, segment, rows) in this order; return name, counts and hash of the file.

    The id of a document ends in #2 in the second pass over its source, and so on. The file is
    written in the directory `scratch` of the same file system, and then moved.
    """
    documents = text_bytes = 0
    new = unique_name(scratch / path.name)
    with LineWriter(new) as lines:
        for turn, folder, segment, rows in content:
            reader = SegmentReader(folder, segment)
            for line in reader.lines(rows.tolist()):
                if turn:
                    row = json.loads(line)
                    row["id"] += f"#{turn + 1}"
                    line = json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
                lines.add_line(line)
            text_bytes += int(reader.column("text_bytes")[rows].sum(dtype=np.int64))
            documents += len(rows)
    described = describe(new)
    os.replace(new, path)
    described = {"name": path.name} | {name: described[name] for name in ("bytes", "sha256")}
    return described | {"documents": documents, "text_bytes": text_bytes}
