"""Documents: stream texts out of files, directories and globs in constant memory.

    .txt      the whole file is one document
    .jsonl    one JSON object a line, with its text in `text_field` (also .json-lines)

Either may be compressed (`.gz`, `.zst`). The lines of The Pile,
`{"text": ..., "meta": {"pile_set_name": "PubMed Central"}}`, are read with the defaults and
`subsets=["PubMed Abstracts", "PubMed Central"]`.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from biomedlm_jax.files import COMPRESSIONS, BrokenStreamError, parse_object, read_lines

FORMATS = (".txt", ".jsonl", ".json-lines")
KNOWN = f"the known formats are {', '.join(FORMATS)}, each also with {' or '.join(COMPRESSIONS)}"
ON_ERROR = ("raise", "skip")
# Fields that hold the text of articles, in reading order; an error suggests those of its record.
ARTICLE_FIELDS = ("title", "abstract", "body", "article", "full_text", "content", "contents")


@dataclass(frozen=True)
class Document:
    """One text and its place, "file:line", for messages."""

    text: str
    source: str


@dataclass
class Skipped:
    """Counts of what `read_documents` left out."""

    bad: int = 0  # unreadable lines, with on_error="skip"
    empty: int = 0  # texts that are empty or white space
    subsets: Counter[str] = field(default_factory=Counter)  # lines of subsets not selected
    examples: list[str] = field(default_factory=list)  # errors of the first five bad lines

    def __str__(self) -> str:
        """Return one line, "nothing" if all counts are zero."""
        parts = [
            (self.bad, f"bad lines, the first: {next(iter(self.examples), '')}"),
            (self.empty, "empty texts"),
            (self.subsets.total(), f"of other subsets: {', '.join(sorted(self.subsets)[:30])}"),
        ]
        return "; ".join(f"{count:,} {what}" for count, what in parts if count) or "nothing"


def read_documents(
    paths: Iterable[str | Path],
    *,
    text_field: str = "text",
    subsets: Iterable[str] = (),
    subset_field: str = "meta.pile_set_name",
    on_error: str = "raise",
    skipped: Skipped | None = None,
) -> Iterator[Document]:
    """Return the documents of `input_files(paths)`, file by file and line by line.

    Args:
      text_field: field of a JSON object that holds its text. "meta.text" is the field "text"
        inside "meta"; "title,abstract,body" joins fields by a blank line and omits empty ones.
      subsets: keep only lines whose `subset_field` is one of these; empty keeps all lines.
      on_error: "raise" stops at the first bad line; "skip" counts it in `skipped` and continues.
        A damaged compressed stream ends its file.
      skipped: counts what is left out. Empty texts always are.

    Raises:
      ValueError, FileNotFoundError: immediately for bad arguments and paths.
      ValueError: while reading, with file and line, for invalid UTF-8 or JSON, a field that is
        missing or not a string, or a damaged compressed stream; and if there is no document.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"got on_error={on_error!r}; expected one of {', '.join(ON_ERROR)}")
    reader = _Reader(
        text_fields=[_keys(name) for name in text_field.split(",")],
        subsets=frozenset([subsets] if isinstance(subsets, str) else subsets),
        subset_field=_keys(subset_field),
        raises=on_error == "raise",
        skipped=Skipped() if skipped is None else skipped,
    )
    files = input_files(paths)
    plain = [file for file in files if _format(file) == ".txt"]
    if reader.subsets and plain:
        raise ValueError(f"{plain[0]} is plain text, which has no subsets; give JSON lines only")
    return reader.documents(files)


