"""Articles from JSON lines, parquet and plain text, with the names of their fields.

The lines of The Pile, `{"text": ..., "meta": {"pile_set_name": "PubMed Central"}}`, are read with
the defaults and `subsets=["PubMed Abstracts", "PubMed Central"]`. The formats, limits and rules of
texts are those of documents.py: a null field is an empty one, and a list is that many paragraphs.
"""

import dataclasses
import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from biomedlm_jax.corpus.articles import Article, Rejection
from biomedlm_jax.corpus.input_files import KNOWN, format_of
from biomedlm_jax.corpus.records import read_json_records, read_parquet_records, read_whole
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import parse_object
from biomedlm_jax.streams import MAX_LINE_BYTES, BrokenStreamError, read_lines

SUBSET = "meta.pile_set_name"
_CHECKED = 1000  # records after which a field that none of them has is an error
_PMCID = re.compile(r"(?:PMC)?(\d+)")
_YEAR = re.compile(r"(?<!\d)(?:1[5-9]|20)\d\d(?!\d)")


@dataclasses.dataclass(frozen=True)
class FieldNames:
    """The fields of a record that hold the parts of an Article; "" for none.

    "meta.pmid" is the field "pmid" inside "meta". `subset` may be missing in a record.
    """

    title: str = ""
    abstract: str = ""
    body: str = "text"
    pmid: str = ""
    pmcid: str = ""
    doi: str = ""
    license: str = ""
    year: str = ""
    languages: str = ""
    types: str = ""
    journal: str = ""
    subset: str = SUBSET

    def __post_init__(self):
        for name, path in dataclasses.asdict(self).items():
            if path and not all(path.split(".")):
                raise InputError(f"got {path!r} as the field of {name}; expected text or meta.text")
        if not (self.title or self.abstract or self.body):
            raise InputError("got no field of a text; name that of title, abstract or body")


def read_json_articles(
    path: str | Path,
    fields: FieldNames | None = None,
    *,
    subsets: Iterable[str] = (),
    limit: int = MAX_LINE_BYTES,
) -> Iterator[Article | Rejection]:
    """Yield the records of a .jsonl, .json, .parquet or .txt file, which may be compressed.

    `source` is the subset of a record, else the name of the format. A Rejection is `subset` (not in
    `subsets`, if any are given), `empty`, `broken` (no object, no text in a field, or a field of a
    text is missing), `long` (more than `limit` bytes), or `truncated` (the rest of the file).

    Raises InputError if the file cannot be opened or has another format, and for a named field that
    no record has.
    """
    fields, path = fields or FieldNames(), Path(path)
    kind = format_of(path)
    if not kind:
        raise InputError(f"{path} has a name of unknown format; {KNOWN}")
    reader = _Reader(fields, frozenset([subsets] if isinstance(subsets, str) else subsets))
    if kind == ".txt" and reader.subsets:
        raise InputError(f"{path} is plain text, which has no subsets; give JSON lines only")
    long: deque[str] = deque()
    number = 0
    try:
        for number, record in _records(path, kind, limit, long):
            yield from _long(long)
            place = f"{path}:{number}"
            if isinstance(record, bytes) and not record.strip():
                continue
            try:
                item = reader.article(record, place, kind)
            except (ValueError, RecursionError) as error:
                item = Rejection(place, "broken", str(error).removeprefix(f"{place}: ")[:300])
            yield item
            if reader.records == _CHECKED:
                reader.check(path)
    except BrokenStreamError as error:
        yield Rejection(f"{path}:{number + 1}", "truncated", str(error))
    except _BadFileError as error:
        yield Rejection(f"{path}:{number + 1}", "long" if error.long else "broken", str(error))
    yield from _long(long)
    reader.check(path)


def _long(messages: deque[str]) -> Iterator[Rejection]:
    """Yield a Rejection for each message "file:line: what is wrong", and drop it."""
    while messages:
        place, _, detail = messages.popleft().rpartition(": ")
        yield Rejection(place, "long", detail)


class _BadFileError(InputError):
    """The rest of a file cannot be read."""

    def __init__(self, error: InputError):
        super().__init__(*error.args)
        self.long = "longer than" in str(error).rpartition(": ")[2]


