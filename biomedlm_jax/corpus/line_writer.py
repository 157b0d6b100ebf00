"""Write JSON lines to a .zst file: equal lines give equal bytes."""

import json
from pathlib import Path
from typing import Any

import zstandard

LEVEL = 3  # of zstandard
_BLOCK = 1 << 20  # of lines that are compressed together


class LineWriter:
    """A new .zst file of lines, complete when its `with` block ends."""

    def __init__(self, path: Path):
        self.lines = 0
        self._path, self._waiting, self._size = path, [], 0

    def __enter__(self) -> "LineWriter":
        self._file = self._path.open("xb")
        self._writer = zstandard.ZstdCompressor(LEVEL).stream_writer(self._file)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._writer.close()
        finally:
            self._file.close()

    def add(self, value: Any) -> None:
        """Append a JSON value; half surrogates, which paths can have, are escaped."""
        self.add_line(json.dumps(value).encode("ascii") + b"\n")

    def add_line(self, line: bytes) -> None:
        """Append a line that ends with its newline."""
        self.lines += 1
        self._waiting.append(line)
        self._size += len(line)
        if self._size >= _BLOCK:
            self._flush()

    def _flush(self) -> None:
        self._writer.write(b"".join(self._waiting))
        self._waiting, self._size = [], 0
