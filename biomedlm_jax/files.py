"""Read and write files: JSON, JSON lines, and directories that appear whole or not at all.

Everything here is the only implementation in the package.
"""

import contextlib
import glob
import gzip
import json
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import zstandard

COMPRESSIONS = (".gz", ".zst")
_STREAM_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)


class BrokenStreamError(ValueError):
    """A compressed file is damaged or truncated; the lines before the damage were read."""


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises FileNotFoundError, or ValueError naming the file and the place in it.
    """
    with _open(Path(path)) as file:
        return parse_object(file.read(), str(path))


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object in UTF-8, with or without a byte order mark.

    Raises ValueError, one line that begins with `where`, for invalid UTF-8 or JSON, for a value
    that is not an object, and for a duplicate key (Python would keep the last value silently).
    """
    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        near = error.doc[max(0, error.pos - 20) : error.pos + 20]
        place = f" in line {error.lineno}" if error.lineno > 1 else ""
        message = f"{where}: expected a JSON object, got {near!r}{place} ({error.msg})"
        raise ValueError(message) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(
            f"{where}: expected a JSON object, got JSON of type {type(value).__name__}"
        )
    return value


def read_jsonl(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", object) for every line that is not blank, in constant memory.

    Raises what `read_lines` and `parse_object` raise.
    """
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}:{number}"
            yield where, parse_object(line.strip(), where)


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line with its newline) of a plain, .gz or .zst file.

    Lines end at "\\n" only: `str.splitlines` would also cut at U+2028 and others, which JSON
    allows inside a string. Memory is constant.

    Raises FileNotFoundError, or BrokenStreamError if the compressed data are damaged or truncated.
    """
    path, number = Path(path), 0
    with _open(path) as file:
        try:
            for number, line in enumerate(_lines(file, path.suffix.lower()), 1):
                yield number, line
        except _STREAM_ERRORS as error:
            where = f"{path}:{number + 1}"
            message = f"{where}: the compressed stream is damaged or truncated ({error})"
            raise BrokenStreamError(message) from error


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON in UTF-8, as `write_text` does.

    Raises ValueError for NaN and infinity, which are not JSON; the file is unchanged then.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # Half of a surrogate pair (in a file name, for example) is not UTF-8, but JSON can escape it.
    text = re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)
    write_text(path, text + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8 in one step: a crash leaves the old content or the new one.

    Missing parent directories are created. A symbolic link stays; its target is replaced.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    special = path.exists() and not path.is_file()  # such as /dev/stdout, which is not replaced
    new = path if special else path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.write_text(text, encoding="utf-8", newline="\n")
        if new != path:
            new.replace(path)
    except BaseException:
        if new != path:
            new.unlink(missing_ok=True)
        raise


def check_output(path: str | Path, *, replaceable: Callable[[Path], bool], overwrite: bool) -> None:
    """Raise if `atomic_directory` would refuse to write `path`; call it before any work.

    Args:
      replaceable: whether the non-empty directory it is given is of the kind to be written, so
        that `overwrite` may replace it.

    Raises:
      NotADirectoryError: `path` is a file.
      FileExistsError: `path` holds files that are not replaceable, or `overwrite` is false.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; name a directory")
    if not path.exists() or not any(path.iterdir()):
        return
    if not replaceable(path):
        raise FileExistsError(
            f"{path} holds something else, which is never overwritten; name another directory"
        )
    if not overwrite:
        raise FileExistsError(f"{path} exists; name another directory, or pass --overwrite")


@contextlib.contextmanager
def atomic_directory(
    path: str | Path, *, replaceable: Callable[[Path], bool], overwrite: bool
) -> Iterator[Path]:
    """Yield a new, empty directory that takes the place of `path` when the block succeeds.

    After an error in the block, or Ctrl-C, `path` is as it was before. A symbolic link stays; the
    directory it points to is replaced.

    Raises what `check_output` raises, before the block and again after it: another process may
    have written `path` in the meantime.
    """
    check_output(path, replaceable=replaceable, overwrite=overwrite)
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{state}") for state in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        check_output(path, replaceable=replaceable, overwrite=overwrite)
        try:
            if path.exists():
                path.rename(old)
            new.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def recover_directory(path: str | Path) -> None:
    """Restore `path` if a process was killed between the two renames of `atomic_directory`."""
    path = Path(os.path.realpath(path))
    if not path.exists():
        for old in path.parent.glob(f".{glob.escape(path.name)}.*.old"):
            old.rename(path)
            return


def _open(path: Path) -> BufferedReader:
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; name a file")
    return path.open("rb")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"got the key {key!r} twice in one object; keep one of them")
    return value


def _lines(file: BufferedReader, suffix: str) -> Iterator[bytes]:
    if suffix not in COMPRESSIONS:
        yield from file
    elif not file.peek(1):  # not even a header; gzip would read it as an empty text
        raise EOFError("the file has no bytes")
    elif suffix == ".gz":
        with gzip.open(file) as text:
            yield from text
    else:
        yield from _zstd_lines(file)


def _zstd_lines(file: BufferedReader) -> Iterator[bytes]:
    # zstandard's own stream_reader does not report a truncated file, so frames are tracked here.
    # The window is the largest that zstd can use (`zstd --long=31`).
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame, unfinished = None, b""
    while data := file.read(zstandard.DECOMPRESSION_RECOMMENDED_INPUT_SIZE):
        while data:
            frame = frame or decompressor.decompressobj()
            *lines, unfinished = (unfinished + frame.decompress(data)).split(b"\n")
            yield from (line + b"\n" for line in lines)
            data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame:
        raise EOFError("the file ends inside a frame")
    if unfinished:
        yield unfinished
