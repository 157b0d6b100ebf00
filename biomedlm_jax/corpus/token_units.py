"""Units of token rows: the token ids of a batch of input files, made alone and in any process.

A unit is a part (parts_folder.py), a directory with these files:

    part.json          files with bytes and SHA-256, counts, what was skipped, and the settings
    train.ids, ...     the ids of each split, as they are in memory

It does not depend on the length of the rows, nor on other files.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from biomedlm_jax.corpus.corpus_manifest import corpora_of
from biomedlm_jax.corpus.documents import Document, DocumentReader, Skipped
from biomedlm_jax.corpus.input_files import check_sizes, describe
from biomedlm_jax.corpus.manifest import naming
from biomedlm_jax.corpus.packer import SPLITS, THREADS, Encoder, Encoding
from biomedlm_jax.corpus.parts_folder import LiveCounts, make_once
from biomedlm_jax.files import content_hash
from biomedlm_jax.integrity import read_sums
from biomedlm_jax.streams import COMPRESSIONS, BrokenStreamError, read_blocks

VERSION = 1  # of the layout and of what is computed: a unit of another version is made again


@dataclasses.dataclass(frozen=True)
class UnitSettings:
    """All that a unit depends on, beside its files. `tokenizer` is a file, a tokenizer.json."""

    tokenizer: Path
    tokenizer_sha256: str
    encoding: Encoding
    reader: DocumentReader

    def fingerprint(self) -> str:
        """Return a hash of the settings, wherever the tokenizer's file is."""
        facts = dataclasses.asdict(self) | {"tokenizer": version("tokenizers")}
        return content_hash([VERSION, facts])


def unit_name(files: Sequence[Path]) -> str:
    """Return the name of the directory of a unit, which depends on the paths of its files."""
    names = "\0".join(map(str, files)).encode("utf-8", "surrogateescape")
    return f"unit-{hashlib.blake2b(names, digest_size=12).hexdigest()}"


def make_unit(
    folder: Path,
    files: Sequence[Path],
    settings: UnitSettings,
    threads: int | None,
    meanwhile: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Write the unit `folder` of a batch of files, unless it is there, and return its part.json.

    `threads` limits the cores that the tokenizer uses in this process; None: all. `meanwhile` is
    that of `write_unit`.

    Raises what `DocumentReader.read` raises, and InputError for a file that changes meanwhile or
    is not as the manifest of its corpus says.
    """
    inputs = [describe(file) for file in files]
    corpora_of(inputs)

    def write(new: Path) -> dict[str, Any]:
        if threads:  # `tokenizers` reads these before it starts its threads
            os.environ["RAYON_NUM_THREADS"] = str(threads)
            os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
        skipped = Skipped()
        tokenizer = _tokenizer(settings.tokenizer, settings.tokenizer_sha256)
        encoder = Encoder(tokenizer, settings.encoding, threads=threads or THREADS)
        documents = settings.reader.read(files, skipped)
        facts = write_unit(new, encoder, documents, files, meanwhile)
        texts = [text_sha256(*pair) for pair in zip(files, inputs, strict=True)]
        check_sizes(inputs)
        return {**facts, "texts": texts, "skipped": vars(skipped)}

    identity = {"inputs": inputs, "settings": settings.fingerprint()}
    return make_once(folder, identity, write)


@functools.lru_cache(1)
def _tokenizer(path: Path, sha256: str) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True  # as in `plain_text_tokenizer`
    return tokenizer


def write_unit(
    folder: Path,
    encoder: Encoder,
    documents: Iterable[Document],
    inputs: Sequence[Path] = (),
    meanwhile: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Write the ids of documents into `folder`, and return their counts; memory is constant.

    `meanwhile` is called once while the encoder's threads have work, as far as there is more than a
    few MB. `LiveCounts` has the counts so far, and the bytes that were read of `inputs`.
    """
    live = LiveCounts(folder, inputs)
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(ids_file(folder, split).open("xb")) for split in SPLITS}
        for split, ids in encoder.ids(documents):
            with naming(ids_file(folder, split)):  # a full disk
                files[split].write(ids.data)
                files[split].flush()
            if meanwhile:
                meanwhile()
                meanwhile = None
            live.write({"counts": encoder.counts})
    return {"counts": encoder.counts, "special_text": dict(encoder.special_text)}


def ids_file(folder: Path, split: str) -> Path:
    """Return the file with the ids of a split in a unit."""
    return folder / f"{split}.ids"


def ids_sha256(file: Path) -> str:
    """Return the hash of an `ids_file` of a finished unit, which the unit has in its list."""
    return read_sums(file.parent)[file.name]


def text_sha256(file: Path, entry: dict[str, Any]) -> str:
    """Return the SHA-256 of a file's decompressed content; that of a damaged file as it is.

    `entry` is what `describe` returned.
    """
    if file.suffix.lower() in COMPRESSIONS:
        with contextlib.suppress(BrokenStreamError):  # which the reader refuses or counts
            text = hashlib.sha256()
            for block in read_blocks(file):
                text.update(block)
            return text.hexdigest()
    return entry["sha256"]
