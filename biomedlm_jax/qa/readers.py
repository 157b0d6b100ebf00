"""Question files, published ones and anybody's own, as rows of named fields.

    .jsonl  one JSON object a line (also .json-lines, and .json, as the original names its files)
    .json   PubMedQA's `{pmid: {QUESTION, CONTEXTS, ...}}` or BioASQ's `{"questions": [...]}`
    .csv    MMLU's: question, four options and the letter of the answer, without a header
    .tsv    BLURB's BioASQ: id, question, context and yes or no, without a header

What the fields of a row mean is in examples.py.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

COLUMNS = ("id", "sentence1", "sentence2", "label")  # of BLURB's TSV, named as in the JSON lines

Refuse = Callable[[str], None]  # is told of a bad row: raises, or counts it


class Row(NamedTuple):
    """One row of a file before it is checked."""

    where: str  # "file:line", or "file: id" where the file is one object; for messages
    name: str  # the id of a row that brings none
    fields: dict[str, Any]
    first: int = 1  # the number that MedMCQA's `cop` gives to the first option


def read_rows(path: Path, refuse: Refuse) -> list[Row]:
    """Return the rows of a file of a known format; what is no row at all is refused.

    Raises:
      ValueError: the name tells no known format, or MedMCQA's `cop` counts both ways.
    """
    if path.suffix.lower() not in _READERS:
        known = ", ".join(_READERS)
        raise ValueError(f"cannot tell the format of {path} from its name; it ends in {known}")
    rows = list(_READERS[path.suffix.lower()](path, path.read_bytes(), refuse))
    # MedMCQA's own files count the options from 1, mirrors from 0. A file counts from 0 if it has
    # a 0 anywhere (a third of its rows would); guessing row by row would be wrong on most rows.
    numbered = {row.fields["cop"]: row for row in rows if type(row.fields.get("cop")) is int}
    if 0 in numbered and 4 in numbered:
        raise ValueError(
            f"{numbered[4].where}: got cop 4, but cop 0 at {numbered[0].where}; "
            "a file counts the options either from 1 to 4 or from 0 to 3"
        )
    return [row._replace(first=0) for row in rows] if 0 in numbered else rows


def _json_lines(path: Path, data: bytes, refuse: Refuse) -> Iterator[Row]:
    for line, raw in enumerate(data.split(b"\n"), 1):
        if raw.strip():
            try:
                yield Row(f"{path}:{line}", f"{path.name}:{line}", read_object(raw, path, line))
            except ValueError as error:
                refuse(str(error))


def _json(path: Path, data: bytes, refuse: Refuse) -> Iterator[Row]:
    try:
        whole = read_object(data, path)
    except ValueError as error:
        try:  # JSON lines under the name .json, as the original's own files
            read_object(data.strip().split(b"\n")[0], path)
        except ValueError:
            refuse(str(error))
            return
        yield from _json_lines(path, data, refuse)
        return
    if isinstance(whole.get("questions"), list):
        entries = [(f"question {n}", entry) for n, entry in enumerate(whole["questions"], 1)]
    elif whole and all(isinstance(entry, dict) for entry in whole.values()):
        entries = [(f"id {pmid}", {**entry, "id": pmid}) for pmid, entry in whole.items()]
    else:
        yield from _json_lines(path, data, refuse)  # a single line, or an object of no known form
        return
    for name, entry in entries:
        if isinstance(entry, dict):
            yield Row(f"{path}: {name}", f"{path.name}: {name}", entry)
        else:
            refuse(f"{path}: {name}: got JSON of type {type(entry).__name__}; it is one object")


def _csv(path: Path, data: bytes, refuse: Refuse) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(_decode(data, path), newline=""))
    line = 1
    try:
        for cells in reader:
            where = f"{path}:{line}"
            if len(cells) == 6:
                question, *options, answer = cells
                fields = {"question": question, "options": options, "answer_idx": answer.strip()}
                yield Row(where, f"{path.name}:{line}", fields)
            elif cells:
                refuse(f"{where}: got {len(cells)} columns; they are question,A,B,C,D,answer")
            line = reader.line_num + 1  # a quoted cell may span lines
    except csv.Error as error:
        refuse(f"{path}:{line}: {error}")


def _tsv(path: Path, data: bytes, refuse: Refuse) -> Iterator[Row]:
    for line, text in enumerate(_decode(data, path).split("\n"), 1):
        cells = text.removesuffix("\r").split("\t")  # BLURB writes quotes as they stand
        if len(cells) in (3, 4):
            yield Row(
                f"{path}:{line}", f"{path.name}:{line}", dict(zip(COLUMNS, cells, strict=False))
            )
        elif text.strip():
            refuse(
                f"{path}:{line}: got {len(cells)} columns; they are id, question, context, label"
            )


_READERS = {
    ".jsonl": _json_lines,
    ".json-lines": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
}


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: got bytes that are no UTF-8 ({error.reason})") from None


def read_object(raw: bytes, path: Path, line: int = 1) -> dict[str, Any]:
    """Return the JSON object in `raw`, which begins at this line of the file.

    Raises:
      ValueError: no JSON, no object, or a field twice; it names file and line.
    """
    try:
        record = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_without_twins)
    except json.JSONDecodeError as error:
        got = error.doc[max(0, error.pos - 20) : error.pos + 20]
        at = f"{path}:{line + error.lineno - 1}"
        raise ValueError(f"{at}: got {got!r}, which is no JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:{line}: {error}") from None
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise ValueError(f"{path}:{line}: got JSON of type {kind}; it is one object")
    return record


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Python would keep the last of two, so an article that is in the file twice would vanish.
    record = dict(pairs)
    if len(record) < len(pairs):
        twin = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise ValueError(f"got {twin!r} twice in one object")
    return record
