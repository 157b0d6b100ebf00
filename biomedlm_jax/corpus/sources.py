"""Sources of a corpus: named files of one format, and their records as Articles."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path

from biomedlm_jax.corpus.articles import Article, Deletion, Rejection
from biomedlm_jax.corpus.input_files import FORMATS, XML, format_of, input_files
from biomedlm_jax.corpus.jats import read_jats
from biomedlm_jax.corpus.json_articles import FieldNames, read_json_articles
from biomedlm_jax.corpus.medline import read_medline
from biomedlm_jax.corpus.records import read_json_records, read_parquet_records
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import parse_object
from biomedlm_jax.streams import MAX_LINE_BYTES, read_lines

KINDS = ("medline", "pmc", "text")
FORM = f"[NAME=]FORMAT:PATH[,PATH], FORMAT one of {', '.join(KINDS)}"
LOOKED_AT = 1000  # records, for the names of the fields
_SOURCE = re.compile(rf"(?:([\w.-]+)=)?({'|'.join(KINDS)}):(.+)", re.DOTALL)
# Fields of a record, by those of an Article, where nothing else is said.
_USUAL = {"languages": ("languages", "language"), "types": ("types", "type")}
_TEXTS = ("title", "abstract", "body")

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
class TextRecords:
    """How the records of a source of the kind "text" are read.

    Args:
      fields: fields of a record by those of an Article, ("body", "meta.text"); none: those with
        usual names among the first LOOKED_AT records of a file: text, or title, abstract and body,
        and pmid, pmcid, doi, license, year, language, type, journal.
      subsets: keep only records whose "meta.pile_set_name" is one of these; empty keeps all.
    """

    fields: tuple[tuple[str, str], ...] = ()
    subsets: tuple[str, ...] = ()

    def __post_init__(self):
        known = [field.name for field in fields(FieldNames)]
        for name, _ in self.fields:
            if name not in known:
                raise InputError(f"got a field for {name!r}; expected one of {', '.join(known)}")
        if self.fields:
            self.names_for(())

    def names_for(self, present: Iterable[str]) -> FieldNames:
        """Return the names of the fields in a file, of which `present` are known."""
        if self.fields:
            return FieldNames(**{"body": "", **dict(self.fields)})
        names = {}
        for field in fields(FieldNames):
            choices = _USUAL.get(field.name, (field.name,))
            names[field.name] = next((name for name in choices if name in present), "")
        if "text" in present or not any(names[name] for name in _TEXTS):
            names |= {**dict.fromkeys(_TEXTS, ""), "body": "text"}
        return FieldNames(**names | {"subset": FieldNames().subset})


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


def read_source(source: Source, path: Path, records: TextRecords) -> Iterator[Record]:
    """Yield the records of one file; what cannot be read is a Rejection.

    An article of the kind "text" has its subset as `source`, or the name of the source.
    """
    if source.kind == "medline":
        yield from read_medline(path)
    elif source.kind == "pmc":
        yield from read_jats(path)
    else:
        names = records.names_for(() if records.fields else _field_names(path))
        for record in read_json_articles(path, names, subsets=records.subsets):
            if isinstance(record, Article) and f".{record.source}" in FORMATS:  # of no subset
                record = replace(record, source=source.name)
            yield record


def _field_names(path: Path) -> set[str]:
    """Return the names of all fields of the first records of a file that can be read."""
    kind, names = format_of(path), set()
    if kind == ".txt":
        return names
    read = read_json_records if kind == ".json" else read_lines
    try:
        if kind == ".parquet":
            lines = read_parquet_records(path)
        else:
            lines = read(path, limit=MAX_LINE_BYTES, on_long=lambda message: None)
        for _, record in islice(lines, LOOKED_AT):
            with contextlib.suppress(InputError):  # which reading the file reports, as below
                names.update(parse_object(record, "") if isinstance(record, bytes) else record)
    except InputError:
        pass
    return names
