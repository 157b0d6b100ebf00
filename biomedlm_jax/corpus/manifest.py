"""The manifest of a directory of token rows: what was built, from what, and a fingerprint.

It lists the files of the rows, so that a missing, additional, truncated or foreign one is refused.
"""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from biomedlm_jax.buckets import BucketPath, as_path
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import content_hash, read_json

FORMAT = {"format": "biomedlm_jax token rows", "version": 1}
MANIFEST, ROWS = "manifest.json", "rows"  # the file and the TFDS dataset in the directory
# Of a shard: its first records, and the end of its index with the block (64 KiB) after it.
# Manifests depend on it: a change would refuse the rows that were built before.
END_BYTES = 1 << 17
MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_ADVICE = "build token rows with biomedlm build-tokens"
_CIRCUMSTANCES = (
    *("skipped", "inputs", "corpora", "special_text", "files", "fingerprint", "checksum"),
)


class Manifest(TypedDict):
    """Facts about token rows. `length`, `vocab_size` and `eos_id` determine the model's."""

    format: str
    version: int
    length: int  # token ids in a row: the model's context length
    vocab_size: int  # every id is below it
    eos_id: int  # of <|endoftext|>
    separator: str
    dtype: str
    tokenizer_hash: str
    validation_fraction: float
    splits: dict[str, dict[str, Any]]  # counts, SHA-256 of the rows
    skipped: dict[str, Any]  # counts of `read_documents`
    inputs: list[dict[str, Any]]  # path, bytes, SHA-256 of each file; `copy_of` an identical one
    corpora: NotRequired[list[dict[str, str]]]  # path and SHA-256 of the manifest of each corpus
    special_text: dict[str, int]  # special tokens that texts spell, encoded as plain text
    files: list[dict[str, Any]]  # `describe_file` of each file in rows/; unknown in old manifests
    fingerprint: str  # identifies the rows; the five entries before it are not part of it
    checksum: str  # of all other entries; unknown in old manifests


def read_manifest(path: str | Path) -> Manifest:
    """Read the manifest of the token rows in the directory `path`.

    Raises:
      InputError: there is no such directory.
      InputError: it holds no token rows, those of another version, or a damaged manifest.
      OSError: the manifest cannot be read.
    """
    file = as_path(path) / MANIFEST
    if not as_path(path).exists():
        raise InputError(f"no such directory: {path}; {_ADVICE}")
    if not file.exists():
        raise InputError(f"{path} holds no token rows (no {MANIFEST}); {_ADVICE}")
    try:
        with naming(file):
            manifest = read_json(file)
        got = {key: manifest[key] for key in FORMAT}
    except (ValueError, KeyError) as error:
        raise damaged(file, "is not a manifest of token rows") from error
    if got != FORMAT:
        raise InputError(f"{file}: expected {FORMAT}, got {got}; {_ADVICE}")
    if manifest.get("fingerprint") != fingerprint(manifest):
        raise damaged(file, "does not match its fingerprint: it was changed")
    if manifest.get("checksum", checksum(manifest)) != checksum(manifest):
        raise damaged(file, "does not match its checksum: it was changed")
    return cast(Manifest, manifest)  # its fingerprint proves that `build_tokens` wrote it


def fingerprint(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 (hexadecimal) of every entry that determines the rows."""
    facts = {key: value for key, value in manifest.items() if key not in _CIRCUMSTANCES}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("ascii")).hexdigest()


def checksum(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 (hexadecimal) of every entry but the checksum itself."""
    return content_hash({key: value for key, value in manifest.items() if key != "checksum"})


def describe_file(file: Path) -> dict[str, Any]:
    """Return name, bytes, and the SHA-256 of the ends: the first and last END_BYTES together.

    They are all of a small file. The ends of a shard are its first records and its index: they
    differ between shards and between builds, and cost little to read.
    """
    with naming(file), file.open("rb", buffering=END_BYTES) as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(0)
        ends = hashlib.sha256(content.read(END_BYTES))
        content.seek(max(content.tell(), size - END_BYTES))
        ends.update(content.read())
    return {"name": file.name, "bytes": size, "sha256_of_ends": ends.hexdigest()}


def check_files(directory: Path, expected: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Check the files of the rows by names, sizes, and the content of those that are not shards.

    `expected` has the description of each name, None if only its presence is known.

    Raises:
      InputError: a file is missing, has another size or content, or is an unexpected shard.
      OSError: the storage fails.
    """
    sizes = directory.sizes() if isinstance(directory, BucketPath) else None
    for name, facts in expected.items():
        try:
            size = os.stat(directory / name).st_size if sizes is None else sizes[name]
        except (*MISSING, KeyError) as error:
            raise damaged(directory / name, "is missing") from error
        if facts and size != facts["bytes"]:
            raise damaged(directory / name, f"has {size:,} bytes instead of {facts['bytes']:,}")
        if facts and name.endswith(".json"):
            check_ends(directory, facts)
    for name in sorted(os.listdir(directory) if sizes is None else sizes):
        if ".array_record-" in name and not name.startswith(".") and name not in expected:
            raise InputError(f"{directory / name} is not a file of these token rows; remove it")


def check_ends(directory: Path, facts: Mapping[str, Any]) -> None:
    """Raise InputError if the file that `facts` describe has other ends, OSError as `open`."""
    file = directory / facts["name"]
    if describe_file(file) != facts:
        raise damaged(file, "is not the file that was built with the manifest")


@contextlib.contextmanager
def naming(file: Path) -> Generator[None]:
    """Let an OSError of the block have the file's name: that of a read or a timeout has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            number, text = error.errno or errno.EIO, error.strerror or str(error)
            raise OSError(number, text, str(file)) from error
        raise


def damaged(file: Path, what: str) -> InputError:
    """Return the error of a damaged file of token rows."""
    what = " ".join(what.split())  # those of other libraries have several lines
    return InputError(f"{file} {what}; copy it again, or build the token rows again")


def check_tokens(
    manifest: Manifest,
    *,
    vocab_size: int | None = None,
    length: int | None = None,
    eos_id: int | None = None,
    tokenizer_hash: str | None = None,
) -> None:
    """Raise InputError if a model with these values cannot train on the rows; None fits any."""
    rows: dict[str, Any] = {**manifest}
    flag = "--config.model"
    vocabulary = f"{flag}.vocab_size={rows['vocab_size']} {flag}.eos_token_id={rows['eos_id']}"
    rebuild = "or build the rows with the model's tokenizer"
    for name, value, fix in (
        ("length", length, f"build the rows with --length={length}, or change the model's context"),
        ("vocab_size", vocab_size, f"set {vocabulary}, {rebuild}"),
        ("eos_id", eos_id, f"set {flag}.eos_token_id={rows['eos_id']}, {rebuild}"),
        ("tokenizer_hash", tokenizer_hash, "build the rows with the model's tokenizer"),
    ):
        if value is not None and value != rows[name]:
            here, there = (str(one)[:12] for one in (value, rows[name]))  # hashes are long
            raise InputError(
                f"the token rows have {name}={there}, but the model has {name}={here}; {fix}"
            )
