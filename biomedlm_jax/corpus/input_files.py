"""The files of a corpus: those of known formats in files, directories and globs."""

import glob
import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from biomedlm_jax.corpus.corpus_manifest import INPUTS, LEFT_OUT, MANIFEST, is_corpus, shards_of
from biomedlm_jax.errors import InputError
from biomedlm_jax.streams import COMPRESSIONS, open_binary

LINES = (".jsonl", ".json-lines", ".ndjson")
FORMATS = (".txt", *LINES, ".json", ".parquet")
XML = (".xml", ".nxml", ".tar", ".tgz")  # of the publishers of articles
KNOWN = (
    f"the known formats are {', '.join(FORMATS)}, each but the last also with "
    f"{', '.join(COMPRESSIONS[:-1])} or {COMPRESSIONS[-1]}"
)
BATCH_BYTES = 1 << 24  # of small files that are read together
BATCH_FILES = 1000
INFLATION = 4  # or so, of compressed XML and JSON
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SPLIT = re.compile(rf"(?:^|[-_.])({'|'.join(_SPLITS)})(?:$|[-_.\d])")
_SHARD = re.compile(r"(?P<name>.*?)-(?P<number>\d+)-of-(?P<count>\d+)(?P<end>\..+)")


def input_files(
    paths: Iterable[str | Path],
    skipped: list[str] | None = None,
    *,
    formats: tuple[str, ...] = FORMATS,
) -> list[Path]:
    """List the files of `paths`, each once, in the given order, sorted within each path.

    A directory is searched recursively, linked directories too, for files of a known format; the
    others, and hidden files and directories, are added to `skipped`. Of a corpus that
    `build-corpus` wrote, its documents are listed and nothing else.

    Raises InputError for no paths, a file of unknown format, one of a corpus without documents, a
    directory or glob without files, and a path that does not exist or a link to one.
    """
    files: dict[Path, Path] = {}
    omitted: dict[str, None] = {}
    for path in [paths] if isinstance(paths, str | Path) else paths:
        for file in _expand(Path(path), omitted, formats):
            files.setdefault(file.resolve(), file)
    if not files:
        raise InputError("no input; name at least one file, directory or glob")
    if skipped is not None:
        skipped += omitted
    _warn_of_splits(list(files.values()))
    return list(files.values())


def _warn_of_splits(files: list[Path]) -> None:
    """Warn if the names say that files belong to several splits, or that some are missing."""
    splits: dict[str, Path] = {}
    shards: dict[tuple[Path, str, int], set[int]] = {}
    for file in files:
        if match := _SPLIT.search(file.stem.lower()):
            splits.setdefault(_SPLITS[match[1]], file)
        if match := _SHARD.fullmatch(file.name):
            key = (file.parent, match["name"] + match["end"], int(match["count"]))
            shards.setdefault(key, set()).add(int(match["number"]))
    if len(splits) > 1:
        got = f"files of several splits are read: {', '.join(map(str, splits.values()))}"
        fix = "name files, or a glob such as 'DIR/train*', to choose"
        warnings.warn(f"{got}; {fix}", RuntimeWarning, stacklevel=3)
    for (folder, name, count), there in shards.items():
        if len(there) < count:
            got = f"{folder} has {len(there)} of the {count} parts of {name}"
            warnings.warn(f"{got}; fetch the others", RuntimeWarning, stacklevel=3)


def _expand(path: Path, omitted: dict[str, None], formats: tuple[str, ...]) -> list[Path]:
    known = KNOWN if formats == FORMATS else f"the known formats are {', '.join(formats)}"
    if path.is_dir():
        files = _walk(path, omitted, formats)
    elif path.exists():
        files = [path]
    elif glob.has_magic(str(path)):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
        files = [match for match in matches if not match.is_dir()]
        folders = [match for match in matches if match.is_dir()]
        files += [file for folder in folders for file in _walk(folder, omitted, formats)]
    else:
        raise InputError(f"no such file or directory: {path}")
    if not files:
        raise InputError(f"no file to read in {path}; {known}")
    for file in files:
        if not format_of(file, formats):
            raise InputError(f"{file} has a name of unknown format; {known}")
        if not file.exists():
            raise InputError(f"{file} is a broken symbolic link; remove or repair it")
        if file.name in (INPUTS, LEFT_OUT, MANIFEST) and is_corpus(file.parent):
            fix = f"name {file.parent}/, or '{file.parent}/documents-*'"
            raise InputError(f"{file} has no documents, but what the corpus was made of; {fix}")
    return sorted(files)


def _walk(directory: Path, omitted: dict[str, None], formats: tuple[str, ...]) -> list[Path]:
    def fail(error: OSError) -> None:  # by default os.walk omits a directory it cannot list
        raise error

    files, visited = [], set()
    for folder, folders, names in os.walk(directory, onerror=fail, followlinks=True):
        visited.add(os.path.realpath(folder))
        hidden = sorted(name for name in folders if name.startswith("."))
        omitted.update((os.path.join(folder, name, ""), None) for name in hidden)
        # A link to a directory that was visited would repeat its files, or never end.
        folders[:] = sorted(
            name
            for name in set(folders).difference(hidden)
            if os.path.realpath(os.path.join(folder, name)) not in visited
        )
        if formats == FORMATS and is_corpus(Path(folder)):
            files += shards_of(Path(folder))
            folders.clear()
            continue
        for file in (Path(folder, name) for name in sorted(names)):
            special = file.exists() and not file.is_file()  # a pipe would block the reader
            if file.name.startswith(".") or special or not format_of(file, formats):
                omitted[str(file)] = None
            else:
                files.append(file)
    return files


def format_of(path: Path, formats: tuple[str, ...] = FORMATS) -> str | None:
    """Return the format of a file by its name, without a compression; None if it is not known."""
    name = path.name.lower()
    compressed = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    name = name.removesuffix(compressed)
    known = next((suffix for suffix in formats if name.endswith(suffix)), None)
    return None if known == ".parquet" and compressed else known


def batches(files: Sequence[Path]) -> Iterator[list[Path]]:
    """Yield consecutive files: one large file, or small ones, at most BATCH_BYTES together."""
    batch, size = [], 0
    for file in files:
        packed = file.suffix.lower() in (*COMPRESSIONS, ".tgz")
        there = file.stat().st_size * (INFLATION if packed else 1)
        if batch and (size + there > BATCH_BYTES or len(batch) == BATCH_FILES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += there
    if batch:
        yield batch


def describe(file: Path) -> dict[str, Any]:
    """Return path, bytes and SHA-256 of a file."""
    with open_binary(file) as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        return {"path": str(file), "bytes": os.fstat(content.fileno()).st_size, "sha256": digest}


def check_sizes(inputs: Iterable[Mapping[str, Any]]) -> None:
    """Raise InputError for a file that is not as large as when it was described."""
    for before in inputs:
        if Path(before["path"]).stat().st_size != before["bytes"]:
            raise InputError(f"{before['path']} changed while it was read; start again")
