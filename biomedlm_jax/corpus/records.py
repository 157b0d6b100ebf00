"""Records: the JSON objects and rows of a corpus file, one at a time, in bounded memory.

A record is the raw bytes of a JSON object, which the caller parses, or a dict of a parquet row.
"""

import codecs
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import parse_object
from biomedlm_jax.streams import BrokenStreamError, follow, open_binary, read_blocks, read_lines

BOM = b"\xef\xbb\xbf"
_ROWS = 64  # of a parquet file in memory
_SPACE = re.compile(r"[ \t\r\n]*")


def read_whole(path: Path, *, limit: int) -> bytes:
    """Return the bytes of a file. Raises InputError if it has more than `limit`."""
    blocks, size = [], 0
    for block in read_blocks(path):
        blocks.append(block)
        size += len(block)
        if size > limit:
            raise InputError(f"{path}:1: the document is longer than {limit:,} bytes")
    return b"".join(blocks)


def read_json_records(
    path: Path, *, limit: int, on_long: Callable[[str], None] | None
) -> Iterator[tuple[int, bytes]]:
    """Yield (line, object) of a .json file: an array of objects, one object, or one a line.

    `on_long` is called with a message for an object of more than `limit` bytes, which is omitted.
    Raises InputError for an array that is damaged; the objects before the damage were read.
    """
    head = b""
    for block in read_blocks(path):  # to the end of the first line
        head = (head + block).removeprefix(BOM).lstrip()
        if head.startswith(b"[") or b"\n" in head or len(head) > limit:
            break
    if head.startswith(b"["):
        yield from _array_items(path, limit, on_long)
    elif _is_object(head.partition(b"\n")[0]):
        yield from read_lines(path, limit=limit, on_long=on_long)
    elif head:
        yield 1, read_whole(path, limit=limit)


def read_parquet_records(
    path: Path, *, columns: set[str] | None = None, optional: Iterable[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row from 1, record) of a parquet file with the `columns`, or all if one is missing.

    Without `columns`, a record has all. Those that are `optional` are added where they are there.

    Raises BrokenStreamError if the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    open_binary(path).close()  # InputError for a pointer to the data
    number = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = set(file.schema_arrow.names)
            twice = [name for name, count in Counter(file.schema_arrow.names).items() if count > 1]
            if set(twice) & (names if columns is None else columns):
                raise BrokenStreamError(f"{path} has two columns with the name {twice[0]}")
            rows, size = max(1, file.metadata.num_rows), path.stat().st_size
            follow(path, lambda: size * number // rows)
            chosen = None
            if columns is not None and columns <= names:
                chosen = sorted(columns | (names & {*optional}) - {*twice})
            for batch in file.iter_batches(_ROWS, columns=chosen, use_threads=False):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system; those of pyarrow have no number
        message = f"{path}:{number + 1}: not a parquet file ({error})"
        raise BrokenStreamError(message) from error


def _is_object(line: bytes) -> bool:
    try:
        parse_object(line, "")
    except ValueError:
        return False
    return True


def _array_items(
    path: Path, limit: int, on_long: Callable[[str], None] | None
) -> Iterator[tuple[int, bytes]]:
    """Yield (line, item) of a JSON array whose text is read block by block.

    Raises InputError where the text is not JSON: the next item cannot be told then.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    blocks, scan = read_blocks(path), json.JSONDecoder().raw_decode
    text, position, line, counted = "", 0, 1, 0  # `line` is that of `counted` in `text`

    def fill() -> bool:
        """Drop what was read and double the rest, so that an item is scanned in linear time."""
        nonlocal text, position, line, counted
        line += text.count("\n", counted, position)
        parts, size, wanted = [text[position:]], 0, len(text) - position
        try:
            for block in blocks:
                parts.append(decode(block))
                size += len(block)
                if size > wanted:
                    break
            parts += [] if size else [decode(b"", True)]
        except UnicodeDecodeError as error:
            raise fail(f"got no UTF-8 ({error.reason})") from None
        text, position, counted = "".join(parts), 0, 0
        return size > 0

    def fail(what: str) -> InputError:
        place = f"{path}:{line + text.count(chr(10), counted, position)}"
        return InputError(f"{place}: {what} in the JSON array; the rest of the file is not read")

    expected = "["  # then "item", "," and so on, to "end"
    while True:
        position = _SPACE.match(text, position).end()  # ty: ignore[missing-union-attribute]
        if position == len(text):
            if fill():
                continue
            if expected == "end":
                return
            raise fail("the file ends")
        symbol = text[position]
        if expected == "item" and symbol != "]":
            try:
                _, end = scan(text, position)
            except (ValueError, RecursionError) as error:
                if len(text) - position > limit:
                    raise fail(f"an object is longer than {limit:,} bytes") from None
                if isinstance(error, json.JSONDecodeError) and fill():
                    continue
                raise fail(str(error)) from None
            if end == len(text) and fill():  # a number may go on
                continue
            line, counted = line + text.count("\n", counted, position), position
            if end - position > limit:
                message = f"{path}:{line}: the object is longer than {limit:,} bytes"
                if on_long is None:
                    raise InputError(message)
                on_long(message)
            else:
                yield line, text[position:end].encode("utf-8")
            position, expected = end, ","
        elif symbol == "]" and expected in ("item", ","):
            position, expected = position + 1, "end"
        elif symbol == expected:
            position, expected = position + 1, "item"
        else:
            raise fail(f"expected {expected!r}, got {symbol!r}")
