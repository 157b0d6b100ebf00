"""Sources of a corpus: named files of one format, and their records as Articles."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biomedlm_jax.corpus.articles import Article, Deletion, Rejection
from biomedlm_jax.corpus.documents import field_keys, lookup_texts
from biomedlm_jax.corpus.input_files import FORMATS, XML, format_of, input_files
from biomedlm_jax.corpus.records import read_json_records, read_parquet_records, read_whole
from biomedlm_jax.errors import InputError, one_line
from biomedlm_jax.files import parse_object
from biomedlm_jax.streams import MAX_LINE_BYTES, BrokenStreamError, read_lines

KINDS = ("medline", "pmc", "text")
FORM = f"[NAME=]FORMAT:PATH[,PATH], FORMAT one of {', '.join(KINDS)}"
DAMAGED = "damaged"  # reason of a Rejection: the rest of the file cannot be read
OTHER_SUBSET = "other_subset"  # reason for a line of a subset that is not selected
SUBSET_FIELD = "meta.pile_set_name"
_SOURCE = re.compile(rf"(?:([\w.-]+)=)?({'|'.join(KINDS)}):(.+)", re.DOTALL)
_PARTS = ("title", "abstract", "body")

Record = Article | Deletion | Rejection


@dataclass(frozen=True)
class Source:
    """Files of one format, under a name that settings and counts refer to."""

    name: str
    kind: str
    paths: tuple[str, ...]

    def files(self, skipped: list[str] | None = None) -> list[Path]:
        """List the files in the order in which they are read; raises what `input_files` does."""
        formats = FORMATS if self.kind == "text" else XML
        return input_files(self.paths, skipped, formats=formats)


@dataclass(frozen=True)
class TextFields:
    """How the records of a source of the kind "text" are read.

    Args:
      text_field: as of `read_documents`; None is "text", or title, abstract and body of a record
        without it.
      subsets: keep only records whose "meta.pile_set_name" is one of these; empty keeps all.
    """

    text_field: str | None = None
    subsets: tuple[str, ...] = ()


def parse_sources(values: Sequence[str]) -> tuple[Source, ...]:
    """Return the sources of values such as "medline:baseline/,updatefiles/" in their order.

    A source without a name has that of its format. Raises InputError for another form, and for one
    name twice.
    """
    sources = []
    for value in values:
        match = _SOURCE.fullmatch(value)
        paths = [path for path in match[3].split(",") if path] if match else []
        if match is None or not paths:
            raise InputError(f"got --source={value}; expected {FORM}")
        sources.append(Source(match[1] or match[2], match[2], tuple(paths)))
    if not sources:
        raise InputError(f"no source; expected --source={FORM}")
    name, count = Counter(source.name for source in sources).most_common(1)[0]
    if count > 1:
        fix = f"list their paths in one, or name them, --source=other={sources[-1].kind}:PATH"
        raise InputError(f"got {count} sources with the name {name}; {fix}")
    return tuple(sources)


def read_source(source: Source, path: Path, fields: TextFields) -> Iterator[Record]:
    """Yield the records of one file; what cannot be read is a Rejection."""
    try:
        if source.kind == "text":
            yield from _read_texts(path, source.name, fields)
        elif source.kind == "pmc":
            from biomedlm_jax.corpus.jats import read_jats

            yield from read_jats(path)
        else:
            from biomedlm_jax.corpus.medline import read_medline

            yield from read_medline(path)
    except BrokenStreamError as error:
        yield Rejection(str(path), DAMAGED, str(error))


def _read_texts(path: Path, name: str, fields: TextFields) -> Iterator[Record]:
    for number, record in _records(path):
        where = f"{path}:{number}"
        if isinstance(record, Rejection):
            yield record
            continue
        try:
            if isinstance(record, bytes):
                if not record.strip():
                    continue
                record = parse_object(record.strip(), where)
            source = name
            if fields.subsets:
                source = ", ".join(
                    lookup_texts(record, field_keys(SUBSET_FIELD), f"{where}: --subset_field")
                )
                if source not in fields.subsets:
                    yield Rejection(where, OTHER_SUBSET)
                    continue
            yield _article(record, where, source, fields.text_field)
        except InputError as error:
            yield Rejection(where, "broken", one_line(str(error)))
        except UnicodeError as error:
            yield Rejection(where, "broken", one_line(f"{where}: {error}"))


def _records(path: Path) -> Iterator[tuple[int, bytes | dict[str, Any] | Rejection]]:
    """Yield (line or row, JSON object or record), or a Rejection for a line beyond the limit."""
    kind, long = format_of(path), []
    if kind == ".txt":
        try:
            text = read_whole(path, limit=MAX_LINE_BYTES).decode("utf-8-sig")
            yield 1, {"text": text.replace("\r\n", "\n").replace("\r", "\n")}
        except UnicodeDecodeError as error:
            yield 1, Rejection(f"{path}:1", "broken", one_line(f"{path}: {error}"))
        return
    if kind == ".parquet":
        yield from read_parquet_records(path)
        return
    read = read_json_records if kind == ".json" else read_lines
    try:
        for number, line in read(path, limit=MAX_LINE_BYTES, on_long=long.append):
            while long:
                yield number, Rejection(f"{path}:{number}", "too_long", long.pop(0))
            yield number, line
    except BrokenStreamError:
        raise
    except InputError as error:  # of an array whose text is not JSON
        yield 0, Rejection(str(path), DAMAGED, str(error))
    for message in long:
        yield 0, Rejection(str(path), "too_long", message)


def _article(record: Mapping[str, Any], where: str, source: str, text_field: str | None) -> Article:
    record = dict(record)
    if text_field is None and "text" not in record and any(part in record for part in _PARTS):
        texts = {
            part: _joined(record, part, f"{where}: --text_field")
            for part in _PARTS
            if part in record
        }
    else:
        names = (text_field or "text").split(",")
        joined = [_joined(record, name, f"{where}: --text_field") for name in names]
        texts = {"body": "\n\n".join(text for text in joined if text.strip())}
    if "\0" in "".join(texts.values()):
        raise InputError(f"{where}: NUL character; expected UTF-8 text")
    digits = {name: re.sub(r"^\D*", "", _plain(record, name)) for name in ("pmid", "pmcid")}
    year = re.match(r"\d{4}", _plain(record, "year"))
    return Article(
        place=where,
        source=source,
        title=texts.get("title", ""),
        abstract=texts.get("abstract", ""),
        body=texts.get("body", ""),
        pmid=digits["pmid"] if digits["pmid"].isdecimal() else "",
        pmcid=f"PMC{digits['pmcid']}" if digits["pmcid"].isdecimal() else "",
        doi=_plain(record, "doi"),
        license=_plain(record, "license"),
        year=int(year[0]) if year else None,
        languages=_several(record, "language", "languages"),
        types=_several(record, "type", "types"),
        journal=_plain(record, "journal"),
    )


def _joined(record: dict[str, Any], name: str, flag: str) -> str:
    texts = lookup_texts(record, field_keys(name), flag)
    return "\n\n".join(text for text in texts if text.strip())


def _plain(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    text = str(value).strip() if isinstance(value, str | int) else ""
    text.encode("utf-8")  # raises for half of a surrogate pair, which JSON can escape
    return text


def _several(record: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    values = [record[name] for name in names if record.get(name)]
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return tuple(item for item in items if isinstance(item, str))
