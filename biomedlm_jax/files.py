"""Read and write files: JSON, JSON lines, and directories that are written atomically.

The package has no other implementation of these. A directory may be one of a bucket, gs://...
"""

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from biomedlm_jax.buckets import BucketPath, as_path, is_bucket
from biomedlm_jax.errors import InputError
from biomedlm_jax.streams import open_binary, read_lines

REWRITE_SECONDS = 5.0  # at least, between two writes of an object that grows


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises InputError naming the file and the place in it.
    """
    if is_bucket(path):
        try:
            return parse_object(as_path(path).read_bytes(), str(path))
        except FileNotFoundError:
            raise InputError(f"no such file: {path}") from None
    with open_binary(Path(path)) as file:
        return parse_object(file.read(), str(path))


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object in UTF-8, with or without a byte order mark.

    Raises InputError, one line that begins with `where`, for invalid UTF-8 or JSON, for a value
    that is not an object, and for a duplicate key (Python would keep the last value silently).
    """
    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        near = error.doc[max(0, error.pos - 20) : error.pos + 20]
        place = f" in line {error.lineno}" if error.lineno > 1 else ""
        message = f"{where}: expected a JSON object, got {near!r}{place} ({error.msg})"
        raise InputError(message) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: {error}") from None
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: expected a JSON object, got JSON of type {type(value).__name__}"
        )
    return value


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the entries of nested objects by dotted name, "model.width"; empty ones are kept."""
    flat: dict[str, Any] = {}
    for name, one in value.items():
        dotted = f"{prefix}.{name}" if prefix else str(name)
        flat |= flatten(one, dotted) if isinstance(one, Mapping) and one else {dotted: one}
    return flat


def content_hash(value: Any) -> str:
    """Return the SHA-256 (hexadecimal) of a JSON value, such as token ids."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()


def read_jsonl(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", object) for every line that is not blank, in constant memory.

    Raises what `read_lines` and `parse_object` raise.
    """
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}:{number}"
            yield where, parse_object(line.strip(), where)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON in UTF-8, as `write_text` does.

    Raises InputError for NaN and infinity, which are not JSON; the file is unchanged then.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # Half of a surrogate pair (in a file name, for example) is not UTF-8, but JSON can escape it.
    text = re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)
    write_text(path, text + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Any], **options: Any) -> None:
    """Write one JSON value per line, as `write_text` does; `options` are those of `json.dumps`.

    Raises InputError for NaN and infinity, which are not JSON; the file is unchanged then.
    """
    lines = [json.dumps(row, allow_nan=False, **options) + "\n" for row in rows]
    write_text(path, "".join(lines))


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8 in one step: a crash leaves the old content or the new one.

    Missing parent directories are created. A symbolic link stays; its target is replaced.
    """
    if is_bucket(path):
        as_path(path).write_text(text)
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    special = path.exists() and not path.is_file()  # such as /dev/stdout, which is not replaced
    new = path if special else path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.write_text(text, encoding="utf-8", newline="\n")
        if new != path:
            new.replace(path)
    except BaseException as error:
        if new != path:
            new.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:  # of a write
            error.filename = str(path)
        raise


class AppendedText:
    """Lines at the end of a file that only grows. What cannot be written now is written later.

    An object of a bucket is written again as a whole, so lines wait for REWRITE_SECONDS or more: a
    hundredth of the time goes into writing at most.
    """

    def __init__(self, path: str | Path):
        self.path, self._unwritten = as_path(path), b""
        self._file: int | None = None
        self._due = 0.0
        self._object: bytes | None = None
        if isinstance(self.path, BucketPath):
            self._object = self.path.read_bytes() if self.path.exists() else b""

    def append(self, line: str) -> None:
        """Write a line at once; raises OSError if it must wait for the next call or `close`."""
        self._unwritten += line.encode() + b"\n"
        if self._object is not None:
            if time.monotonic() >= self._due:
                self.flush()
            return
        if self._file is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            self._file = os.open(self.path, flags, 0o666)
            if self.path.is_file():  # drop a last line that a crash cut off
                content = self.path.read_bytes()
                os.ftruncate(self._file, content.rfind(b"\n") + 1)
        while self._unwritten:
            self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]

    def flush(self) -> None:
        """Write a bucket's lines now."""
        if self._object is not None and self._unwritten:
            start = time.monotonic()
            try:
                self.path.write_bytes(self._object + self._unwritten)
                self._object, self._unwritten = self._object + self._unwritten, b""
            finally:
                now = time.monotonic()
                self._due = now + max(REWRITE_SECONDS, min(60.0, 100 * (now - start)))

    def close(self) -> None:
        """Write what is left and close; raises OSError if that is not possible."""
        self.flush()
        try:
            if self._unwritten and self._file is not None:
                os.write(self._file, self._unwritten)
        finally:
            if self._file is not None:
                os.close(self._file)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise InputError(f"got the key {key!r} twice in one object; keep one of them")
    return value
