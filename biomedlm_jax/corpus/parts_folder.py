"""The folder beside an output that is being built: its finished parts, which survive a crash.

A part is a directory that is complete once it exists, with SHA256SUMS and what it depends on.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from biomedlm_jax.errors import KEPT, InputError, counted
from biomedlm_jax.files import read_json, write_json
from biomedlm_jax.integrity import damage, has_sums, write_sums
from biomedlm_jax.streams import reading

PART = "part.json"
LIVE = "live.json"  # the counts of a part that is being made
LIVE_SECONDS = 2.0


def parts_folder(out: str | Path) -> Path:
    """Return the directory of the parts of an unfinished output, beside it."""
    path = Path(os.path.realpath(out))
    return path.with_name(f".{path.name}.parts")


@contextlib.contextmanager
def locked_parts_folder(out: str | Path, what: str) -> Generator[Path]:
    """Make `parts_folder(out)`, lock it while the block runs, and remove it when that succeeds.

    After an error its finished parts stay, and a note of the exception names the folder.

    Raises InputError as `locked` does.
    """
    folder = parts_folder(out)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder, what):
        try:
            yield folder
        except BaseException as error:
            for part in unfinished(folder):
                shutil.rmtree(part, ignore_errors=True)
            if finished := sum(map(has_sums, folder.iterdir())):
                kept = f"{counted(finished, 'finished part')} in {folder}"
                error.add_note(f"{KEPT}{kept}; the same command continues with them")
            with contextlib.suppress(OSError):  # it has parts
                folder.rmdir()
            raise
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Generator[None]:
    """Make a directory, and lock it while the block runs.

    Raises InputError, which names `what` is built, if another process has the lock.
    """
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another process builds {what}; {folder} is locked") from None
        if not folder.exists() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise InputError(f"another process built {what} meanwhile; {folder} was removed")
        yield
    finally:
        os.close(descriptor)


def remove_other_parts(folder: Path, kept: set[str]) -> None:
    """Delete parts with other names, and what killed processes left."""
    for left in folder.iterdir():
        if left.is_dir() and left.name not in kept:
            shutil.rmtree(left)
        elif left.name not in kept:
            left.unlink()


def unique_name(path: Path) -> Path:
    """Return a hidden name beside a path for what will be moved there: a task may run twice."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def make_once(
    folder: Path, identity: Mapping[str, Any], write: Callable[[Path], Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the part.json of a part: `identity` and what `write` returns, which fills a directory.

    `write` is not called if the part is there, undamaged, and has the same identity. Two processes
    may make the same part at the same time; one of them stays.
    """
    if folder.exists():
        # A power cut may have lost what was not written to the disk.
        if has_sums(folder) and not damage(folder):
            part = read_json(folder / PART)
            if all(part.get(name) == value for name, value in identity.items()):
                return part
        shutil.rmtree(folder, ignore_errors=True)
    new = unique_name(folder)
    new.mkdir()
    try:
        part = {**identity, **write(new)}
        (new / LIVE).unlink(missing_ok=True)
        write_json(new / PART, part)
        write_sums(new)
        try:
            new.rename(folder)
        except OSError:
            if not has_sums(folder):  # which another process made meanwhile
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return part


def unfinished(folder: Path) -> Iterator[Path]:
    """Yield the directories of the parts that are being made."""
    return folder.glob(".*")


class LiveCounts:
    """Writes the counts of a part that is being made to `folder / LIVE`, every few seconds."""

    def __init__(self, folder: Path, files: Sequence[Path]):
        """Begin a part that is made of `files`, read in this thread by `streams.open_binary`."""
        self._file, self._due = folder / LIVE, time.monotonic() + LIVE_SECONDS
        sizes = accumulate((file.stat().st_size for file in files), initial=0)
        self._before = dict(zip(files, sizes, strict=False))  # bytes of the files before each

    def write(self, counts: Mapping[str, Any]) -> None:
        """Write `counts`, and as `read_bytes` the bytes of the files that were read, if due."""
        if time.monotonic() > self._due:
            file, position = reading()
            read = self._before[file] + position if file in self._before else 0
            write_json(self._file, {**counts, "read_bytes": read})
            self._due = time.monotonic() + LIVE_SECONDS


def live_counts(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what `LiveCounts` wrote of each part that is being made."""
    for part in unfinished(folder):
        with contextlib.suppress(InputError, OSError):  # not written yet, or no longer there
            yield read_json(part / LIVE)


def bytes_read(parts: Mapping[Path, int], live: Sequence[Mapping[str, Any]]) -> int:
    """Return how many bytes of their files parts have read, by the bytes of those of each."""
    finished = sum(size for part, size in parts.items() if part.exists())
    return finished + sum(counts["read_bytes"] for counts in live)
