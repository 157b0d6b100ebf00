"""CoNLL files of tagged tokens -> sentences whose character offsets are proven.

A line is a token with its columns, separated by tabs if it has one, else by spaces. A blank line
ends a sentence; a line that begins with -DOCSTART- or ###MEDLINE: begins a document.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.spans import OUTSIDE, PREFIXES, Entity, entities, scheme_fault
from biomedlm_jax.streams import read_lines

DOCUMENT = ("-DOCSTART-", "###MEDLINE:")
NAMES = ("token", "tag", "start", "end")  # columns that are read; others may have any name
LARGEST_GAP = 1_000  # characters between two tokens of a sentence


class Sentence(NamedTuple):
    """Tokens of a text: tokens[i] == text[starts[i] : starts[i] + len(tokens[i])]."""

    line: int  # of the first token
    document: int  # from 1; 0: the file has no marks of documents before this sentence
    text: str
    tokens: list[str]
    starts: list[int]  # in `text`
    offset: int | None  # of `text` in the document, if the file has offsets
    entities: list[Entity]

    def span(self, entity: Entity) -> tuple[int, int]:
        """Return the first character of an entity and the one after its last, in `text`."""
        return self.starts[entity.first], self.starts[entity.last] + len(self.tokens[entity.last])


def read_sentences(
    path: str | Path, *, scheme: str = "iob2", columns: Sequence[str] = (), entity_type: str = ""
) -> Iterator[Sentence]:
    """Yield the sentences of a plain or compressed file.

    The text of a sentence is its tokens joined by one space, or, if `columns` has `start`, the
    tokens at their offsets, with spaces between them. Offsets count characters, not bytes.

    Args:
      scheme: one of SCHEMES, which every sentence must keep.
      columns: the names of all columns; by default the first is the token and the last the tag.
      entity_type: the type of tags without one (B, I), which only such files may give.

    Raises InputError with file and line for a line that is none of these.
    """
    if columns and (not {"token", "tag"} <= {*columns} or len({*columns}) < len(columns)):
        raise InputError(f"got the columns {','.join(columns)}; expected token and tag, each once")
    if "end" in columns and "start" not in columns:
        raise InputError("got the column end without start; fix: name both")
    document, width, rows = 0, len(columns), []
    for number, raw in read_lines(path):
        where = f"{path}:{number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: expected UTF-8 ({error.reason})") from None
        marks_document = line.startswith(DOCUMENT)
        if marks_document or not line.strip(" \t"):
            if rows:
                yield _sentence(path, rows, document, scheme)
            document, rows = document + marks_document, []
            continue
        cells = _cells(line)
        width = width or max(len(cells), 2)
        if len(cells) != width:
            raise InputError(f"{where}: expected {width} columns, got {len(cells)}: {line[:80]!r}")
        named = dict(zip(columns, cells, strict=True)) if columns else {}
        named = named or {"token": cells[0], "tag": cells[-1]}
        if not named["token"].strip() or "\0" in line:
            got = "a NUL character" if "\0" in line else "an empty token"
            raise InputError(f"{where}: got {got}; expected a token and its tag")
        rows.append((number, {**named, "tag": _typed(named["tag"], entity_type, where, scheme)}))
    if rows:
        yield _sentence(path, rows, document, scheme)


def _cells(line: str) -> list[str]:
    # str.split() would also cut at no-break spaces, which tokens may contain.
    return line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))


def _typed(tag: str, entity_type: str, where: str, scheme: str) -> str:
    bare = len(tag) == 1 and tag in PREFIXES[scheme]
    if bare and not entity_type:
        raise InputError(f"{where}: got the tag {tag} without a type; fix: pass --entity_type=NAME")
    if entity_type and not bare and tag != OUTSIDE:
        got = f"got the tag {tag!r} and --entity_type={entity_type}"
        raise InputError(f"{where}: {got}; expected {', '.join(PREFIXES[scheme])} or {OUTSIDE}")
    return f"{tag}-{entity_type}" if bare else tag


def _sentence(path, rows: list[tuple[int, dict[str, str]]], document: int, scheme: str) -> Sentence:
    numbers = [number for number, _ in rows]
    tokens, tags = ([named[name] for _, named in rows] for name in ("token", "tag"))
    if fault := scheme_fault(tags, scheme):
        place, reason = fault
        fix = "fix: name the file's scheme with --scheme, or correct the tag"
        raise InputError(f"{path}:{numbers[place]}: {reason}; {fix}")
    text, starts, offset = "", [], None
    for number, named in rows:
        token, gap = named["token"], int(bool(text))
        if "start" in named:
            where = f"{path}:{number}"
            start = _number(named["start"], where)
            if "end" in named and (end := _number(named["end"], where)) - start != len(token):
                got = f"start {start} and end {end} of {token!r}, which has {len(token)} characters"
                raise InputError(f"{where}: got {got}; expected offsets of characters")
            offset = start if offset is None else offset
            gap = start - offset - len(text)
            if not 0 <= gap <= LARGEST_GAP:
                got = f"start {start}, where the token before ends at {offset + len(text)}"
                raise InputError(f"{where}: got {got}; expected 0 to {LARGEST_GAP} characters more")
        starts.append(len(text) + gap)
        text += " " * gap + token
    return Sentence(numbers[0], document, text, tokens, starts, offset, entities(tags))


def _number(cell: str, where: str) -> int:
    if not (cell.isascii() and cell.isdecimal() and len(cell) < 16):
        raise InputError(f"{where}: got the offset {cell!r}; expected a whole number")
    return int(cell)
