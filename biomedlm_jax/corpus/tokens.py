"""Token rows on disk: documents, tokenised and packed, as a TFDS dataset with a manifest.

    DIR/tokenizer.json, ...   the tokenizer that made the ids
    DIR/manifest.json         what was built, out of what, and a fingerprint of the rows
    DIR/rows/                 a TFDS dataset in ArrayRecord, with the splits train and validation

`tensorflow_datasets.builder_from_directory("DIR/rows").as_data_source("train")` reads the rows
without this library, and nothing here needs TensorFlow. TFDS's SequentialWriter takes the rows as
they come, in constant memory; a GeneratorBasedBuilder collects and sorts a split first, which
beyond 1 GB needs TensorFlow's files.

Beam is not used: the threads of one host suffice. What cannot be spread over its cores (reading
JSON, ids to numpy, ArrayRecord) takes about 0.2 microseconds a token, two hours for the 35 G
tokens of The Pile's PubMed, once, where BioMedLM was trained for six days.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from biomedlm_jax.corpus.documents import Document, Skipped
from biomedlm_jax.corpus.packing import SPLITS, Packer
from biomedlm_jax.corpus.tokenizer import END_OF_TEXT, save_tokenizer, tokenizer_hash

FORMAT = {"format": "biomedlm_jax token rows", "version": 1}
SEPARATORS = ("eos", "none")
MANIFEST, ROWS = "manifest.json", "rows"
SHARD_BYTES = 1 << 28
PROGRESS_SECONDS = 5.0
# What a manifest tells beside what determines the rows; left out of the fingerprint.
_CIRCUMSTANCES = ("skipped", "inputs", "fingerprint")


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
    progress: Callable[[dict[str, dict]], None] | None = None,
) -> dict:
    """Tokenise documents, pack them into rows, write the directory `out`, return its manifest.

    Each split is the concatenation of its documents' ids in the order given, `<|endoftext|>`
    after each (or nothing, with separator="none"), cut every `length` ids; the incomplete last
    row is dropped and counted. A document's split depends on its text alone, so equal texts
    never lie in both. The same documents give the same bytes on any number of cores.

    Args:
      length: ids in a row, the model's context.
      validation_fraction: the probability, over texts, of landing in validation.
      inputs: the files that were read, for the manifest (path, bytes, SHA-256).
      skipped: what the reader leaves out, for the manifest.
      overwrite: replace earlier token rows; any other directory with files in it never is.
      progress: called every few seconds with the manifest's `splits` so far.

    Raises:
      FileExistsError, NotADirectoryError: `out` cannot be written; see `check_output`.
      ValueError: an argument out of its range, a tokenizer that does not fit a GPT-2, or too
        little text for one row. After any error, or Ctrl-C, `out` is as it was.
    """
    out, skipped = Path(os.path.abspath(out)), skipped or Skipped()
    recipe = _recipe(tokenizer, length, separator, validation_fraction)
    check_output(out, overwrite=overwrite)
    building = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.building")
    try:
        save_tokenizer(tokenizer, building)
        files = [_identify(Path(file)) for file in inputs]
        splits = _write(documents, tokenizer, building / ROWS, recipe, progress)
        if not splits["train"]["rows"]:
            raise ValueError(
                f"the corpus has {splits['train']['tokens']} tokens to train on, not enough for "
                f"one row of {length}; give more text or a smaller length"
            )
        left_out = {"bad": skipped.bad, "empty": skipped.empty, "subsets": dict(skipped.subsets)}
        manifest = {**recipe, "splits": splits, "skipped": left_out, "inputs": files}
        manifest["fingerprint"] = _fingerprint(manifest)
        (building / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        check_output(out, overwrite=overwrite)  # again: somebody may have been quicker
        _put_in_place(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest


def check_output(out: str | Path, *, overwrite: bool) -> None:
    """Raise at once, before any work, if `build_tokens` would refuse to write `out`."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file; name a directory")
    if not out.exists() or not any(out.iterdir()):
        return
    # A run keeps a copy of its manifest; only token rows have the rows themselves.
    if not (out / MANIFEST).exists() or not (out / ROWS).is_dir():
        raise FileExistsError(f"{out} holds something else than token rows; name another directory")
    if not overwrite:
        raise FileExistsError(f"{out} exists; name another directory, or pass --overwrite")


