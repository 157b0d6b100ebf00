"""Token rows on disk: tokenised and packed documents as a TFDS dataset with a manifest.

    DIR/tokenizer.json, ...   the tokenizer that made the ids
    DIR/manifest.json         counts, inputs, the files of the rows, and a fingerprint
    DIR/rows/                 a TFDS dataset in ArrayRecord with the splits train and validation

`tensorflow_datasets.builder_from_directory("DIR/rows").as_data_source("train")` reads the rows
without this library, and nothing here needs TensorFlow. TFDS's SequentialWriter streams the rows
in constant memory; a GeneratorBasedBuilder would collect and sort a split first, which beyond 1 GB
needs TensorFlow's files. One host suffices, without Beam: the sequential part (JSON, ids to numpy,
ArrayRecord) takes about 0.2 microseconds a token, two hours for the 35 G tokens of PubMed.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer

from biomedlm_jax.buckets import is_bucket
from biomedlm_jax.corpus.corpus_manifest import corpora_of
from biomedlm_jax.corpus.documents import Document, Skipped
from biomedlm_jax.corpus.manifest import (
    FORMAT,
    MANIFEST,
    ROWS,
    Manifest,
    checksum,
    describe_file,
    fingerprint,
)
from biomedlm_jax.corpus.packer import SPLITS, Packer
from biomedlm_jax.corpus.progress import report_regularly
from biomedlm_jax.corpus.tokenizer import (
    prefix_ids,
    save_tokenizer,
    special_id,
    tokenizer_hash,
)
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_json
from biomedlm_jax.outputs import atomic_directory
from biomedlm_jax.streams import COMPRESSIONS, BrokenStreamError, read_blocks

SEPARATORS = ("eos", "bos_eos", "none")
SHARD_BYTES = 1 << 28
MAX_NAMES = 1000  # of files that were left out, in the manifest


def build_tokens(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    length: int = 1024,
    separator: str = "eos",
    validation_fraction: float = 0.005,
    inputs: Iterable[str | Path] = (),
    skipped: Skipped | None = None,
    overwrite: bool = False,
    progress: Callable[[dict[str, dict[str, int]]], None] | None = None,
) -> Manifest:
    """Tokenise documents, pack them into rows, write the directory `out`, return its manifest.

    Each split is the concatenation of its documents' token ids in the given order, cut every
    `length` ids; the incomplete last row is dropped and counted. A document's split depends on its
    text only, so equal texts are never in both. Text that spells a special token is plain text. The
    same documents give the same bytes on any number of cores.

    Args:
      length: token ids in a row, the model's context length.
      separator: "eos" puts the tokenizer's end of text after each document, "bos_eos" also its
        beginning of text before each, "none" nothing.
      validation_fraction: probability that a text is in the validation split.
      inputs: the files of the documents, for the manifest (path, bytes, SHA-256, and `copy_of`
        for a file with the decompressed content of an earlier one, whose documents are in the
        rows twice).
      skipped: counts of the reader, for the manifest.
      overwrite: replace earlier token rows; any other non-empty directory is never replaced.
      progress: called every few seconds, from another thread, with the counts of each split.

    Raises:
      InputError: `out` cannot be written.
      InputError: an argument is out of range, the tokenizer is not a GPT-2's, or the text does not
        fill one row. After any error, Ctrl-C or SIGTERM, `out` is as it was before.
    """
    skipped = skipped or Skipped()
    if is_bucket(out):
        fix = "write to a local directory; gcloud storage cp -r copies it"
        raise InputError(f"got out={out}; expected a path of a file system: {fix}")
    with atomic_directory(out, replaceable=_holds_rows, overwrite=overwrite) as new:
        save_tokenizer(tokenizer, new)
        recipe = _manifest_header(tokenizer, length, separator, validation_fraction)
        begin = _begin(tokenizer, recipe["eos_id"]) if separator == "bos_eos" else None
        first = prefix_ids(tokenizer)
        if first and first != [begin]:
            got = f"the tokenizer puts the ids {first} before a text; rows have documents without"
            fix = "separator=bos_eos has the bos token before each document"
            warnings.warn(f"{got} them; {fix}", RuntimeWarning, stacklevel=2)
        packer = Packer(
            tokenizer,
            length=length,
            separator=None if separator == "none" else recipe["eos_id"],
            begin=begin,
            dtype=recipe["dtype"],
            validation_fraction=validation_fraction,
        )
        report = (lambda: progress(packer.counts)) if progress else (lambda: None)
        with report_regularly(report):
            files = _identify(map(Path, inputs))
            corpora = corpora_of(files)
            hashes = _write(packer.rows(documents), new / ROWS, length, np.dtype(recipe["dtype"]))
        splits = {split: {**packer.counts[split], "sha256": hashes[split]} for split in SPLITS}
        if not splits["train"]["rows"]:
            raise InputError(
                f"the corpus has {splits['train']['tokens']} training tokens, not enough for one "
                f"row of {length}; give more text or a smaller length"
            )
        counts: dict[str, Any] = {
            "bad": skipped.bad,
            "empty": skipped.empty,
            "subsets": dict(skipped.subsets),
        }
        counts["files"] = {"count": len(skipped.files), "names": skipped.files[:MAX_NAMES]}
        spelled = dict(packer.special_text)
        manifest = {**recipe, "splits": splits, "skipped": counts, "inputs": files}
        if corpora:
            manifest["corpora"] = corpora
        manifest["special_text"] = spelled
        manifest["files"] = [describe_file(file) for file in sorted((new / ROWS).iterdir())]
        manifest["fingerprint"] = fingerprint(manifest)
        manifest["checksum"] = checksum(manifest)
        write_json(new / MANIFEST, manifest)
    return cast(Manifest, manifest)


def _holds_rows(path: Path) -> bool:
    # A run directory has a copy of its manifest, too, but not the rows.
    return (path / MANIFEST).exists() and (path / ROWS).is_dir()


def _manifest_header(
    tokenizer: Tokenizer, length: int, separator: str, validation_fraction: float
) -> dict[str, Any]:
    """Return the part of the manifest that is known before any text is read."""
    if length < 2:
        raise InputError(f"got length={length}; a row needs at least 2 ids, one to predict")
    if separator not in SEPARATORS:
        raise InputError(f"got separator={separator!r}; expected one of {', '.join(SEPARATORS)}")
    if not 0 <= validation_fraction < 1:
        raise InputError(f"got validation_fraction={validation_fraction}; expected [0, 1)")
    if tokenizer.truncation or tokenizer.padding:
        raise InputError("the tokenizer truncates or pads; call no_truncation() and no_padding()")
    eos_id = special_id(tokenizer, "eos_token")
    if eos_id is None:
        raise InputError("the tokenizer has no end of text; set eos_token in tokenizer_config.json")
    vocab_size = 1 + max(tokenizer.get_vocab().values())  # a vocabulary may have gaps
    return {
        **FORMAT,
        "length": length,
        "vocab_size": vocab_size,
        "eos_id": eos_id,
        "separator": separator,
        "dtype": "uint16" if vocab_size <= 1 << 16 else "int32",
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "validation_fraction": validation_fraction,
    }


def _begin(tokenizer: Tokenizer, eos_id: int) -> int:
    """Return the id of the bos token, which must be another one than the end of text."""
    bos_id = special_id(tokenizer, "bos_token")
    if bos_id in (None, eos_id):
        what = "no bos token" if bos_id is None else "one token as bos and eos"
        raise InputError(f"the tokenizer has {what}; fix: use separator=eos")
    return bos_id


def _write(
    rows: Iterable[tuple[str, np.ndarray]], directory: Path, length: int, dtype: np.dtype
) -> dict[str, str]:
    """Write (split, rows [n, length]) as a TFDS dataset; return the SHA-256 of each split."""
    import tensorflow_datasets as tfds  # takes half a second to import

    # Raw bytes: a tf.Example would store the ids as int64.
    row = tfds.features.Tensor(shape=(length,), dtype=dtype, encoding="bytes")
    directory.mkdir()
    identity = tfds.core.DatasetIdentity(
        name="token_rows",
        version=tfds.core.Version("1.0.0"),
        data_dir=str(directory),
        module_name=__name__,
    )
    features = tfds.features.FeaturesDict({"tokens": row})
    writer = tfds.core.SequentialWriter(
        tfds.core.DatasetInfo(builder=identity, features=features),
        max_examples_per_shard=max(1, SHARD_BYTES // (length * dtype.itemsize)),
        file_format="array_record",
    )
    writer.initialize_splits(list(SPLITS))
    hashes = {split: hashlib.sha256() for split in SPLITS}
    for split, packed in rows:
        hashes[split].update(packed.data)
        if len(packed):
            writer.add_examples({split: [{"tokens": row} for row in packed]})
    writer.close_all()
    return {split: digest.hexdigest() for split, digest in hashes.items()}


def _identify(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Return path, size and SHA-256 of each file, and of which earlier one it is a copy."""
    first: dict[str, str] = {}  # the path of each content
    entries = []
    for file in files:
        if not file.exists():
            raise InputError(f"no such file: {file}; give files that exist as inputs")
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        entry = {"path": str(file), "bytes": file.stat().st_size, "sha256": digest}
        if file.suffix.lower() in COMPRESSIONS:
            with contextlib.suppress(BrokenStreamError):  # which the reader refuses or counts
                text = hashlib.sha256()
                for block in read_blocks(file):
                    text.update(block)
                digest = text.hexdigest()
        if first.setdefault(digest, str(file)) != str(file):
            entry["copy_of"] = first[digest]
        entries.append(entry)
    return entries
