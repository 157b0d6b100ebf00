"""Parts of a corpus: what is made of a batch of input files, alone and in any process.

A part is a directory that is complete once it exists, so that a build continues after a crash:

    part.json             files with bytes and SHA-256, counts, the segments, and the settings
    left_out.jsonl.zst    records that the filters refused, or that cannot be read
    00000.docs            documents as JSON lines, in zstandard frames of a few dozen
    00000.npz             numbers of these documents: keys of their identity, and signatures
    SHA256SUMS            the hashes of these files

A segment (00000) has at most SEGMENT documents, which bounds the memory of whoever reads it. A
record without text (refused, or deleted) has a row of numbers, too: it takes part in the choice of
the newest version.
"""

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from biomedlm_jax.corpus.articles import Article, Deletion, Rejection
from biomedlm_jax.corpus.filters import Filters, license_name
from biomedlm_jax.corpus.input_files import check_sizes, describe
from biomedlm_jax.corpus.licenses import FileList, read_file_list
from biomedlm_jax.corpus.line_writer import LineWriter
from biomedlm_jax.corpus.normalisation import flags_of, normalise_article
from biomedlm_jax.corpus.parts_folder import LiveCounts, make_once
from biomedlm_jax.corpus.signatures import SEEDS, Banding, sign, text_hash
from biomedlm_jax.corpus.sources import Record, Source, TextRecords, read_source
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import content_hash

VERSION = 2  # of the layout and of what is computed: a part of another version is made again
LEVEL = 3  # of zstandard
SEGMENT = 1 << 14
SEGMENT_BYTES = 1 << 25  # of text
FRAME_BYTES = 1 << 18  # of JSON lines that are compressed together
TRUNCATED, OTHER_SUBSET = "truncated", "subset"  # reasons of the readers

# What a row stands for: bits of the column "kind".
HAS_BODY, HAS_TEXT, DELETION = 1, 2, 4


@dataclass(frozen=True)
class MapSettings:
    """All that a part depends on, beside its files."""

    filters: Filters
    records: TextRecords
    banding: Banding
    normalisations: tuple[str, ...] = ()
    on_damage: str = "raise"
    file_list: str = ""  # path of PMC's list of licences; empty: none
    file_list_sha256: str = ""

    def fingerprint(self, source: Source) -> str:
        """Return a hash of the settings for a source, whatever its paths."""
        facts = dataclasses.asdict(self) | {"file_list": "", "version": VERSION}
        return content_hash([facts, source.name, source.kind])


@dataclass
class Segment:
    """Documents of a part in memory, until they are written."""

    lines: list[bytes] = field(default_factory=list)  # b"" for a record without text
    columns: list[tuple] = field(default_factory=list)
    bands: list[np.ndarray] = field(default_factory=list)
    seeds: list[np.ndarray] = field(default_factory=list)
    samples: list[np.ndarray] = field(default_factory=list)
    text_bytes: int = 0


COLUMNS = {  # of the rows of a segment
    "record": np.uint32,  # number in the part, in the order of the files
    "kind": np.uint8,
    "version": np.int32,
    "pmid": np.uint32,
    "pmcid": np.uint32,
    "doi": np.uint64,
    "exact": np.uint64,
    "exact_rest": np.uint64,
    "text_bytes": np.uint32,
    "shingles": np.uint32,
}


def part_name(source: Source, number: int, files: Sequence[Path]) -> str:
    """Return the name of the directory of a batch's part, which depends on its files' paths."""
    digest = hashlib.blake2b("\0".join(map(str, files)).encode("utf-8", "surrogateescape"))
    return f"{source.name}-{number:06d}-{digest.hexdigest()[:12]}"


def make_part(
    folder: Path, source: Source, files: Sequence[Path], settings: MapSettings
) -> dict[str, Any]:
    """Write the part `folder` of a batch of files, unless it is there, and return its part.json.

    Raises InputError for a file that is damaged or truncated, unless `on_damage` is "skip", and for
    one that changes meanwhile.
    """
    inputs = [describe(file) for file in files]

    def write(new: Path) -> dict[str, Any]:
        counts, segments, ends = _write(new, source, files, settings)
        check_sizes(inputs)
        return {"counts": counts, "segments": segments, "ends": ends}

    identity = {"inputs": inputs, "settings": settings.fingerprint(source)}
    return make_once(folder, identity, write)


