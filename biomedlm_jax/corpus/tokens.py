"""Token rows on disk: tokenised and packed documents as a TFDS dataset with a manifest.

    DIR/tokenizer.json, ...   the tokenizer that made the ids
    DIR/manifest.json         counts, inputs, the files of the rows, and a fingerprint
    DIR/rows/                 a TFDS dataset in ArrayRecord with the splits train and validation

`tensorflow_datasets.builder_from_directory("DIR/rows").as_data_source("train")` reads the rows
without this library, and nothing here needs TensorFlow. They are made in three steps:

1. Each batch of input files becomes a unit (token_units.py): flat files of token ids.
2. The counts of the units place each shard of rows in the stream of its split, so that any process
   can write it (row_shards.py).
3. One process hashes the rows of each split, merges counts and metadata, and the directory appears.

Units and shards survive a crash. A TFDS GeneratorBasedBuilder would collect and sort a split first,
which beyond 1 GB needs TensorFlow's files.
"""

import contextlib
import hashlib
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer

from biomedlm_jax.buckets import is_bucket
from biomedlm_jax.corpus.corpus_manifest import corpora_of
from biomedlm_jax.corpus.documents import Document, DocumentReader, Skipped
from biomedlm_jax.corpus.engines import open_engine
from biomedlm_jax.corpus.input_files import batches, describe
from biomedlm_jax.corpus.manifest import (
    FORMAT,
    MANIFEST,
    ROWS,
    Manifest,
    checksum,
    describe_file,
    fingerprint,
    naming,
)
from biomedlm_jax.corpus.packer import COUNTS, SPLITS, Encoder, Encoding, read_rows
from biomedlm_jax.corpus.parts_folder import (
    bytes_read,
    live_counts,
    locked_parts_folder,
    make_once,
    remove_other_parts,
)
from biomedlm_jax.corpus.progress import report_regularly
from biomedlm_jax.corpus.row_shards import (
    make_row_shard,
    plan_shards,
    row_features,
    write_dataset,
)
from biomedlm_jax.corpus.token_units import (
    UnitSettings,
    ids_file,
    ids_sha256,
    make_unit,
    text_sha256,
    unit_name,
    write_unit,
)
from biomedlm_jax.corpus.tokenizer import (
    prefix_ids,
    save_tokenizer,
    special_id,
    tokenizer_hash,
)
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import content_hash, write_json
from biomedlm_jax.outputs import atomic_directory

SEPARATORS = ("eos", "bos_eos", "none")
SHARD_BYTES = 1 << 28
MAX_NAMES = 1000  # of files that were left out, in the manifest
SCRATCH = "scratch"  # in the new directory until it is complete


