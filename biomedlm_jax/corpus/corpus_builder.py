"""Build a corpus: from the files of publishers to shards of documents, each record accounted for.

1. Each batch of input files becomes a part (parts.py): filtered documents and their signatures.
   Parts are pure functions of their files, are made in any process, and survive a crash.
2. One process decides which documents are versions, copies or parts of others (deduplication.py),
   and how often each of the rest is in the corpus (epochs).
3. The shards are written in any process, and the directory appears in one step.

All order is that of the sources, their files and the records in these, so that the same input
gives the same bytes with any number of processes.
"""

import bisect
import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import biomedlm_jax
from biomedlm_jax.buckets import is_bucket
from biomedlm_jax.corpus.corpus_manifest import (
    CORPUS_FORMAT,
    INPUTS,
    LEFT_OUT,
    MANIFEST,
    corpus_checksum,
    is_corpus,
)
from biomedlm_jax.corpus.corpus_settings import CorpusSettings
from biomedlm_jax.corpus.deduplication import REASONS, STAGES, Decisions, deduplicate
from biomedlm_jax.corpus.engines import open_engine
from biomedlm_jax.corpus.input_files import batches, describe
from biomedlm_jax.corpus.line_writer import LineWriter
from biomedlm_jax.corpus.manifest import naming
from biomedlm_jax.corpus.normalisation import choose
from biomedlm_jax.corpus.parts import OTHER_SUBSET, MapSettings, make_part, part_name
from biomedlm_jax.corpus.parts_folder import (
    PART,
    bytes_read,
    live_counts,
    locked_parts_folder,
    remove_other_parts,
)
from biomedlm_jax.corpus.process_pool import Map
from biomedlm_jax.corpus.progress import report_regularly
from biomedlm_jax.corpus.segments import TIMES, Segments, read_times, write_shard
from biomedlm_jax.corpus.signatures import Banding
from biomedlm_jax.corpus.sources import Source
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json, write_json
from biomedlm_jax.outputs import atomic_directory
from biomedlm_jax.streams import read_lines

MAX_INPUTS = 10_000  # files that the manifest lists; INPUTS lists all
MAX_NAMES = 1000  # of files that were not read
PACKAGES = ("datasketch", "lxml", "numpy", "scipy", "zstandard")


@dataclass
class Progress:
    """How far a build is: `step` is read, then identity, exact, near, contained, and write."""

    step: str = "read"
    done_bytes: int = 0  # of the input files, or of the text that is written
    all_bytes: int = 0
    documents: int = 0


