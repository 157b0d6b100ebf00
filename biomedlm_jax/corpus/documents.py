"""Documents: one stream of texts out of files, directories and globs, in constant memory.

    .txt      the whole file is one document, as it stands
    .jsonl    one JSON object a line; `text_field` says where its text is (also .json-lines)

Either may be compressed (`.gz`, `.zst`) and is decoded while it is read. The Pile's lines,
`{"text": ..., "meta": {"pile_set_name": "PubMed Central"}}`, are read with the defaults and
`subsets=["PubMed Abstracts", "PubMed Central"]`.
"""

import glob
import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

FORMATS = (".txt", ".jsonl", ".json-lines")
COMPRESSIONS = (".gz", ".zst")
KNOWN = f"the known formats are {', '.join(FORMATS)}, each also with {' or '.join(COMPRESSIONS)}"
ON_ERROR = ("raise", "skip")

_BROKEN_STREAM = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    text: str
    source: str  # "file:line", for messages


@dataclass
class Skipped:
    """What a reading left out, and why; give one to `read_documents` and look at it afterwards."""

    bad: int = 0  # lines that could not be read, under on_error="skip"
    empty: int = 0  # texts of nothing but white space
    subsets: Counter[str] = field(default_factory=Counter)  # lines of a subset nobody asked for
    examples: list[str] = field(default_factory=list)  # the first five bad lines, as errors

    def __str__(self) -> str:
        """One line, "nothing" if so."""
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
      text_field: where a JSON object keeps its text; "meta.text" looks inside "meta", and
        "title,abstract,body" joins several fields by a blank line, leaving out empty ones.
      subsets: keep only lines whose `subset_field` (dotted, too) is one of these; empty keeps all.
      on_error: "raise" stops at the first bad line; "skip" counts it in `skipped` and goes on.
        What follows a break in a compressed stream is lost: its file ends there.
      skipped: is told what was left out; empty texts always are.

    Raises:
      ValueError: at once for bad arguments and paths; then for a bad line, naming file and line
        (invalid UTF-8 or JSON, no object, a missing field or one that is no string, a broken
        compressed stream); at the end if there was no document.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"got on_error={on_error!r}; it is one of {', '.join(ON_ERROR)}")
    fields, wanted = [_keys(name) for name in text_field.split(",")], frozenset(_several(subsets))
    skipped = Skipped() if skipped is None else skipped
    reader = _Reader(fields, wanted, _keys(subset_field), on_error, skipped)
    files = input_files(paths)
    plain = [file for file in files if _format(file) == ".txt"]
    if wanted and plain:
        raise ValueError(f"{plain[0]} is plain text, which has no subsets; give JSON lines only")
    return reader.documents(files)


def input_files(paths: Iterable[str | Path]) -> list[Path]:
    """List the files that `paths` name, each once, in the order given, sorted within each path.

    Of a directory (searched recursively) the files of a known format count, and hidden ones do
    not; a file that is named, or matched by a glob, must be of a known format.

    Raises:
      ValueError: no paths, an unknown format, a directory or glob without any file to read;
        FileNotFoundError for a path that does not exist.
    """
    files: dict[Path, Path] = {}
    for path in _several(paths):
        for file in _expand(Path(path)):
            files.setdefault(file.resolve(), file)
    if not files:
        raise ValueError("no input; name at least one file, directory or glob")
    return list(files.values())


def _several(values: Iterable[str | Path]) -> list[str | Path]:
    # A single string is an iterable of letters, which nobody ever means.
    return [values] if isinstance(values, str | Path) else list(values)


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
            raise ValueError(f"cannot tell the format of {file} from its name; {KNOWN}")
    return sorted(files)