def input_files(paths: Iterable[str | Path]) -> list[Path]:
    """List the files of `paths`, each once, in the given order, sorted within each path.

    A directory is searched recursively for files of a known format; hidden ones are ignored.

    Raises ValueError for no paths, a file of unknown format, or a directory or glob without files,
    and FileNotFoundError for a path that does not exist.
    """
    files: dict[Path, Path] = {}
    for path in [paths] if isinstance(paths, str | Path) else paths:
        for file in _expand(Path(path)):
            files.setdefault(file.resolve(), file)
    if not files:
        raise ValueError("no input; name at least one file, directory or glob")
    return list(files.values())


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        files = [file for file in _walk(path) if _format(file)]
    elif path.exists():
        files = [path]
    elif glob.has_magic(str(path)):
        files = [file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file()]
    else:
        raise FileNotFoundError(f"no such file or directory: {path}")
    if not files:
        raise ValueError(f"no file to read in {path}; {KNOWN}")
    for file in files:
        if not _format(file):
            raise ValueError(f"{file} has a name of unknown format; {KNOWN}")
    return sorted(files)


def _walk(directory: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:  # by default os.walk omits a directory it cannot list
        raise error

    for folder, folders, names in os.walk(directory, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _format(path: Path) -> str | None:
    name = path.name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), None)


@dataclass(frozen=True)
class _Reader:
    text_fields: list[list[str]]  # each a path of keys
    subsets: frozenset[str]  # empty: all
    subset_field: list[str]
    raises: bool
    skipped: Skipped

    def documents(self, files: list[Path]) -> Iterator[Document]:
        documents = (document for path in files for document in self.read(path))
        first = next(documents, None)
        if first is None:
            of = f" of the subsets {', '.join(sorted(self.subsets))}" if self.subsets else ""
            where = f"{len(files)} file(s), the first is {files[0]}"
            raise ValueError(f"no documents{of} in {where}; skipped: {self.skipped}")
        yield first
        yield from documents

    def read(self, path: Path) -> Iterator[Document]:
        lines, plain = read_lines(path), _format(path) == ".txt"
        try:
            for number, line in [(1, b"".join(line for _, line in lines))] if plain else lines:
                where = f"{path}:{number}"
                try:
                    text = line.decode("utf-8-sig") if plain else self.parse(line, where)
                except UnicodeError as error:
                    self.refuse(f"{where}: {error}")
                    continue
                except ValueError as error:
                    self.refuse(str(error))
                    continue
                if text is not None and text.strip():
                    yield Document(text, where)
                elif text is not None:
                    self.skipped.empty += 1
        except BrokenStreamError as error:
            self.refuse(str(error))

    def parse(self, line: bytes, where: str) -> str | None:
        """Return the text of a line, or None if the line is blank or of another subset."""
        if not line.strip():
            return None
        record = parse_object(line.strip(), where)
        if self.subsets:
            subset = _lookup(record, self.subset_field, f"{where}: --subset_field")
            if subset not in self.subsets:
                self.skipped.subsets[subset] += 1
                return None
        parts = [_lookup(record, keys, f"{where}: --text_field") for keys in self.text_fields]
        return "\n\n".join(part for part in parts if part.strip())

    def refuse(self, error: str) -> None:
        message = f"{error}; fix the file, or pass --on_error=skip"
        if self.raises:
            raise ValueError(message)
        self.skipped.bad += 1
        self.skipped.examples = [*self.skipped.examples, message][:5]


def _keys(name: str) -> list[str]:
    keys = name.strip().split(".")
    if not all(keys):
        raise ValueError(f"got the field name {name!r}; expected text, meta.text or title,body")
    return keys


def _lookup(record: dict, keys: list[str], flag: str) -> str:
    value, name = record, ".".join(keys)
    for key in keys:
        if not (isinstance(value, dict) and key in value):
            texts = [name for name in ARTICLE_FIELDS if isinstance(record.get(name), str)]
            fits = texts and flag.endswith("--text_field")
            advice = f"; use --text_field={','.join(texts)}" if fits else ""
            raise ValueError(f"{flag}={name} is not among the fields {sorted(record)}{advice}")
        value = value[key]
    if not isinstance(value, str):
        raise ValueError(f"{flag}={name} is {type(value).__name__}; expected a string")
    value.encode("utf-8")  # raises for half of a surrogate pair, which JSON can escape
    return value
