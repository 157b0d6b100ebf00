"""Health of a directory: what of a run, an export, rows or a corpus is not as it was written."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

from biomedlm_jax.buckets import as_path, is_bucket
from biomedlm_jax.corpus.corpus_manifest import is_corpus, read_corpus_manifest
from biomedlm_jax.corpus.manifest import MANIFEST, ROWS, read_manifest
from biomedlm_jax.corpus.packer import SPLITS
from biomedlm_jax.corpus.rows import Rows
from biomedlm_jax.corpus.tokenizer import load_tokenizer, tokenizer_hash
from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.files import read_json
from biomedlm_jax.integrity import SUMS, damage, has_sums, read_sums, write_sums
from biomedlm_jax.interop.directories import CONFIG, MODEL_FOLDER
from biomedlm_jax.training.metrics import read_events, read_metrics
from biomedlm_jax.training.provenance import RUN_FILE
from biomedlm_jax.training.saved_steps import FOLDER, is_committed, problems_of, step_folders

_ROWS_AT_ONCE = 1024


@dataclasses.dataclass
class Part:
    """One part of a directory; `problems` is empty if it is whole."""

    name: str
    problems: list[str]
    note: str = ""

    def line(self) -> str:
        """Return what a person reads."""
        if not self.problems:
            return f"{self.name}: {self.note or 'whole'}"
        more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
        return f"{self.name}: DAMAGED: {self.problems[0]}{more}"


def check_directory(path: str | Path, *, add_sums: bool = False) -> list[Part]:
    """Return the parts of a run, export, token rows, corpus or tokenizer, after reading all files.

    With `add_sums`, SHA256SUMS is written where a finished part has none. Raises InputError if
    `path` is no such directory.
    """
    path = as_path(path)
    if not path.is_dir():
        raise InputError(f"no such directory: {path}")
    if (path / RUN_FILE).exists() or (
        (path / FOLDER).is_dir() and (path / "metrics.jsonl").exists()
    ):
        parts = list(_parts_of_run(path, add_sums=add_sums))
    else:
        rows, corpus = (path / ROWS).exists(), not is_bucket(path) and is_corpus(path)
        parts = [_files(path, ".", add_sums=add_sums, complete=rows or corpus)]
        if corpus:
            parts.append(_documents(path))
        if rows:
            if not has_sums(path) and _is_earlier(path):  # its rows have a hash of their own
                parts = [Part(".", [], f"{SUMS} is missing; --write_sums adds it")]
            parts.append(_token_rows(path))
    return parts


def _files(path: Path, name: str, *, add_sums: bool, complete: bool) -> Part:
    """Compare the files of a directory that was written in one step with their hashes."""
    if not has_sums(path):
        if not add_sums:
            advice = "biomedlm verify --write_sums records the present content"
            return Part(name, [f"{SUMS} is missing; {advice}"])
        write_sums(path)
        return Part(name, [], f"{SUMS} is written")
    return Part(name, damage(path, complete=complete), _whole(path))


def _is_earlier(rows: Path) -> bool:
    """Return whether an earlier version built token rows: their manifest lists no files."""
    try:
        return "files" not in read_manifest(rows)
    except (InputError, OSError):
        return False


def _whole(path: Path) -> str:
    try:
        count = len(read_sums(path))
    except (InputError, FileNotFoundError):  # damage, which is reported
        count = 0
    return counted(count, "file is whole", "files are whole")


def _documents(corpus: Path) -> Part:
    """Check the manifest of a corpus; its files are compared with SHA256SUMS elsewhere."""
    try:
        manifest = read_corpus_manifest(corpus)
    except InputError as error:
        return Part("documents", [str(error)])
    return Part("documents", [], f"the manifest lists {counted(manifest['documents'], 'document')}")


def _token_rows(path: Path) -> Part:
    """Compare the rows themselves with the hash that was taken when they were built."""
    try:
        manifest = read_manifest(path)
        for split in SPLITS:
            rows, digest = Rows(path, split), hashlib.sha256()
            for first in range(0, len(rows), _ROWS_AT_ONCE):
                chosen = range(first, min(first + _ROWS_AT_ONCE, len(rows)))
                digest.update(rows.__getitems__(chosen).tobytes())
            if digest.hexdigest() != manifest["splits"][split]["sha256"]:
                return Part(ROWS, [f"the {split} rows are not those that were built"])
    except (InputError, OSError) as error:
        return Part(ROWS, [str(error)])
    counts = ", ".join(f"{manifest['splits'][split]['rows']:,} {split}" for split in SPLITS)
    return Part(ROWS, [], f"{counts} rows are whole")


def _parts_of_run(run: Path, *, add_sums: bool) -> Iterator[Part]:
    yield Part("record", [*_record_problems(run)])
    for step, folder in step_folders(run):
        name = f"{FOLDER}/{step}"
        if not is_committed(folder):
            yield Part(name, [], "never finished; resuming the run renames it")
        elif add_sums and not has_sums(folder):
            write_sums(folder)
            yield Part(name, [], f"{SUMS} is written")
        else:
            yield Part(name, problems_of(folder), _whole(folder))
    if (run / MODEL_FOLDER).is_dir():
        yield _files(run / MODEL_FOLDER, MODEL_FOLDER, add_sums=add_sums, complete=False)


def _record_problems(run: Path) -> Iterator[str]:
    """Yield what of a run's config, tokenizer and metrics contradicts run.json or is damaged."""
    try:
        record = read_json(run / RUN_FILE)
        start = record.get("started_from", {})
        for name in (CONFIG, "tokenizer.json") if record.get("recipe") == "pretrain" else ():
            if not (run / name).exists():
                yield f"{name} is missing"
        if not isinstance(start, dict):
            raise InputError(f"{RUN_FILE} has no started_from")
        if (run / CONFIG).exists() and isinstance(start.get("model"), dict):
            model = read_json(run / CONFIG).get("model")
            if not isinstance(model, dict):
                raise InputError(f"{CONFIG} has no model")
            for name, value in start["model"].items():
                if name in model and model[name] != value:
                    yield f"{CONFIG} has {name}={model[name]!r}, {RUN_FILE} {value!r}"
        known = (run / "tokenizer.json").exists() and "tokenizer" in start
        if known and tokenizer_hash(load_tokenizer(run)) != start["tokenizer"]:
            yield "tokenizer.json is not the tokenizer that the run started from"
        if (run / MANIFEST).exists():
            read_manifest(run)
    except (InputError, OSError) as error:
        yield str(error)
    for name, read in (("metrics.jsonl", read_metrics), ("events.jsonl", read_events)):
        file = run / name
        lines = file.read_bytes().count(b"\n") if file.exists() else 0
        if lines > len(read(run)):
            yield f"{name} has {lines - len(read(run))} damaged lines"
