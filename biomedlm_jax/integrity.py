"""SHA256SUMS: the hashes of a directory's files, written when it is finished.

The file has the format of sha256sum(1): `cd DIR && sha256sum --check SHA256SUMS` verifies it, too.
"""

import concurrent.futures
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from biomedlm_jax.buckets import BucketPath
from biomedlm_jax.errors import InputError

SUMS = "SHA256SUMS"
# Orbax changes these after the hashes are taken, in the step that makes a checkpoint valid.
NOT_HASHED = {SUMS, "_CHECKPOINT_METADATA", "commit_success.txt"}
_BLOCK = 2**20


def write_sums(directory: Any) -> None:
    """Hash every file below `directory` (a path, or one of a bucket) into its SHA256SUMS."""
    names = [name for name in _files(directory) if name not in NOT_HASHED]
    sums = zip(_hashes(directory, names), names, strict=True)
    text = "".join(f"{digest}  {name}\n" for digest, name in sums)
    (directory / SUMS).write_text(text)


def has_sums(directory: Any) -> bool:
    """Return whether a directory was finished with hashes."""
    return (directory / SUMS).exists()


def read_sums(directory: Any) -> dict[str, str]:
    """Return the hash of each file; raises InputError if SHA256SUMS is damaged."""
    sums = {}
    for line in (directory / SUMS).read_bytes().split(b"\n")[:-1]:
        digest, _, name = line.decode("utf-8", "replace").partition("  ")
        if len(digest) != 64 or not name or {*digest} - {*"0123456789abcdef"}:
            raise InputError(f"{directory / SUMS} is damaged: got the line {line[:80]!r}")
        sums[name] = digest
    return sums


def damage(
    directory: Any,
    *,
    of: Callable[[str], bool] = lambda name: True,
    share: tuple[int, int] = (0, 1),
    complete: bool = True,
) -> list[str]:
    """Return what differs from SHA256SUMS, each "FILE is missing", "FILE was changed", ...

    `of` chooses files by their names in the directory. `share` (i, n) hashes every n-th file,
    beginning with the i-th: n processes verify a directory together. With `complete`, a file that
    has no hash is damage, too: SHA256SUMS was cut off, or the file is of another directory.
    """
    try:
        sums = read_sums(directory)
    except InputError as error:
        return [str(error).removeprefix(f"{directory}{os.sep}")]
    if not sums:
        return [f"{SUMS} is empty"]
    index, count = share
    listed = [name for name in sorted(sums) if of(name)][index::count]
    files = {*_files(directory)}
    there = [name for name in listed if name in files]
    digests = dict(zip(there, _hashes(directory, there), strict=True))
    problems = [
        f"{name} is missing" if name not in digests else f"{name} was changed after it was written"
        for name in listed
        if digests.get(name) != sums[name]
    ]
    if complete and index == 0:
        others = {name for name in files if of(name)} - NOT_HASHED - {*sums}
        problems += [f"{name} is not in {SUMS}" for name in sorted(others)]
    return problems


def _hashes(directory: Any, names: list[str]) -> list[str]:
    """Return the SHA-256 of files, several at once: hashlib releases the GIL."""
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda name: _hash(directory / name), names))


def _hash(path: Any) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _files(directory: Any, prefix: str = "") -> Iterator[str]:
    """Yield the names of all files below a directory, sorted; links count as what they name."""
    if isinstance(directory, BucketPath):
        yield from sorted(directory.sizes())
        return
    for path in sorted(directory.iterdir(), key=lambda path: path.name):
        name = f"{prefix}{path.name}"
        if path.is_dir():
            yield from _files(path, f"{name}/")
        else:
            yield name
