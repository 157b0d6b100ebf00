"""Files of labelled texts, pairs of texts and marked relations -> checked examples.

The suffix decides the layout: .tsv (cells as they are, without quoting), .csv, and JSON lines, a
JSON array (.json) or parquet. All but parquet may be compressed.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from biomedlm_jax.errors import InputError
from biomedlm_jax.qa.question_rows import first_names, plain_name, read_rows
from biomedlm_jax.streams import read_lines

# Fields of each task: its texts, then its label, each with other names that published files use.
FIELDS = {
    "relation": ({"sentence": ("sentence", "text")}, ("label", "relation")),
    "nli": (
        {"sentence1": ("sentence1", "premise"), "sentence2": ("sentence2", "hypothesis")},
        ("gold_label", "label"),
    ),
    "classification": ({"text": ("text", "sentence")}, ("label",)),
}
# Columns of relation files without a header, by their number.
RELATION_COLUMNS = {2: ("sentence", "label"), 3: ("id", "sentence", "label")}
IDS = ("id", "pairID", "index")
NO_GOLD = "-"  # of SNLI and MedNLI: the annotators did not agree
# @GENE$, <e1>..</e1>, [E1]..[/E1], <<..>>, [[..]]
MARKS = r"@[\w-]+\$|<(/?)[eE]\d>|\[/?[eE]\d\]|<<.+?>>|\[\[.+?\]\]"


class Labelled(NamedTuple):
    """One example: its texts by the task's names of them, and its label."""

    place: int | str  # its line
    texts: dict[str, str]
    label: str
    source_id: str | None  # the file's own id of it


def read_labelled(
    path: str | Path,
    task: str,
    *,
    columns: Sequence[str] = (),
    text_field: str = "",
    label_field: str = "",
    marks: str = MARKS,
    left_out: Counter[str] | None = None,
) -> Iterator[Labelled]:
    """Yield the examples of a file of a task of FIELDS.

    Args:
      columns: names of the columns of a .tsv or .csv file without a header. A relation file of two
        or three columns needs none: (id,) sentence, label.
      text_field: another name of the text; of nli two names with a comma.
      label_field: another name of the label.
      marks: regular expression that a relation's sentence must contain.
      left_out: counts the pairs of nli without a gold label, "-", which are not yielded.

    Raises InputError with file and line for a bad line.
    """
    texts, labels = FIELDS[task]
    if text_field:
        names = text_field.split(",")
        if len(names) != len(texts):
            raise InputError(f"got --text_field={text_field}; {task} has {len(texts)} texts")
        texts = {text: (name,) for text, name in zip(texts, names, strict=True)}
    labels = (label_field,) if label_field else labels
    for place, fields in _records(Path(path), columns, task):
        where = f"{path}:{place}"
        label = _label(_field(fields, labels, where), where)
        source_id = next((fields[name] for name in IDS if name in fields), None)
        if task == "nli" and label == NO_GOLD:
            if left_out is not None:
                left_out[f"{path}: no gold label"] += 1
            continue
        values = {
            text: _text(_field(fields, names, where), text, where) for text, names in texts.items()
        }
        if task == "relation" and not re.search(marks, values["sentence"]):
            got = f"{where}: got a sentence without marked entities: {values['sentence'][:60]!r}"
            raise InputError(f"{got}; fix: mark them as @TYPE$ or <e1>..</e1>, or pass --marks")
        yield Labelled(place, values, label, None if source_id is None else str(source_id))


def _records(
    path: Path, columns: Sequence[str], task: str
) -> Iterator[tuple[int | str, dict[str, Any]]]:
    name = plain_name(path)
    if not name.endswith((".tsv", ".csv")):
        if not name.endswith((".json", ".jsonl", ".parquet")):
            raise InputError(f"got {path}; expected .tsv, .csv, .jsonl, .json or .parquet")
        if columns:
            raise InputError(f"got --columns with {path}; expected a .tsv or .csv file")
        for row in read_rows(path, _refuse):
            yield row.place, row.fields
        return
    for line, cells in _cells(path, tabs=name.endswith(".tsv")):
        if not columns:
            columns = RELATION_COLUMNS.get(len(cells), ()) if task == "relation" else ()
            header = [cell.strip() for cell in cells]
            if not columns or {*header} & {*FIELDS[task][1]}:
                columns = header
                if repeated := [one for one, count in Counter(columns).items() if count > 1]:
                    raise InputError(f"{path}:{line}: two columns have the name {repeated[0]!r}")
                continue
        if len(cells) != len(columns):
            names = first_names(columns)
            raise InputError(f"{path}:{line}: expected the columns {names}, got {len(cells)} cells")
        yield line, dict(zip(columns, cells, strict=True))


def _cells(path: Path, *, tabs: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of the lines that are not blank; a quoted cell of .csv may span lines."""
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for number, raw in read_lines(path):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                where = f"{path}:{number}"
                raise InputError(f"{where}: expected UTF-8 ({error.reason})") from None

    if tabs:
        for line in lines():
            if line.strip():
                yield number, line.rstrip("\r\n").split("\t")
        return
    reader = csv.reader(lines(), strict=True)
    try:
        first = 1
        for cells in reader:
            if "".join(cells).strip():
                yield first, cells
            first = number + 1
    except csv.Error as error:
        raise InputError(f"{path}:{number}: {error}") from None


def _refuse(message: str) -> NoReturn:
    raise InputError(message)


def _field(fields: dict[str, Any], names: Sequence[str], where: str) -> Any:
    for name in names:
        if name in fields:
            return fields[name]
    fix = "name it with --text_field, --label_field, or --columns for a file without a header"
    raise InputError(f"{where}: no field {names[0]!r} in {first_names(fields)}; fix: {fix}")


def _text(value: Any, name: str, where: str) -> str:
    got = f"type {type(value).__name__}"
    if isinstance(value, str):
        got = "a NUL character" if "\0" in value else "" if value.strip() else "no text"
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
                got = "half of a surrogate pair"
    if got:
        raise InputError(f"{where}: got {got} as {name!r}; expected a text")
    return value.strip()


def _label(value: Any, where: str) -> str:
    number = isinstance(value, int) and not isinstance(value, bool)
    label = _text(str(value) if number else value, "label", where)
    if len(label.splitlines()) > 1:
        raise InputError(f"{where}: got a label of several lines; expected one line")
    return label