@dataclass
class Progress:
    """How far a build is: the counts of each split, and the bytes of the input files."""

    counts: dict[str, dict[str, int]]
    done_bytes: int = 0  # of the files that were read
    all_bytes: int = 0  # 0: unknown


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
    progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Tokenise documents, pack them into rows, write the directory `out`, return its manifest.

    Each split is the concatenation of its documents' token ids in the given order, cut every
    `length` ids; the incomplete last row is dropped and counted. A document's split depends on its
    text only, so equal texts are never in both. Text that spells a special token is plain text. The
    same documents give the same bytes on any number of cores. The ids are on the disk twice for a
    while.

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
      progress: called every few seconds, from another thread.

    Raises:
      InputError: `out` cannot be written.
      InputError: an argument is out of range, the tokenizer is not a GPT-2's, or the text does not
        fill one row. After any error, Ctrl-C or SIGTERM, `out` is as it was before.
    """
    settings = (length, separator, validation_fraction)
    with (
        _new_rows(tokenizer, out, *settings, overwrite=overwrite) as build,
        report_regularly(lambda: progress(build.progress()) if progress else None),
    ):
        entries = [describe(Path(file)) for file in inputs]
        corpora_of(entries)
        build.add_inputs(entries, [text_sha256(Path(e["path"]), e) for e in entries])
        encoder, unit = Encoder(tokenizer, build.encoding), build.folder / "unit"
        facts = make_once(
            unit, {}, lambda new: write_unit(new, encoder, documents, meanwhile=build.prepare)
        )
        build.add_unit(unit, facts)
        manifest = build.finish(skipped or Skipped())
    return manifest


def build_tokens_from_files(
    paths: Iterable[str | Path],
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    reader: DocumentReader | None = None,
    length: int = 1024,
    separator: str = "eos",
    validation_fraction: float = 0.005,
    workers: int = 1,
    beam: Sequence[str] | None = None,
    skipped: Skipped | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Build token rows as `build_tokens` does, of the documents of `input_files(paths)`.

    The files are tokenised in several processes, one file or a batch of small ones in each. What
    is finished is kept in `parts_folder(out)` until the rows are complete: after a crash, an error
    or Ctrl-C, the same call continues with it; another `length` uses the same units.

    Args:
      reader: how documents are read; None: `DocumentReader()`.
      workers: processes, which share the cores; the result does not depend on it. One process uses
        all cores, too.
      beam: flags of Apache Beam, whose pipelines run instead of `workers` processes, each worker
        on one core; all of them share the file system of `paths` and of `out`.
      skipped: counts what is left out.
      length, separator, validation_fraction, overwrite, progress: of `build_tokens`.

    Raises what `build_tokens` and `DocumentReader.read` raise, and InputError if there is no
    document, and if another process builds the same rows.
    """
    if workers < 1:
        raise InputError(f"got workers={workers}; expected at least 1")
    reader, skipped = reader or DocumentReader(), Skipped() if skipped is None else skipped
    settings = (length, separator, validation_fraction)
    with (
        locked_parts_folder(_local(out), "these token rows") as folder,
        _new_rows(tokenizer, out, *settings, overwrite=overwrite) as build,
        report_regularly(lambda: progress(build.progress()) if progress else None),
    ):
        build.folder, build.workers, build.beam = folder, workers, beam
        files = reader.files(paths, skipped)
        build.make_units(files, reader, skipped)
        if not any(counts["documents"] for counts in build.counts.values()):
            raise reader.no_documents(files, skipped)
        manifest = build.finish(skipped)
    return manifest


def _local(out: str | Path) -> Path:
    if is_bucket(out):
        fix = "write to a local directory; gcloud storage cp -r copies it"
        raise InputError(f"got out={out}; expected a path of a file system: {fix}")
    return Path(out)


@contextlib.contextmanager
def _new_rows(
    tokenizer: Tokenizer,
    out: str | Path,
    length: int,
    separator: str,
    validation_fraction: float,
    *,
    overwrite: bool,
) -> Generator["_Build"]:
    """Yield a build in a directory that replaces `out` when the block succeeds."""
    with (
        naming(_local(out)),  # a full disk
        atomic_directory(out, replaceable=_holds_rows, overwrite=overwrite) as new,
    ):
        save_tokenizer(tokenizer, new)
        header = _manifest_header(tokenizer, length, separator, validation_fraction)
        begin = _begin(tokenizer, header["eos_id"]) if separator == "bos_eos" else None
        first = prefix_ids(tokenizer)
        if first and first != [begin]:
            got = f"the tokenizer puts the ids {first} before a text; rows have documents without"
            fix = "separator=bos_eos has the bos token before each document"
            warnings.warn(f"{got} them; {fix}", RuntimeWarning, stacklevel=4)
        encoding = Encoding(
            separator=None if separator == "none" else header["eos_id"],
            begin=begin,
            dtype=header["dtype"],
            validation_fraction=validation_fraction,
        )
        (new / SCRATCH).mkdir()
        yield _Build(new, header, encoding, tokenizer)