def build_corpus(
    sources: Sequence[Source],
    out: str | Path,
    settings: CorpusSettings | None = None,
    *,
    workers: int = 1,
    beam: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Write the corpus directory `out` and return its manifest.

    Finished parts are kept in `parts_folder(out)` until the corpus is complete: after a crash, an
    error or Ctrl-C, the same call continues with them, and `out` is as it was before.

    Args:
      workers: processes; the result does not depend on it.
      beam: flags of Apache Beam, whose pipelines run the tasks instead of `workers` processes, with
        the same result; all its workers share the file system of the sources and of `out`.
      overwrite: replace an earlier corpus; any other non-empty directory is never replaced.
      progress: called every few seconds, from another thread.

    Raises InputError for settings, sources and files that a person must change, if no document is
    left, and if another process builds the same corpus.
    """
    if is_bucket(out):
        raise InputError(f"got out={out}; write to a local directory and copy it")
    if workers < 1:
        raise InputError(f"got workers={workers}; expected at least 1")
    settings = settings or CorpusSettings()
    settings.check(sources)
    with (
        locked_parts_folder(out, "this corpus") as folder,
        naming(Path(out)),  # a full disk
        atomic_directory(out, replaceable=is_corpus, overwrite=overwrite) as new,
        open_engine(workers, folder, beam) as run_map,
    ):
        build = _Build(sources, settings, folder, new, run_map)
        with report_regularly(lambda: progress(build.progress()) if progress else None):
            manifest = build.run()
    return manifest


class _Build:
    """One build; its methods run in their order."""

    def __init__(
        self,
        sources: Sequence[Source],
        settings: CorpusSettings,
        parts: Path,
        new: Path,
        run_map: Map,
    ):
        self.sources, self.settings = sources, settings
        self.folder, self.new, self.run_map = parts, new, run_map
        self.state = self.shown = Progress()
        self.sizes: dict[Path, int] = {}  # bytes of the files of each part
        self.parts: list[tuple[int, Path, dict[str, Any]]] = []  # source, directory, part.json
        self.banding = Banding.of(settings.near) if settings.near else Banding(0, 1)
        self.file_list: dict[str, Any] | None = None
        self.skipped: list[str] = []  # files in directories that were not read

    def run(self) -> dict[str, Any]:
        self.make_parts()
        self.segments = Segments(self.parts, self.banding.bands)
        decisions = deduplicate(
            self.segments,
            self.run_map,
            self.folder,
            near=self.settings.near,
            contained=self.settings.contained,
            progress=lambda step: setattr(self.state, "step", step),
        )
        stages = self.stages(decisions)
        epochs = self.epochs(stages)
        self.write_times(decisions, epochs)
        shards = self.write_shards(epochs)
        self.write_left_out(decisions)
        described = [
            self.describe_source(number, stages[number], epochs[number], decisions)
            for number in range(len(self.sources))
        ]
        return self.write_manifest(described, shards)

    def progress(self) -> Progress:
        """Return the progress with parts that are being made, never below an earlier one."""
        state = dataclasses.replace(self.state)
        if state.step == "read":
            live = list(live_counts(self.folder))
            read = bytes_read(self.sizes, live)
            documents = state.documents + sum(counts["documents"] for counts in live)
            state.done_bytes = max(read, self.shown.done_bytes)
            state.documents = max(documents, self.shown.documents)
        self.shown = state
        return state

    def make_parts(self) -> None:
        """Make the part of each batch of files, or take it from an earlier call."""
        files = [source.files(self.skipped) for source in self.sources]
        tasks, kept = [], set()
        settings = self.map_settings()
        for number, source in enumerate(self.sources):
            for index, batch in enumerate(batches(files[number])):
                folder = self.folder / part_name(source, index, batch)
                kept.add(folder.name)
                self.parts.append((number, folder, {}))
                self.sizes[folder] = sum(file.stat().st_size for file in batch)
                tasks.append((folder, source, batch, settings))
        remove_other_parts(self.folder, kept)
        self.state.all_bytes = sum(self.sizes.values())
        # The longest first: one that starts last would leave the other processes without work.
        order = sorted(range(len(tasks)), key=lambda index: -self.sizes[tasks[index][0]])
        results = self.run_map(make_part, (tasks[index] for index in order))
        for index, part in zip(order, results, strict=True):
            inputs, _ = part.pop("inputs"), part.pop("ends")  # there may be millions
            part["files"], part["bytes"] = len(inputs), sum(file["bytes"] for file in inputs)
            self.parts[index] = (*self.parts[index][:2], part)
            self.state.documents += part["counts"]["documents"]

    def read_part(self, folder: Path) -> tuple[list[dict[str, Any]], list[int]]:
        """Return the files of a part, and the number of the record after those of each."""
        part = read_json(folder / PART)
        return part["inputs"], part["ends"]

    def inputs(self) -> Iterator[dict[str, Any]]:
        """Yield the description of each file that was read."""
        for number, folder, _ in self.parts:
            for file in self.read_part(folder)[0]:
                yield {"source": self.sources[number].name, **file}

    def map_settings(self) -> MapSettings:
        """Return the settings of the parts."""
        given = self.settings
        settings = MapSettings(
            given.filters,
            given.records,
            self.banding,
            choose(given.normalisations),
            given.on_damage,
        )
        if given.file_list:
            self.file_list = describe(Path(given.file_list))
            settings = dataclasses.replace(
                settings, file_list=given.file_list, file_list_sha256=self.file_list["sha256"]
            )
        return settings

    def stages(self, decisions: Decisions) -> list[dict[str, Any]]:
        """Return for each source the documents and bytes after each step."""
        # Of each source, documents and bytes by reason.
        totals = np.zeros((len(self.sources), len(REASONS), 2), np.int64)
        for segment, number in enumerate(self.segments.sources):
            reason = decisions.reason[self.segments.of(segment)]
            sizes = self.segments.column(segment, "text_bytes")
            counts = [np.bincount(reason, weights, len(REASONS)) for weights in (None, sizes)]
            totals[number] += np.stack(counts, axis=1).astype(np.int64)
        stages = []
        for number in range(len(self.sources)):
            counts = Counter()
            for source, _, part in self.parts:
                counts.update(part["counts"] if source == number else {})
            row: dict[str, Any] = {
                "read": {"documents": counts["records"], "text_bytes": counts["read_bytes"]}
            }
            left = {*REASONS} - {"no_text"}
            for stage, reasons in {"filters": (), **STAGES}.items():
                left -= {*reasons}
                there = totals[number, [REASONS.index(reason) for reason in left]].sum(axis=0)
                row[stage] = {"documents": int(there[0]), "text_bytes": int(there[1])}
            stages.append(row)
        return stages

    def epochs(self, stages: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return how often the documents of each source are in the corpus."""
        names = [source.name for source in self.sources]
        if not self.settings.mixture:
            return [float(self.settings.epochs.get(name, 1)) for name in names]
        there = [row["contained"]["text_bytes"] for row in stages]
        for name, size in zip(names, there, strict=True):
            if not size:
                raise InputError(f"the source {name} has no document, but a share of the mixture")
        shares = [self.settings.mixture[name] for name in names]
        ratio = min(size / share for size, share in zip(there, shares, strict=True))
        most = self.settings.mixture_epochs * ratio
        return [most * share / size for size, share in zip(there, shares, strict=True)]

    def write_times(self, decisions: Decisions, epochs: Sequence[float]) -> None:
        """Write how often each record is in the corpus, and count documents of each source."""
        seed = hashlib.blake2b(str(self.settings.seed).encode(), digest_size=8).digest()
        factor = np.uint64(int.from_bytes(seed, "big") | 1)
        self.totals = np.zeros((len(self.sources), 3), np.int64)  # documents, bytes, not sampled
        names = ("exact", "exact_rest", "text_bytes")
        with (self.folder / TIMES).open("wb") as file:
            for segment, number in enumerate(self.segments.sources):
                rows = self.segments.columns(segment, segment + 1, names)
                kept = decisions.kept[self.segments.of(segment)]
                whole = math.floor(epochs[number])
                bound = min(int((epochs[number] - whole) * 2**64), 2**64 - 1)
                key = rows["exact"] ^ (rows["exact_rest"] * factor)
                times = (kept * (whole + (key < np.uint64(bound)))).astype(np.int32)
                file.write(times.tobytes())
                size = int((rows["text_bytes"].astype(np.int64) * times).sum())
                without = np.count_nonzero(kept & (times == 0))
                self.totals[number] += (times.sum(dtype=np.int64), size, without)

    def times(self, segment: int) -> np.ndarray:
        """Return how often each record of a segment is in the corpus."""
        return read_times(self.folder / TIMES, self.segments.of(segment))

    def plan(self, epochs: Sequence[float]) -> Iterator[list[tuple[int, int, int, int]]]:
        """Yield (pass, segment, first, end) of each shard, in the order of the corpus.

        They are records of a segment among those in the pass. A new shard begins once the text
        has `shard_bytes`.
        """
        shard, filled = [], 0
        for turn in range(math.ceil(max(epochs, default=0))):
            for segment, number in enumerate(self.segments.sources):
                if epochs[number] <= turn:
                    continue
                rows = np.flatnonzero(self.times(segment) > turn)
                sizes = self.segments.column(segment, "text_bytes")[rows]
                ends, first = np.cumsum(sizes, dtype=np.int64), 0
                while first < len(rows):
                    before = int(ends[first - 1]) if first else 0
                    room = before + self.settings.shard_bytes - filled
                    last = min(int(np.searchsorted(ends, room)) + 1, len(rows))
                    shard.append((turn, segment, first, last))
                    filled += int(ends[last - 1]) - before
                    first = last
                    if filled >= self.settings.shard_bytes:
                        yield shard
                        shard, filled = [], 0
        if shard:
            yield shard

    def write_shards(self, epochs: Sequence[float]) -> list[dict[str, Any]]:
        """Write the documents, and return the description of each file."""
        self.state.step, self.state.done_bytes = "write", 0
        self.state.documents, self.state.all_bytes = 0, int(self.totals[:, 1].sum())
        count = sum(1 for _ in self.plan(epochs))
        if not count:
            reasons = self.counted("left_out:")
            listed = ", ".join(f"{number:,} {name}" for name, number in reasons.items())
            raise InputError(f"no document is left; left out: {listed or 'nothing was read'}")
        folders, starts = self.segments.folders, self.segments.starts.tolist()
        tasks = (
            (
                self.new / f"documents-{number:05d}-of-{count:05d}.jsonl.zst",
                self.folder,
                [
                    (turn, *folders[segment], starts[segment], *rows)
                    for turn, segment, *rows in shard
                ],
            )
            for number, shard in enumerate(self.plan(epochs))
        )
        shards = []
        for shard in self.run_map(write_shard, tasks):
            shards.append(shard)
            self.state.done_bytes += shard["text_bytes"]
            self.state.documents += shard["documents"]
        return shards

    def counted(self, prefix: str, source: int | None = None) -> Counter[str]:
        """Return the sums of the counts of the parts whose names have a prefix, without it."""
        sums: Counter[str] = Counter()
        for number, _, part in self.parts:
            for name, count in part["counts"].items() if source in (None, number) else ():
                if name.startswith(prefix):
                    sums[name.removeprefix(prefix)] += count
        return sums

    def write_left_out(self, decisions: Decisions) -> None:
        """Write each record that is not in the corpus, with the reason, in the order of the parts.

        In a part, those that could not be read or were refused come first.
        """
        segment = 0
        with LineWriter(self.new / LEFT_OUT) as left_out:
            for number, folder, part in self.parts:
                for _, line in read_lines(folder / "left_out.jsonl.zst"):
                    left_out.add_line(line)
                files, ends = self.read_part(folder)
                for _ in part["segments"]:
                    for record, row in self.left_out_of(segment, decisions):
                        place = files[bisect.bisect_right(ends, record)]["path"]
                        left_out.add({"source": self.sources[number].name, "place": place, **row})
                    segment += 1

    def left_out_of(
        self, segment: int, decisions: Decisions
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number in the part, and id, reason and other id, of records of a segment."""
        start, reason = self.segments.starts[segment], decisions.reason[self.segments.of(segment)]
        rows = np.flatnonzero((self.times(segment) == 0) & (reason != REASONS.index("no_text")))
        if not rows.size:
            return
        numbers = self.segments.column(segment, "record")
        lines = self.segments.lines(segment, rows)
        for row, line in zip(rows.tolist(), lines, strict=True):
            entry = {"id": json.loads(line)["id"], "reason": REASONS[reason[row]] or "not_sampled"}
            other = int(decisions.other[start + row])
            # The newest version of an article may be one that the filters refused.
            if other >= 0 and (document := self.segments.document(other)):
                entry["because_of"] = document["id"]
            yield int(numbers[row]), entry

    def describe_source(
        self,
        number: int,
        stages: Mapping[str, Any],
        epochs: float,
        decisions: Decisions,
    ) -> dict[str, Any]:
        """Return the entry of a source in the manifest."""
        source, parts = self.sources[number], [part for n, _, part in self.parts if n == number]
        reasons = self.counted("left_out:", number)
        for segment, owner in enumerate(self.segments.sources):
            if owner == number:
                reason = decisions.reason[self.segments.of(segment)]
                counts = np.bincount(reason, minlength=len(REASONS)).tolist()
                reasons.update(dict(zip(REASONS[2:], counts[2:], strict=True)))
        documents, size, reasons["not_sampled"] = self.totals[number].tolist()
        flags = dict(self.counted("flag:", number))
        corpus = {"documents": documents, "text_bytes": size}
        return {
            "name": source.name,
            "format": source.kind,
            "files": sum(part["files"] for part in parts),
            "bytes": sum(part["bytes"] for part in parts),
            "epochs": epochs,
            "stages": {**stages, "corpus": corpus},
            "left_out": {name: count for name, count in sorted(reasons.items()) if count},
            "flags": flags,
            "lines_of_other_subsets": sum(part["counts"].get(OTHER_SUBSET, 0) for part in parts),
        }

    def write_manifest(
        self, sources: Sequence[dict[str, Any]], shards: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        """Write the list of inputs and the manifest, and return this."""
        with LineWriter(self.new / INPUTS) as lines:
            for entry in self.inputs():
                lines.add(entry)
        manifest: dict[str, Any] = {
            **CORPUS_FORMAT,
            "documents": sum(shard["documents"] for shard in shards),
            "text_bytes": sum(shard["text_bytes"] for shard in shards),
            "sources": list(sources),
            "settings": json.loads(json.dumps(dataclasses.asdict(self.settings))),
            "file_list": self.file_list,
            "versions": {
                "biomedlm_jax": biomedlm_jax.__version__,
                **{name: version(name) for name in PACKAGES},
            },
            "files": list(shards),
            "inputs": list(islice(self.inputs(), MAX_INPUTS)),
            "files_not_read": {"count": len(self.skipped), "names": self.skipped[:MAX_NAMES]},
        }
        manifest["checksum"] = corpus_checksum(manifest)
        write_json(self.new / MANIFEST, manifest)
        return manifest
