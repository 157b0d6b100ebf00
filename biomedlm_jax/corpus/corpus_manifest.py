"""The manifest of a corpus: its documents' files, what they were made of, and what was left out.

DIR/documents-00000-of-00002.jsonl.zst   the documents
DIR/left_out.jsonl.zst                   each record that is not among them, with the reason
DIR/inputs.jsonl.zst                     each file that was read, with bytes and SHA-256
DIR/manifest.json                        counts, settings, versions and files
DIR/SHA256SUMS                           the hashes of these files
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import content_hash, read_json

CORPUS_FORMAT = {"format": "biomedlm_jax corpus", "version": 1}
MANIFEST = "manifest.json"
LEFT_OUT, INPUTS = "left_out.jsonl.zst", "inputs.jsonl.zst"


def is_corpus(directory: Path) -> bool:
    """Return whether `directory` has a manifest that says that it is a corpus."""
    file = directory / MANIFEST
    try:
        return file.is_file() and read_json(file).get("format") == CORPUS_FORMAT["format"]
    except InputError:
        return False


def read_corpus_manifest(directory: Path) -> dict[str, Any]:
    """Read the manifest of a corpus. Raises InputError if it is damaged or of another version."""
    file = directory / MANIFEST
    manifest = read_json(file)
    got = {key: manifest.get(key) for key in CORPUS_FORMAT}
    if got != CORPUS_FORMAT:
        fix = "build the corpus with biomedlm build-corpus of this version"
        raise InputError(f"{file}: expected {CORPUS_FORMAT}, got {got}; {fix}")
    if manifest.get("checksum") != corpus_checksum(manifest):
        raise InputError(f"{file} does not match its checksum: it was changed; copy it again")
    return manifest


def corpus_checksum(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hexadecimal) of every entry but the checksum itself."""
    return content_hash({key: value for key, value in manifest.items() if key != "checksum"})


def shards_of(directory: Path) -> list[Path]:
    """List the files of a corpus's documents in order.

    Raises InputError if one is missing or has another size, and what `read_corpus_manifest` raises.
    """
    files = []
    for entry in read_corpus_manifest(directory)["files"]:
        file = directory / entry["name"]
        size = file.stat().st_size if file.is_file() else None
        if size != entry["bytes"]:
            got = "is missing" if size is None else f"has {size:,} bytes, not {entry['bytes']:,}"
            raise InputError(f"{file} {got}; copy the corpus again, or build it again")
        files.append(file)
    return files


def corpora_of(inputs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return path and SHA-256 of the manifest of each corpus that input files belong to.

    `inputs` have path and SHA-256. Raises InputError for a file that is not as its corpus's
    manifest says.
    """
    corpora: dict[Path, dict[str, str] | None] = {}
    for entry in inputs:
        file = Path(entry["path"])
        if file.parent not in corpora:
            listed = None
            if is_corpus(file.parent):
                files = read_corpus_manifest(file.parent)["files"]
                listed = {one["name"]: one["sha256"] for one in files}
            corpora[file.parent] = listed
        listed = corpora[file.parent]
        if listed and listed.get(file.name, entry["sha256"]) != entry["sha256"]:
            fix = "copy the corpus again, or build it again"
            raise InputError(f"{file} was changed after the corpus was built; {fix}")
    return [
        {"path": str(folder), "manifest_sha256": _sha256(folder / MANIFEST)}
        for folder, listed in corpora.items()
        if listed is not None
    ]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