def _write(
    folder: Path, source: Source, files: Sequence[Path], settings: MapSettings
) -> tuple[dict[str, int], list[int], list[int]]:
    """Return counts, the sizes of the segments, and the record after those of each file."""
    counts: Counter[str] = Counter(records=0, read_bytes=0, documents=0, text_bytes=0)
    sizes: list[int] = []
    ends: list[int] = []
    segment = Segment()
    known = _file_list(settings.file_list) if settings.file_list else None
    live = LiveCounts(folder, files)
    with LineWriter(folder / "left_out.jsonl.zst") as left_out:
        for number, record in enumerate(_records(source, files, settings.records, ends)):
            live.write({"documents": counts["documents"] + len(segment.lines)})
            if isinstance(record, Rejection) and record.reason == OTHER_SUBSET:
                counts[OTHER_SUBSET] += 1
                continue
            stop = settings.on_damage == "raise"
            if isinstance(record, Rejection) and record.reason == TRUNCATED and stop:
                fix = "copy the file again, or pass --on_error=skip"
                detail = record.detail.replace(f"{record.place}: ", "")
                raise InputError(f"{record.place} is truncated ({detail}); {fix}")
            counts["records"] += not isinstance(record, Deletion)
            if isinstance(record, Article) and known and record.pmcid:
                listed = known.license_of(record.pmcid)
                if license_name(listed):
                    record = dataclasses.replace(record, license=listed)
            if isinstance(record, Article) and settings.normalisations:
                record = normalise_article(record, settings.normalisations)
            reason, detail = None, ""
            if isinstance(record, Rejection):
                reason, detail = record.reason, record.detail
            elif isinstance(record, Article):
                counts["read_bytes"] += len(record.text.encode("utf-8", "surrogatepass"))
                reason = settings.filters.refusal(record)
            if reason is not None:
                row = {"source": source.name, "place": record.place}
                row |= {"id": document_id(record)} if isinstance(record, Article) else {}
                row["reason"] = reason
                left_out.add(row | ({"detail": detail} if detail else {}))
                counts[f"left_out:{reason}"] += 1
            if isinstance(record, Rejection):
                continue
            if isinstance(record, Article) and reason is None:
                counts.update(f"flag:{flag}" for flag in flags_of(record.text))
            append_record(segment, number, record, settings.banding, refused=reason is not None)
            if len(segment.columns) == SEGMENT or segment.text_bytes >= SEGMENT_BYTES:
                counts["documents"] += save_segment(folder, len(sizes), segment)
                counts["text_bytes"] += segment.text_bytes
                sizes.append(len(segment.columns))
                segment = Segment()
    if segment.columns:
        counts["documents"] += save_segment(folder, len(sizes), segment)
        counts["text_bytes"] += segment.text_bytes
        sizes.append(len(segment.columns))
    return dict(sorted(counts.items())), sizes, ends


@functools.lru_cache(1)
def _file_list(path: str) -> FileList:
    return read_file_list(path)


def _records(
    source: Source, files: Sequence[Path], fields: TextRecords, ends: list[int]
) -> Iterator[Record]:
    """Yield the records of all files, and append how many there are to the end of each."""
    count = 0
    for file in files:
        for record in read_source(source, file, fields):
            count += 1
            yield record
        ends.append(count)


def append_record(
    segment: Segment,
    number: int,
    record: Article | Deletion,
    banding: Banding,
    *,
    refused: bool = False,
) -> None:
    """Append the row of a record, with its text unless the filters refused it."""
    if isinstance(record, Deletion):
        keys = (_digits(record.pmid), 0, 0)
        segment.columns.append((number, DELETION, 0, *keys, 0, 0, 0, 0))
        _no_signature(segment, banding)
        return
    keys = (_digits(record.pmid), _digits(record.pmcid), _doi_key(record.doi))
    kind = HAS_BODY if record.body else 0
    if refused:
        segment.columns.append((number, kind, record.version, *keys, 0, 0, 0, 0))
        _no_signature(segment, banding)
        return
    text = record.text
    signature = sign(text, banding)
    size = len(text.encode("utf-8"))
    numbers = (*signature.exact, size, signature.shingles)
    segment.columns.append((number, kind | HAS_TEXT, record.version, *keys, *numbers))
    segment.bands.append(signature.bands)
    segment.seeds.append(signature.seeds)
    segment.samples.append(signature.sample)
    segment.text_bytes += size
    segment.lines.append(json.dumps(document(record), ensure_ascii=False).encode("utf-8") + b"\n")


