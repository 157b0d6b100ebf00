"""The manifest of a directory of token rows: what was built, from what, and a fingerprint."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypedDict, cast

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json

FORMAT = {"format": "biomedlm_jax token rows", "version": 1}
MANIFEST, ROWS = "manifest.json", "rows"  # the file and the TFDS dataset in the directory
_ADVICE = "build token rows with biomedlm build-tokens"


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
    splits: dict[str, dict[str, Any]]  # counts of `Packer`, SHA-256 of the rows
    skipped: dict[str, Any]  # counts of `read_documents`
    inputs: list[dict[str, Any]]  # path, bytes, SHA-256 of each file; `copy_of` an identical one
    special_text: dict[str, int]  # special tokens that texts spell, encoded as plain text
    fingerprint: str  # identifies the rows; the three entries before it are not part of it


def read_manifest(path: str | Path) -> Manifest:
    """Read the manifest of the token rows in the directory `path`.

    Raises:
      InputError: there is no such directory.
      InputError: it holds no token rows, those of another version, or an edited manifest.
    """
    file = Path(path) / MANIFEST
    if not Path(path).exists():
        raise InputError(f"no such directory: {path}; {_ADVICE}")
    if not file.exists():
        raise InputError(f"{path} holds no token rows (no {MANIFEST}); {_ADVICE}")
    try:
        manifest = read_json(file)
        got = {key: manifest[key] for key in FORMAT}
    except (ValueError, KeyError) as error:
        raise InputError(f"{file} is not a manifest of token rows; {_ADVICE}") from error
    if got != FORMAT:
        raise InputError(f"expected {FORMAT} in {file}, got {got}; {_ADVICE}")
    if manifest.get("fingerprint") != fingerprint(manifest):
        raise InputError(f"{file} does not match its fingerprint: it was edited; {_ADVICE}")
    return cast(Manifest, manifest)  # its fingerprint proves that `build_tokens` wrote it


def fingerprint(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 (hexadecimal) of every entry that determines the rows."""
    circumstances = ("skipped", "inputs", "special_text", "fingerprint")
    facts = {key: value for key, value in manifest.items() if key not in circumstances}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("ascii")).hexdigest()


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