def _walk(directory: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:  # a directory that cannot be listed must not look empty
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
    text_fields: list[tuple[str, ...]]  # each a path of keys
    subsets: frozenset[str]  # empty: all
    subset_field: tuple[str, ...]
    on_error: str
    skipped: Skipped

    def documents(self, files: list[Path]) -> Iterator[Document]:
        stream = (document for path in files for document in self.file(path))
        first = next(stream, None)
        if first is None:
            of = f" of the subsets {', '.join(sorted(self.subsets))}" if self.subsets else ""
            where = f"{len(files)} file(s), {files[0]} the first"
            raise ValueError(f"no documents{of} in {where}; skipped: {self.skipped}")
        yield first
        yield from stream

    def file(self, path: Path) -> Iterator[Document]:
        whole, line = _format(path) == ".txt", 0
        try:
            for line, raw in enumerate([b"".join(_lines(path))] if whole else _lines(path), 1):
                try:
                    text = raw.decode("utf-8-sig") if whole else self.text(raw)
                except (ValueError, RecursionError) as error:
                    self.refuse(f"{path}:{line}: {error}")
                    continue
                if text is not None and text.strip():
                    yield Document(text, f"{path}:{line}")
                elif text is not None:
                    self.skipped.empty += 1
        except _BROKEN_STREAM as error:
            self.refuse(f"{path}:{line + 1}: the compressed stream is broken or cut off ({error})")

    def text(self, line: bytes) -> str | None:
        """The text in a line of JSON, or None if the line is blank or of another subset."""
        line = line.strip()
        if not line:
            return None
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except json.JSONDecodeError as error:
            got = repr(error.doc[:40])
            raise ValueError(f"got {got}, which is no JSON object ({error.msg})") from None
        if not isinstance(record, dict):
            raise ValueError(f"got JSON of type {type(record).__name__}; a line is one object")
        if self.subsets:
            subset = _lookup(record, self.subset_field, "--subset_field")
            if subset not in self.subsets:
                self.skipped.subsets[subset] += 1
                return None
        parts = [_lookup(record, keys, "--text_field") for keys in self.text_fields]
        return "\n\n".join(part for part in parts if part.strip())

    def refuse(self, what: str) -> None:
        message = f"{what}; mend it, or leave such input out with --on_error=skip"
        if self.on_error == "raise":
            raise ValueError(message)
        self.skipped.bad += 1
        self.skipped.examples = [*self.skipped.examples, message][:5]


def _keys(name: str) -> tuple[str, ...]:
    keys = tuple(name.strip().split("."))
    if not all(keys):
        raise ValueError(f"got the field name {name!r}; it is like text, meta.text or title,body")
    return keys


def _lookup(record: dict, keys: tuple[str, ...], flag: str) -> str:
    value, name = record, ".".join(keys)
    for key in keys:
        if not (isinstance(value, dict) and key in value):
            raise ValueError(f"got no field {name!r} ({flag}) but {sorted(record)}")
        value = value[key]
    if not isinstance(value, str):
        raise ValueError(f"got {type(value).__name__} in the field {name!r}; it holds a string")
    value.encode("utf-8")  # JSON can escape half of a surrogate pair, which raises here
    return value


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, decompressed, with their newlines."""
    compression = path.suffix.lower()
    with path.open("rb") as file:
        if compression not in COMPRESSIONS:
            yield from file
        elif not file.peek(1):  # not even a header, which gzip would take for an empty text
            raise EOFError("the file has no bytes")
        elif compression == ".gz":
            with gzip.open(file) as text:
                yield from text
        else:
            yield from _zstd_lines(file)


def _zstd_lines(file: io.BufferedReader) -> Iterator[bytes]:
    # zstandard's own stream_reader takes a file that was cut off for one that has ended, so the
    # frames are followed here. The window is the largest there is (`zstd --long=31`).
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame, unfinished = None, b""
    while data := file.read(zstandard.DECOMPRESSION_RECOMMENDED_INPUT_SIZE):
        while data:
            frame = frame or decompressor.decompressobj()
            *lines, unfinished = (unfinished + frame.decompress(data)).split(b"\n")
            yield from (line + b"\n" for line in lines)
            data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame:
        raise EOFError("the file ends inside a frame")
    yield unfinished
