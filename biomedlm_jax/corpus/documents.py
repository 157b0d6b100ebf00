"""Documents: stream texts out of files, directories and globs in constant memory.

    .txt      the whole file is one document; lines may end in any way, as in Python
    .jsonl    one JSON object a line, with its text in `text_field` (also .json-lines, .ndjson)
    .json     an array of objects, one object, or one object a line
    .parquet  one document a row

All but parquet may be compressed (`.gz`, `.zst`, `.bz2`, `.xz`). The lines of The Pile,
`{"text": ..., "meta": {"pile_set_name": "PubMed Central"}}`, are read with the defaults and
`subsets=["PubMed Abstracts", "PubMed Central"]`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biomedlm_jax.corpus.input_files import format_of, input_files
from biomedlm_jax.corpus.manifest import naming
from biomedlm_jax.corpus.records import read_json_records, read_parquet_records, read_whole
from biomedlm_jax.errors import InputError, counted, one_line
from biomedlm_jax.files import parse_object
from biomedlm_jax.streams import MAX_LINE_BYTES, read_lines

ON_ERROR = ("raise", "skip")
EXAMPLES = 5  # messages of bad lines that are kept
FIX = "; fix the file, or pass --on_error=skip"
# Fields that hold the text of articles, in reading order; an error suggests those of its record.
ARTICLE_FIELDS = ("title", "abstract", "body", "article", "full_text", "content", "contents")
NAMES = ("id", "pmid", "pmcid", "doi")  # fields that name a document


@dataclass(frozen=True)
class Document:
    """One text and its place, "file:line", for messages."""

    text: str
    source: str
    names: Mapping[str, str] = field(default_factory=dict)  # those of NAMES that its record has


@dataclass
class Skipped:
    """Counts of what `read_documents` left out."""

    bad: int = 0  # unreadable lines, with on_error="skip"
    empty: int = 0  # texts that are empty or white space
    subsets: Counter[str] = field(default_factory=Counter)  # lines of subsets not selected
    examples: list[str] = field(default_factory=list)  # errors of the first five bad lines
    files: list[str] = field(default_factory=list)  # hidden or of unknown format, in directories

    def add(self, other: "Skipped") -> None:
        """Add the counts of files that were read after these."""
        self.bad += other.bad
        self.empty += other.empty
        self.subsets.update(other.subsets)
        self.examples = [*self.examples, *other.examples][:EXAMPLES]
        self.files += other.files

    def __str__(self) -> str:
        """Return one line, "nothing" if all counts are zero."""
        subsets, files = (", ".join(names[:30]) for names in (sorted(self.subsets), self.files))
        parts = [
            (self.bad, "bad line", f", the first: {next(iter(self.examples), '')}"),
            (self.empty, "empty text", ""),
            (self.subsets.total(), "line", f" of other subsets: {subsets}"),
            (len(self.files), "file", f", hidden or of unknown format: {files}"),
        ]
        text = "; ".join(counted(count, noun) + rest for count, noun, rest in parts if count)
        return one_line(text) or "nothing"


@dataclass(frozen=True, kw_only=True)
class DocumentReader:
    """Reads documents out of files.

    A null field is an empty one. A list of strings is a text of that many paragraphs, which are
    joined by a blank line.

    Args:
      text_field: field of a JSON object that holds its text. "meta.text" is the field "text"
        inside "meta"; "title,abstract,body" joins fields by a blank line and omits empty ones.
      subsets: keep only lines whose `subset_field` is one of these; empty keeps all lines.
      on_error: "raise" stops at the first bad line; "skip" counts it in `skipped` and continues.
        A damaged compressed stream or JSON array ends its file.
      max_document_bytes: a larger line, JSON object or text file is bad. It bounds the memory.

    Raises InputError for bad arguments.
    """

    text_field: str = "text"
    subsets: tuple[str, ...] = ()
    subset_field: str = "meta.pile_set_name"
    on_error: str = ON_ERROR[0]
    max_document_bytes: int = MAX_LINE_BYTES

    def __post_init__(self):
        if self.on_error not in ON_ERROR:
            expected = ", ".join(ON_ERROR)
            raise InputError(f"got on_error={self.on_error!r}; expected one of {expected}")
        if self.max_document_bytes < 1:
            raise InputError(
                f"got max_document_bytes={self.max_document_bytes}; expected at least 1"
            )
        self._reader(Skipped())

    def files(self, paths: Iterable[str | Path], skipped: Skipped) -> list[Path]:
        """Return `input_files(paths)`; InputError also for plain text if there are `subsets`."""
        files = input_files(paths, skipped.files)
        plain = [file for file in files if format_of(file) == ".txt"]
        if self.subsets and plain:
            got = f"{plain[0]} is plain text, which has no subsets"
            raise InputError(f"{got}; give JSON lines only")
        return files

    def read(self, files: Iterable[Path], skipped: Skipped) -> Iterator[Document]:
        """Yield the documents of files, file by file and line by line; there may be none.

        Raises InputError, with file and line, for invalid UTF-8 or JSON, a field that is missing or
        not a text, or a damaged compressed stream.
        """
        reader = self._reader(skipped)
        for path in files:
            with naming(path):
                yield from reader.read(path)

    def no_documents(self, files: list[Path], skipped: Skipped) -> InputError:
        """Return the error of files without a document."""
        of = f" of the subsets {', '.join(sorted(self.subsets))}" if self.subsets else ""
        where = f"{counted(len(files), 'file')}, the first is {files[0]}"
        return InputError(f"no documents{of} in {where}; skipped: {skipped}")

    def _reader(self, skipped: Skipped) -> "_Reader":
        return _Reader(
            text_fields=[_keys(name) for name in self.text_field.split(",")],
            subsets=frozenset(self.subsets),
            subset_field=_keys(self.subset_field),
            raises=self.on_error == "raise",
            limit=self.max_document_bytes,
            skipped=skipped,
        )


def read_documents(
    paths: Iterable[str | Path],
    *,
    skipped: Skipped | None = None,
    subsets: Iterable[str] = (),
    **options: Any,
) -> Iterator[Document]:
    """Return the documents of `input_files(paths)`, file by file and line by line.

    Args:
      skipped: counts what is left out. Empty texts always are.
      subsets: of `DocumentReader`, as are the other options.

    Raises:
      InputError: immediately for bad arguments and paths.
      InputError: what `DocumentReader.read` raises, and if there is no document.
    """
    skipped = Skipped() if skipped is None else skipped
    chosen = (subsets,) if isinstance(subsets, str) else tuple(subsets)
    reader = DocumentReader(subsets=chosen, **options)
    return _documents(reader, reader.files(paths, skipped), skipped)


def _documents(reader: DocumentReader, files: list[Path], skipped: Skipped) -> Iterator[Document]:
    documents = reader.read(files, skipped)
    first = next(documents, None)
    if first is None:
        raise reader.no_documents(files, skipped)
    yield first
    yield from documents


class _MissingFieldError(InputError):
    """A record lacks a field; where all do, skipping them is no fix."""


class _BadFileError(InputError):
    """The rest of a file cannot be read."""


@dataclass(frozen=True)
class _Reader:
    text_fields: list[list[str]]  # each a path of keys
    subsets: frozenset[str]  # empty: all
    subset_field: list[str]
    raises: bool
    limit: int  # bytes of a record or a text file
    skipped: Skipped

    def read(self, path: Path) -> Iterator[Document]:
        plain, complete = format_of(path) == ".txt", False
        try:
            for number, record in self.records(path):
                where, names = f"{path}:{number}", {}
                try:
                    if isinstance(record, bytes) and plain:
                        text = record.decode("utf-8-sig")
                        text = text.replace("\r\n", "\n").replace("\r", "\n")
                    else:
                        text, names = self.parse(record, where)
                    if "\0" in (text or ""):  # of binary data, or UTF-16 without a mark
                        raise InputError(f"{where}: NUL character; expected UTF-8 text")
                except ValueError as error:
                    useless = isinstance(error, _MissingFieldError) and not complete
                    place = f"{where}: " * isinstance(error, UnicodeError)
                    self.refuse(f"{place}{error}", fix="" if useless else FIX)
                    continue
                complete = complete or text is not None  # a record had the fields
                if text is not None and text.strip():
                    yield Document(text, where, names)
                elif text is not None:
                    self.skipped.empty += 1
        except _BadFileError as error:
            self.refuse(str(error))

    def records(self, path: Path) -> Iterator[tuple[int, bytes | dict]]:
        """Yield (line or row, text or JSON object or row); raises _BadFileError."""
        kind = format_of(path)
        try:
            if kind == ".txt":
                yield 1, read_whole(path, limit=self.limit)
            elif kind == ".parquet":
                subset = [self.subset_field] if self.subsets else []
                columns = {keys[0] for keys in [*self.text_fields, *subset]}
                yield from read_parquet_records(path, columns=columns, optional=NAMES)
            else:
                read = read_json_records if kind == ".json" else read_lines
                on_long = None if self.raises else self.refuse
                yield from read(path, limit=self.limit, on_long=on_long)
        except ValueError as error:
            raise _BadFileError(error) from error

    def parse(self, record: bytes | dict, where: str) -> tuple[str | None, dict[str, str]]:
        """Return the text of a record and its names; None if it is blank or of another subset."""
        if isinstance(record, bytes):
            if not record.strip():
                return None, {}
            record = parse_object(record.strip(), where)
        if self.subsets:
            names = _lookup(record, self.subset_field, f"{where}: --subset_field")
            if not self.subsets.intersection(names):
                self.skipped.subsets[", ".join(names) or "(null)"] += 1
                return None, {}
        parts = [
            paragraph
            for keys in self.text_fields
            for paragraph in _lookup(record, keys, f"{where}: --text_field")
        ]
        named = {name: record.get(name) for name in NAMES}
        names = {name: str(value) for name, value in named.items() if _is_name(value)}
        return "\n\n".join(part for part in parts if part.strip()), names

    def refuse(self, error: str, *, fix: str = FIX) -> None:
        message = error + fix
        if self.raises:
            raise InputError(message)
        self.skipped.bad += 1
        self.skipped.examples = [*self.skipped.examples, message][:EXAMPLES]


def _keys(name: str) -> list[str]:
    keys = name.strip().split(".")
    if not all(keys):
        raise InputError(f"got the field name {name!r}; expected text, meta.text or title,body")
    return keys


def _lookup(record: dict, keys: list[str], flag: str) -> list[str]:
    """Return the texts of a field: one, those of a list, or "" for null."""
    value, name = record, ".".join(keys)
    for key in keys:
        if value is None:
            break
        if not (isinstance(value, dict) and key in value):
            texts = [name for name in ARTICLE_FIELDS if _is_text(record.get(name))]
            fits = texts and flag.endswith("--text_field")
            advice = f"use --text_field={','.join(texts)}" if fits else "name one of them"
            got = f"{flag}={name} is not among the fields {sorted(record)}"
            raise _MissingFieldError(f"{got}; {advice}")
        value = value[key]
    values: list[Any] = value if isinstance(value, list) else [value]
    texts = ["" if text is None else text for text in values]
    for text in texts:
        if not isinstance(text, str):
            kind = f"{'a list with ' * isinstance(value, list)}{type(text).__name__}"
            raise InputError(f"{flag}={name} is {kind}; expected a string or a list of strings")
        text.encode("utf-8")  # raises for half of a surrogate pair, which JSON can escape
    return texts


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _is_text(value: Any) -> bool:
    items = value if isinstance(value, list) else [value]
    return value is not None and all(isinstance(item, str | None) for item in items)