def _no_signature(segment: Segment, banding: Banding) -> None:
    segment.bands.append(np.zeros(banding.bands, np.uint64))
    segment.seeds.append(np.zeros(SEEDS, np.uint64))
    segment.samples.append(np.empty(0, np.uint64))
    segment.lines.append(b"")


def document(article: Article) -> dict[str, Any]:
    """Return the document of an article, as it stands in a corpus; unknown values are null."""
    return {
        "id": document_id(article),
        "text": article.text,
        "source": article.source,
        "license": license_name(article.license) or article.license or None,
        "pmid": article.pmid or None,
        "pmcid": article.pmcid or None,
        "doi": article.doi or None,
        "year": article.year,
    }


def document_id(article: Article) -> str:
    """Return PMC123, pmid:123, doi:10.1/x, or text: and a hash of the text, the first known."""
    named = (article.pmid and f"pmid:{article.pmid}") or (article.doi and f"doi:{article.doi}")
    return article.pmcid or named or f"text:{text_hash(article.text).hex()}"


def _digits(text: str) -> int:
    digits = text.upper().removeprefix("PMC")
    number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 11 else 0
    return number if number < 2**32 else 0


def _doi_key(doi: str) -> int:
    start = doi.lower().find("10.")  # after https://doi.org/
    if start < 0:
        return 0
    name = doi[start:].strip().lower().encode("utf-8")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def save_segment(folder: Path, number: int, segment: Segment) -> int:
    """Write a segment, and return how many documents it has."""
    frame, size, offsets, first = [], 0, [0], [0]
    compressor = zstandard.ZstdCompressor(LEVEL)
    with (folder / f"{number:05d}.docs").open("wb") as file:
        for row, line in enumerate(segment.lines, 1):
            frame.append(line)
            size += len(line)
            if size >= FRAME_BYTES or row == len(segment.lines):
                offsets.append(offsets[-1] + file.write(compressor.compress(b"".join(frame))))
                first.append(row)
                frame, size = [], 0
    columns = segment_columns(segment)
    columns |= {"frame_offset": np.array(offsets, np.uint64), "frame_row": np.array(first)}
    np.savez(folder / f"{number:05d}.npz", allow_pickle=False, **columns)
    return sum(1 for line in segment.lines if line)


def segment_columns(segment: Segment) -> dict[str, np.ndarray]:
    """Return the numbers of a segment by name: `COLUMNS`, bands, seeds and samples."""
    rows = zip(*segment.columns, strict=True)
    columns = {
        name: np.array(values, dtype)
        for (name, dtype), values in zip(COLUMNS.items(), rows, strict=True)
    }
    bands = np.stack(segment.bands, axis=1)
    columns |= {f"band{number}": keys for number, keys in enumerate(bands)}
    seeds = np.stack(segment.seeds, axis=1)
    columns |= {f"seed{number}": keys for number, keys in enumerate(seeds)}
    owners = np.repeat(np.arange(len(segment.samples)), [len(one) for one in segment.samples])
    columns |= {"sample": np.concatenate(segment.samples), "sample_row": owners.astype(np.uint32)}
    return columns


class SegmentReader:
    """The documents and numbers of one segment of a part."""

    def __init__(self, folder: Path, number: int):
        self._docs, self._npz = folder / f"{number:05d}.docs", folder / f"{number:05d}.npz"
        self._frame: tuple[int, list[bytes]] = (-1, [])

    def columns(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Return columns by name, with a value for each row."""
        with np.load(self._npz) as columns:
            return {name: columns[name] for name in names}

    @functools.cached_property
    def _index(self) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Return where the frames begin, their first rows, and which rows have text."""
        columns = self.columns(("frame_offset", "frame_row", "kind"))
        has_text = (columns["kind"] & HAS_TEXT) != 0
        return columns["frame_offset"].tolist(), columns["frame_row"], has_text

    def lines(self, rows: Iterable[int]) -> Iterator[bytes]:
        """Yield the JSON lines of rows in the given order, b"" for a record without text."""
        offsets, first, has_text = self._index
        with self._docs.open("rb") as file:
            for row in rows:
                frame = int(np.searchsorted(first, row, side="right")) - 1
                if frame != self._frame[0]:
                    file.seek(offsets[frame])
                    packed = file.read(offsets[frame + 1] - offsets[frame])
                    lines = iter(zstandard.ZstdDecompressor().decompress(packed).splitlines(True))
                    there = has_text[first[frame] : first[frame + 1]].tolist()
                    self._frame = (frame, [next(lines) if line else b"" for line in there])
                yield self._frame[1][row - int(first[frame])]
