"""Files of questions -> rows: lines, cells or entries, each with its place."""

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from biomedlm_jax.corpus.records import read_json_records, read_parquet_records
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import parse_object
from biomedlm_jax.streams import COMPRESSIONS, MAX_LINE_BYTES, read_blocks, read_lines

# Names of the first two columns or the last one; a question has one of them at most by chance.
HEADERS = {"id", "qid", "index", "idx", "question", "sentence1", "sentence", "text", "context"}
HEADERS |= {"answer", "label", "target", "class", "sentence2"}

Refuse = Callable[[str], None]  # takes the message of a bad row: raises, or counts it


class Row(NamedTuple):
    """One row of a file before it is checked; printed as "file:line"."""

    path: Path
    place: int | str  # the line, or the entry where the file is one object
    fields: dict[str, Any]
    first: int = 0  # the number that an answer gives to the first option

    def __str__(self) -> str:
        return f"{self.path}:{self.place}"

    @property
    def id(self) -> Any:
        """The row's own id, or its file and place."""
        number = f"{self.path.name}:{self.place}"
        return self.fields.get("id", self.fields.get("pubid", number))


def plain_name(path: Path) -> str:
    """Return the name of a file in lower case, without the suffix of a compression."""
    name = path.name.lower()
    suffix = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    return name.removesuffix(suffix)


def read_rows(path: Path, refuse: Refuse) -> Iterator[Row]:
    """Yield the rows of JSON lines, a JSON array or parquet."""
    if plain_name(path).endswith(".parquet"):
        for number, fields in read_parquet_records(path):
            yield Row(path, number, fields)
        return
    lines = read_lines(path)
    if plain_name(path).endswith(".json"):
        lines = read_json_records(path, limit=MAX_LINE_BYTES, on_long=None)
    last = on_line = 0
    for line, raw in lines:
        if raw.strip():
            # Several items of an array on one line: 1, 1#2, 1#3, so that rows without ids differ.
            last, on_line = line, on_line + 1 if line == last else 1
            place = line if on_line == 1 else f"{line}#{on_line}"
            try:
                fields = parse_object(raw, f"{path}:{place}")
            except ValueError as error:
                refuse(str(error))
            else:
                yield Row(path, place, fields)


def read_entries(path: Path, refuse: Refuse, *, key: str = "") -> Iterator[Row]:
    """Yield the entries of one JSON object by their ids, or of its list `key`."""
    try:
        content = parse_object(b"".join(read_blocks(path)), str(path))
    except ValueError as error:
        return refuse(str(error))
    if not key:
        entries = [(f"id {name}", name, entry) for name, entry in content.items()]
    elif isinstance(content.get(key), list):
        entries = [(f"entry {n}", None, entry) for n, entry in enumerate(content[key], 1)]
    else:
        return refuse(f"{path}: expected a list named {key}, got {first_names(content)}")
    for place, name, entry in entries:
        if isinstance(entry, dict):
            yield Row(path, place, entry if name is None else {**entry, "id": name})
        else:
            refuse(f"{path}:{place}: expected an object, got {type(entry).__name__}")


def read_cells(
    path: Path, refuse: Refuse, *, columns: tuple[str, ...], least: int, **dialect: Any
) -> Iterator[Row]:
    """Yield the lines of a CSV or TSV file, their cells named by `columns`."""
    lines = (raw.decode("utf-8-sig" if n == 1 else "utf-8") for n, raw in read_lines(path))
    reader, line = csv.reader(lines, **dialect), 1
    try:
        for cells in reader:
            named = {cell.strip().lower() for cell in (cells[:2] + cells[-1:])} & HEADERS
            if line == 1 and len(cells) >= least and len(named) > 1:
                got = f"{path}:1: got a line of column names, {first_names(cells)}"
                refuse(f"{got}; expected no header; fix: delete the line")
            elif least <= len(cells) <= len(columns):
                yield Row(path, line, dict(zip(columns, cells, strict=False)))
            elif "".join(cells).strip():
                names = ", ".join(columns)
                refuse(f"{path}:{line}: expected the columns {names}, got {len(cells)} columns")
            line = reader.line_num + 1  # a quoted cell may span lines
    except csv.Error as error:
        refuse(f"{path}:{line}: {error}")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{line}: expected UTF-8 ({error.reason})") from None


def first_names(names: Iterable[str]) -> str:
    """Return the first names, for a message."""
    return ", ".join([*names][:20])