def read_manifest(path: str | Path) -> dict:
    """Read what `build_tokens` wrote about the directory `path`.

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: it holds no token rows, those of another version, or a manifest that was edited.
    """
    path, advice = Path(path), "make token rows with biomedlm build-tokens"
    if not path.exists():
        raise FileNotFoundError(f"no such directory: {path}; {advice}")
    if not (path / MANIFEST).exists():
        raise ValueError(f"{path} holds no token rows (no {MANIFEST}); {advice}")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        got = {key: manifest[key] for key in FORMAT}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / MANIFEST} is not a manifest of token rows; {advice}") from error
    if got != FORMAT:
        raise ValueError(f"got {got} in {path / MANIFEST}; this version reads {FORMAT}; {advice}")
    if manifest.get("fingerprint") != _fingerprint(manifest):
        raise ValueError(f"{path / MANIFEST} does not fit its fingerprint, so it was changed later")
    return manifest


def _recipe(tokenizer: Tokenizer, length: int, separator: str, validation_fraction: float) -> dict:
    """The part of the manifest that is known before any text is read."""
    if length < 2:
        raise ValueError(f"got length={length}; a row has at least 2 ids, one to predict")
    if separator not in SEPARATORS:
        raise ValueError(f"got separator={separator!r}; it is one of {', '.join(SEPARATORS)}")
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"got validation_fraction={validation_fraction}; it is in [0, 1)")
    if tokenizer.truncation or tokenizer.padding:
        raise ValueError("the tokenizer truncates or pads; call no_truncation() and no_padding()")
    vocab_size = 1 + max(tokenizer.get_vocab().values(), default=-1)  # a vocabulary may have gaps
    return {
        **FORMAT,
        "length": length,
        "vocab_size": vocab_size,
        "eos_id": tokenizer.token_to_id(END_OF_TEXT),
        "separator": separator,
        "dtype": "uint16" if vocab_size <= 1 << 16 else "int32",
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "validation_fraction": validation_fraction,
    }


def _write(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    directory: Path,
    recipe: dict,
    progress: Callable[[dict[str, dict]], None] | None,
) -> dict[str, dict]:
    """Write the TFDS dataset and return each split's counts and the SHA-256 of its rows."""
    packer = Packer(
        tokenizer,
        length=recipe["length"],
        separator=recipe["eos_id"] if recipe["separator"] == "eos" else None,
        dtype=recipe["dtype"],
        validation_fraction=recipe["validation_fraction"],
    )
    writer = _writer(directory, recipe)
    hashes, due = {split: hashlib.sha256() for split in SPLITS}, 0.0
    for split, packed in packer.rows(documents):
        hashes[split].update(packed)
        if len(packed):
            writer.add_examples({split: [{"tokens": row} for row in packed]})
        if progress and time.monotonic() >= due:
            due = time.monotonic() + PROGRESS_SECONDS
            progress({split: stream.counts() for split, stream in packer.streams.items()})
    writer.close_all()
    return {
        split: {**stream.counts(), "sha256": hashes[split].hexdigest()}
        for split, stream in packer.streams.items()
    }


def _writer(directory: Path, recipe: dict):
    import tensorflow_datasets as tfds  # half a second, and only building and reading need it

    # Raw bytes: a tf.Example alone would make int64s of the ids.
    length, dtype = recipe["length"], np.dtype(recipe["dtype"])
    row = tfds.features.Tensor(shape=(length,), dtype=dtype, encoding="bytes")
    directory.mkdir()
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name="token_rows",
            version=tfds.core.Version("1.0.0"),
            data_dir=str(directory),
            module_name=__name__,
        ),
        features=tfds.features.FeaturesDict({"tokens": row}),
    )
    writer = tfds.core.SequentialWriter(
        info,
        max_examples_per_shard=max(1, SHARD_BYTES // (length * dtype.itemsize)),
        file_format="array_record",
    )
    writer.initialize_splits(list(SPLITS))
    return writer


def _identify(file: Path) -> dict:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"path": str(file), "bytes": file.stat().st_size, "sha256": digest}


def _fingerprint(manifest: dict) -> str:
    facts = {key: value for key, value in manifest.items() if key not in _CIRCUMSTANCES}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("ascii")).hexdigest()


def _put_in_place(building: Path, out: Path) -> None:
    """Rename the finished directory; what it replaces is removed only once it is there."""
    replaced = building.with_suffix(".replaced")
    try:
        if out.exists():
            out.rename(replaced)
        building.rename(out)
    except BaseException:
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
