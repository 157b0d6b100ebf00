"""Read plain and compressed files as lines or blocks, in bounded memory.

The package has no other implementation of these. The decompressors of fsspec would let a truncated
`.zst`, and a damaged stream after a good one, pass for the end of the file.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import threading
import zlib
from collections.abc import Callable, Generator, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from biomedlm_jax.buckets import as_path
from biomedlm_jax.errors import InputError

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
MAX_LINE_BYTES = 1 << 28  # of a line, decompressed: 19 kB can inflate to 600 MB
_BLOCK, _BUFFER = 1 << 20, 1 << 17  # of `read_blocks`, of decompressors
# Bytes of input in a call of a decompressor. zstandard has no limit on the output of a call, and a
# block of 4 bytes can hold 128 KiB: 512 bytes of input give at most 16 MiB.
_PIECE = 1 << 9
_POINTER = b"version https://git-lfs.github.com/spec/"
_reading = threading.local()  # the file that a thread reads, and a function that returns how far


class BrokenStreamError(InputError):
    """A compressed file is damaged or truncated; the lines before the damage were read."""


def read_lines(
    path: str | Path,
    *,
    limit: int = MAX_LINE_BYTES,
    on_long: Callable[[str], None] | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line with its newline) of a plain or compressed file.

    Lines end at "\\n" only: `str.splitlines` would also cut at U+2028 and others, which JSON
    allows inside a string. Time is linear and memory constant, but for one line.

    Args:
      limit: the largest line in bytes.
      on_long: called with a message that names a longer line, which is then omitted.

    Raises InputError, also without `on_long` for a line beyond the limit, and BrokenStreamError
    if the compressed data are damaged or truncated.
    """
    path, number = as_path(path), 0
    with open_binary(path) as file, _named_errors(lambda: f"{path}:{number + 1}"):
        text = _decompressed(file, path)
        while line := text.readline(limit + 1):
            if len(line) > limit:
                message = f"{path}:{number + 1}: the line is longer than {limit:,} bytes"
                if on_long is None:
                    raise InputError(message)
                on_long(message)
                while line and not line.endswith(b"\n"):
                    line = text.readline(_BLOCK)
                number += 1
                continue
            number += 1
            yield number, line


def read_blocks(path: str | Path) -> Iterator[bytes]:
    """Yield the bytes of a plain or compressed file in blocks of at most 1 MiB.

    Raises InputError, or BrokenStreamError if the compressed data are damaged or truncated.
    """
    with open_binary(Path(path)) as file, _named_errors(lambda: str(path)):
        text = _decompressed(file, Path(path))
        # `read` would lose what precedes a damage within a block.
        while block := cast(BufferedReader, text).read1(_BLOCK):
            yield block


def open_binary(path: Path) -> BufferedReader:
    """Open a file as it is; InputError for a Git LFS pointer, which stands for the data.

    Raises InputError if there is no such file, too.
    """
    if not path.exists():
        bucket = str(path).startswith(("gs:", "s3:"))
        fix = "; mount the bucket and give the path of the mount" if bucket else ""
        raise InputError(f"no such file: {path}{fix}")
    if path.is_dir():
        raise InputError(f"{path} is a directory; name a file")
    try:
        file = path.open("rb")
    except PermissionError:
        raise InputError(f"{path} may not be read by this user") from None
    if file.peek(len(_POINTER)).startswith(_POINTER):
        file.close()
        raise InputError(f"{path} is a Git LFS pointer, not the data; run `git lfs pull`")
    follow(path, file.tell)
    return file


def follow(path: Path, position: Callable[[], int]) -> None:
    """Let `reading` return the position in a file that this thread reads from now on."""
    _reading.file = (path, position)


def reading() -> tuple[Path | None, int]:
    """Return the file that this thread opened last and how many of its bytes were read.

    They are those on the disk, compressed or not; of a file that is closed there are none.
    """
    path, position = getattr(_reading, "file", (None, lambda: 0))
    try:
        return path, position()
    except ValueError:  # closed
        return path, 0


@contextlib.contextmanager
def _named_errors(where: Callable[[], str]) -> Generator[None]:
    """Raise the errors of decompressors as BrokenStreamError at the place `where()`."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system; those of gzip and bz2 have no number
        message = f"{where()}: the compressed stream is damaged or truncated ({error})"
        raise BrokenStreamError(message) from error


def _decompressed(file: BufferedReader, path: Path) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix not in COMPRESSIONS:
        return file
    if not file.peek(1):  # not even a header; gzip would read it as an empty text
        raise EOFError("the file has no bytes")
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(file))
    return cast(BinaryIO, io.BufferedReader(_Stream(_inflated(file, suffix)), _BUFFER))


class _Stream(io.RawIOBase):
    """A readable file of the `blocks` in order."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks, self._rest = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _inflated(file: BufferedReader, suffix: str) -> Iterator[bytes]:
    # The streams of a file are tracked here: zstandard's own stream_reader does not report a
    # truncated file, and BZ2File and LZMAFile ignore a damaged stream that follows a good one.
    # The window is the largest that zstd can use (`zstd --long=31`).
    start: Any = {
        ".zst": zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj,
        ".bz2": bz2.BZ2Decompressor,
        ".xz": lzma.LZMADecompressor,
    }[suffix]
    most = {} if suffix == ".zst" else {"max_length": _BUFFER}
    stream = None
    while data := file.read(_PIECE):
        while data:
            if suffix == ".xz" and not stream and not (data := data.lstrip(b"\0")):
                break  # padding between two streams
            stream = stream or start()
            yield stream.decompress(data, **most)
            while not (stream.eof or suffix == ".zst" or stream.needs_input):
                yield stream.decompress(b"", **most)
            data, stream = (stream.unused_data, None) if stream.eof else (b"", stream)
    if stream:
        raise EOFError("the file ends inside a frame")
