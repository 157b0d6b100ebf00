"""The folder beside an output that is being built: its finished parts, which survive a crash.

A part is a directory that is complete once it exists, with SHA256SUMS and what it depends on.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json, write_json
from biomedlm_jax.integrity import damage, has_sums, write_sums

PART = "part.json"


def parts_folder(out: str | Path) -> Path:
    """Return the directory of the parts of an unfinished output, beside it."""
    path = Path(os.path.realpath(out))
    return path.with_name(f".{path.name}.parts")


@contextlib.contextmanager
def locked_parts_folder(out: str | Path, what: str) -> Iterator[Path]:
    """Make `parts_folder(out)`, lock it while the block runs, and remove it if it is empty then.

    Raises InputError as `locked` does.
    """
    folder = parts_folder(out)
    with locked(folder, what):
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):  # it has parts
                folder.rmdir()


@contextlib.contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
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