class _Build:
    """One build. `folder` has its units and shards, `counts` what is in them."""

    def __init__(self, new: Path, header: dict[str, Any], encoding: Encoding, tokenizer: Tokenizer):
        self.new, self.folder, self.header, self.encoding = new, new / SCRATCH, header, encoding
        self.tokenizer = tokenizer
        self.workers = 1
        self.beam: Sequence[str] | None = None
        self.units: list[Path] = []
        self.inputs: list[dict[str, Any]] = []
        self.special_text: Counter[str] = Counter()
        self.counts = {
            split: dict.fromkeys((*COUNTS, "rows", "dropped_tokens"), 0) for split in SPLITS
        }
        self._texts: dict[str, str] = {}  # the path of each content
        self._sizes: dict[Path, int] = {}  # bytes of the files of each unit
        self._shown = Progress(self.counts)

    def prepare(self) -> None:
        """Import TFDS and hash the tokenizer, unless it was done: most of a second.

        Not in a thread of its own: imports of other threads fail while TFDS is imported.
        """
        if self.header["tokenizer_hash"] is None:
            row_features(self.header["length"], self.header["dtype"])
            self.header["tokenizer_hash"] = tokenizer_hash(self.tokenizer)

    def make_units(self, files: Sequence[Path], reader: DocumentReader, skipped: Skipped) -> None:
        """Make the unit of each batch of files, or take it from an earlier call."""
        state = self.tokenizer.to_str().encode("utf-8")
        copy = self.new / SCRATCH / "tokenizer.json"
        copy.write_bytes(state)
        settings = UnitSettings(copy, hashlib.sha256(state).hexdigest(), self.encoding, reader)
        units = {self.folder / unit_name(batch): batch for batch in batches(files)}
        self._sizes = {
            unit: sum(file.stat().st_size for file in batch) for unit, batch in units.items()
        }
        shards = {path.name for split in SPLITS for path in self.folder.glob(f"{split}-*[0-9]")}
        remove_other_parts(self.folder, {path.name for path in units} | shards)
        workers = min(self.workers, len(units))
        threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None
        if self.beam is not None and len(units) > 1:
            threads = 1
        here = None if threads else self.prepare  # this process makes the units
        tasks = ((folder, batch, settings, threads, here) for folder, batch in units.items())
        with open_engine(workers, self.folder, self.beam) as run_map:
            for folder, unit in zip(units, run_map(make_unit, tasks), strict=True):
                self.add_inputs(unit["inputs"], unit["texts"])
                unit["skipped"]["subsets"] = Counter(unit["skipped"]["subsets"])
                skipped.add(Skipped(**unit["skipped"]))
                self.add_unit(folder, unit)

    def add_inputs(self, entries: Iterable[dict[str, Any]], texts: Iterable[str]) -> None:
        """Add files by `describe` and the hashes of their texts; find copies of earlier files."""
        for entry, text in zip(entries, texts, strict=True):
            first = self._texts.setdefault(text, entry["path"])
            self.inputs.append({**entry, **({"copy_of": first} if first != entry["path"] else {})})

    def add_unit(self, folder: Path, unit: Mapping[str, Any]) -> None:
        """Add a finished unit, whose ids follow those of the units before it."""
        self.units.append(folder)
        self.special_text.update(unit["special_text"])
        for split, counts in unit["counts"].items():
            for name, count in counts.items():
                self.counts[split][name] += count

    def progress(self) -> Progress:
        """Return the progress with units that are being made, never below an earlier one."""
        counts = {split: dict(of_split) for split, of_split in self.counts.items()}
        live = list(live_counts(self.folder))
        for unit in live:
            for split, of_split in unit["counts"].items():
                for name, count in of_split.items():
                    counts[split][name] += count
        for split, of_split in counts.items():  # a unit that waits for those before it is in none
            for name, count in of_split.items():
                of_split[name] = max(count, self._shown.counts[split][name])
        read = max(self._shown.done_bytes, bytes_read(self._sizes, live))
        self._shown = Progress(counts, read, sum(self._sizes.values()))
        return self._shown

    def finish(self, skipped: Skipped) -> Manifest:
        """Write rows and manifest."""
        length = self.header["length"]
        for counts in self.counts.values():
            counts["dropped_tokens"] = counts["tokens"] % length
        tokens = self.counts["train"]["tokens"]
        if tokens < length:
            raise InputError(
                f"the corpus has {tokens} training tokens, not enough for one row of {length}; "
                "give more text or a smaller length"
            )
        self.prepare()
        hashes = self.write_rows(length, self.header["dtype"])
        splits = {split: {**self.counts[split], "sha256": hashes[split]} for split in SPLITS}
        left_out: dict[str, Any] = {
            "bad": skipped.bad,
            "empty": skipped.empty,
            "subsets": dict(skipped.subsets),
            "files": {"count": len(skipped.files), "names": skipped.files[:MAX_NAMES]},
        }
        manifest = {**self.header, "splits": splits, "skipped": left_out, "inputs": self.inputs}
        if corpora := corpora_of(self.inputs):
            manifest["corpora"] = corpora
        manifest["special_text"] = dict(self.special_text)
        manifest["files"] = [describe_file(file) for file in sorted((self.new / ROWS).iterdir())]
        manifest["fingerprint"] = fingerprint(manifest)
        manifest["checksum"] = checksum(manifest)
        write_json(self.new / MANIFEST, manifest)
        shutil.rmtree(self.new / SCRATCH)
        return cast(Manifest, manifest)

    def write_rows(self, length: int, dtype: str) -> dict[str, str]:
        """Write the rows of the units, and return the SHA-256 of each split."""
        most_rows = max(1, SHARD_BYTES // (length * np.dtype(dtype).itemsize))
        shards, tasks = [], []
        for split in SPLITS:
            files = [ids_file(folder, split) for folder in self.units]
            sizes = [(file, file.stat().st_size // np.dtype(dtype).itemsize) for file in files]
            sums = {file: ids_sha256(file) for file in files}
            for number, spans in enumerate(plan_shards(sizes, length=length, most_rows=most_rows)):
                ids = [[sums[file], start, stop] for file, start, stop in spans]
                identity = {"ids": content_hash([length, dtype, ids])}
                shards.append((split, self.folder / f"{split}-{number:05d}", spans))
                tasks.append((shards[-1][1], spans, length, dtype, identity))
        kept = {path.name for path in self.units} | {folder.name for _, folder, _ in shards}
        remove_other_parts(self.folder, kept)
        hashes = {split: hashlib.sha256() for split in SPLITS}
        parts: dict[str, list[tuple[Path, Mapping[str, Any]]]] = {split: [] for split in SPLITS}
        # To start a process or a pipeline takes longer than to write a few megabytes.
        tokens = sum(counts["tokens"] for counts in self.counts.values())
        useful = 1 + tokens * np.dtype(dtype).itemsize // (SHARD_BYTES // 16)
        workers, beam = min(self.workers, len(tasks), useful), self.beam if useful > 1 else None
        with open_engine(workers, self.folder, beam) as run_map:
            for (split, folder, spans), part in zip(
                shards, run_map(make_row_shard, tasks), strict=True
            ):
                parts[split].append((folder, part))
                self.counts[split]["rows"] += part["rows"]
                for rows in read_rows(spans, length=length, dtype=dtype):  # while others write
                    hashes[split].update(rows.data)
        write_dataset(self.new / ROWS, parts, length=length, dtype=dtype)
        return {split: digest.hexdigest() for split, digest in hashes.items()}


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
        "tokenizer_hash": None,  # `_Build.prepare` sets it
        "validation_fraction": validation_fraction,
    }


def _begin(tokenizer: Tokenizer, eos_id: int) -> int:
    """Return the id of the bos token, which must be another one than the end of text."""
    bos_id = special_id(tokenizer, "bos_token")
    if bos_id in (None, eos_id):
        what = "no bos token" if bos_id is None else "one token as bos and eos"
        raise InputError(f"the tokenizer has {what}; fix: use separator=eos")
    return bos_id