def _records(
    path: Path, kind: str, limit: int, long: deque[str]
) -> Iterator[tuple[int, bytes | dict]]:
    if kind == ".parquet":
        yield from read_parquet_records(path)
        return
    try:
        if kind == ".txt":
            yield 1, read_whole(path, limit=limit)
        else:
            read = read_json_records if kind == ".json" else read_lines
            yield from read(path, limit=limit, on_long=long.append)
    except BrokenStreamError:
        raise
    except InputError as error:
        if str(error).startswith(f"{path}:"):  # of the content, not of the file
            raise _BadFileError(error) from error
        raise


class _Reader:
    """The articles of records, and which of the named fields they had."""

    def __init__(self, fields: FieldNames, subsets: frozenset[str]):
        self.subsets, self.records = subsets, 0
        names = dataclasses.asdict(fields)
        self.keys = {name: path.split(".") for name, path in names.items() if path}
        self.missing = {name for name in self.keys if name != "subset"}

    def article(self, record: bytes | dict, place: str, kind: str) -> Article | Rejection:
        if kind == ".txt" and isinstance(record, bytes):
            self.missing.clear()
            text = record.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
            return _checked(Article(place, "txt", body=text))
        if isinstance(record, bytes):
            record = parse_object(record.strip(), place)
        self.records += 1
        subset = self.value(record, "subset")
        if self.subsets and subset not in self.subsets:
            return Rejection(place, "subset", str(subset or "without a subset"))
        pmid = str(self.value(record, "pmid") or "").strip()
        pmcid = _PMCID.fullmatch(str(self.value(record, "pmcid") or "").strip())
        year = _YEAR.search(str(self.value(record, "year") or ""))
        article = Article(
            place,
            str(subset or kind.removeprefix(".")),
            title=self.text(record, "title"),
            abstract=self.text(record, "abstract"),
            body=self.text(record, "body"),
            pmid=pmid if pmid.isascii() and pmid.isdigit() else "",
            pmcid=f"PMC{pmcid[1]}" if pmcid else "",
            doi=str(self.value(record, "doi") or "").strip(),
            license=str(self.value(record, "license") or "").strip(),
            year=int(year[0]) if year else None,
            languages=_words(self.value(record, "languages")),
            types=_words(self.value(record, "types")),
            journal=str(self.value(record, "journal") or "").strip(),
        )
        return _checked(article)

    def value(self, record: dict, name: str, *, required: bool = False) -> Any:
        """Return the value of a field; None if it is null, not named, or missing."""
        value: Any = record
        for key in self.keys.get(name, ("",)):
            if value is None:
                break
            if not isinstance(value, dict) or key not in value:
                if required and name in self.keys:
                    path = ".".join(self.keys[name])
                    got = f"the field {path!r} of {name} is missing"
                    raise InputError(f"{got}; the record has {', '.join(map(repr, record))}")
                return None
            value = value[key]
        self.missing.discard(name)
        return value

    def text(self, record: dict, name: str) -> str:
        if name not in self.keys:
            return ""
        value = self.value(record, name, required=True)
        texts = value if isinstance(value, list) else [value]
        for text in texts:
            if text is not None and not isinstance(text, str):
                got = f"the field {'.'.join(self.keys[name])!r} is {type(value).__name__}"
                raise InputError(f"{got}; expected a string or a list of strings")
        return "\n\n".join(text for text in texts if text and text.strip())

    def check(self, path: Path) -> None:
        """Raise InputError for a named field that no record had."""
        if self.records and self.missing:
            names = sorted(".".join(self.keys[name]) for name in self.missing)
            raise InputError(
                f"{path}: none of the first {self.records} records has the field "
                f"{' or '.join(map(repr, names))}; name another field, or none"
            )


def _checked(article: Article) -> Article | Rejection:
    text = article.text
    text.encode("utf-8")  # raises for half of a surrogate pair, which JSON can escape
    if "\0" in text:
        raise InputError("NUL character; expected UTF-8 text")
    if not text.strip():
        return Rejection(article.place, "empty", "the text is empty or white space")
    return article


def _words(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(str(item) for item in values if item is not None and item != "")
