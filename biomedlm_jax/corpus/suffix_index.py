"""A suffix array of the words of one shard of a corpus, in files that are mapped into memory.

    text            the words of all documents in UTF-8, a space before and after each, and a line
                    end after each document; words are those of ngrams.py
    suffixes.npy    the places of the spaces before words, in the order of what follows them
    documents.npy   the place of each document in the text, and the end
    documents.zst   the documents as JSON, a frame each
    frames.npy      the place of each frame, and the end
    index.json      what the index is of
    SHA256SUMS      the hashes of these files

libdivsufsort sorts the suffixes at all bytes (4 bytes of memory for each, 8 above 2 GiB); those at
words stay, which are a sixth of them. Searching needs numpy only.
"""

import json
import mmap
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from biomedlm_jax.corpus.documents import DocumentReader, Skipped
from biomedlm_jax.corpus.input_files import describe
from biomedlm_jax.corpus.ngrams import words
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json, write_json
from biomedlm_jax.integrity import SUMS, damage, has_sums
from biomedlm_jax.outputs import atomic_directory

FORMAT = {"format": "biomedlm_jax suffix index", "version": 1}
INDEX = "index.json"
FILES = ("text", "suffixes.npy", "documents.npy", "documents.zst", "frames.npy")
SMALL = (INDEX, "documents.npy", "frames.npy")  # whose hashes are compared at each opening
LEVEL = 3  # of zstandard
BLOCK = 1 << 22  # suffixes that are chosen from together
WINDOW = 256  # bytes of a pattern that are compared first
_SPACE, _END = b" ", b"\n"


def build_index(shard: Path, sha256: str, out: Path) -> dict[str, Any]:
    """Write the index of a shard of documents, unless `out` is one, and return its index.json.

    A damaged index is written again. `sha256` is what the shard must have. Raises InputError if it
    has not, and without pydivsufsort.
    """
    try:
        from pydivsufsort import divsufsort
    except ImportError:
        fix = "pip install 'biomedlm-jax[trace]'"
        raise InputError(f"an index needs pydivsufsort, which is missing; fix: {fix}") from None
    if is_index(out) and not stale(out, sha256) and not damage(out):
        return read_json(out / INDEX)
    if describe(shard)["sha256"] != sha256:
        raise InputError(f"{shard} was changed after the corpus was built; copy it again")
    with atomic_directory(out, replaceable=_is_replaceable, overwrite=True) as new:
        text, places, frames = bytearray(), [0], [0]
        compressor = zstandard.ZstdCompressor(LEVEL, write_checksum=True)
        with (new / "documents.zst").open("wb") as file:
            for document in DocumentReader().read([shard], Skipped()):
                line = " ".join(["", *words(document.text), ""]).encode("utf-8", "surrogatepass")
                text += line + _END
                places.append(len(text))
                record = json.dumps({"names": dict(document.names), "text": document.text})
                frames.append(frames[-1] + file.write(compressor.compress(record.encode())))
        (new / "text").write_bytes(text)
        here = np.frombuffer(text, np.uint8)
        suffixes = divsufsort(here)
        at_words = here == _SPACE[0]
        at_words[:-1] &= here[1:] != _END[0]
        # In blocks: numpy widens the numbers that index an array to 8 bytes.
        blocks = (suffixes[at : at + BLOCK] for at in range(0, suffixes.size, BLOCK))
        np.save(new / "suffixes.npy", np.concatenate([one[at_words[one]] for one in blocks]))
        np.save(new / "documents.npy", np.array(places, np.int64))
        np.save(new / "frames.npy", np.array(frames, np.int64))
        sizes = {name: (new / name).stat().st_size for name in FILES}
        counts = {"documents": len(places) - 1, "words": int(at_words.sum())}
        facts = {**FORMAT, "shard": shard.name, "sha256": sha256, **counts, "files": sizes}
        write_json(new / INDEX, facts)
    return facts


def is_index(directory: Path) -> bool:
    """Return whether a directory is the index of a shard, of any version."""
    try:
        return read_json(directory / INDEX).get("format") == FORMAT["format"]
    except (InputError, OSError):
        return False


def _is_replaceable(directory: Path) -> bool:
    """Return whether a directory has files of an index only; its index.json may be damaged."""
    return {file.name for file in directory.iterdir()} <= {INDEX, SUMS, *FILES}


def stale(directory: Path, sha256: str) -> str:
    """Return why an index does not serve for a shard of this hash; "" if it does."""
    facts = read_json(directory / INDEX)
    if {key: facts.get(key) for key in FORMAT} != FORMAT:
        return "is of another version"
    if facts.get("sha256") != sha256:
        return "is of other documents"
    sizes: Mapping[str, Any] = facts.get("files") or {}
    for name in FILES:
        file = directory / name
        if not file.is_file() or file.stat().st_size != sizes.get(name):
            return f"is damaged: {name} is missing or has another size"
    if not has_sums(directory):
        return f"is damaged: {SUMS} is missing"
    problems = damage(directory, of=SMALL.__contains__, complete=False)
    return f"is damaged: {problems[0]}" if problems else ""


class SuffixIndex:
    """The index of one shard, opened for searching."""

    def __init__(self, directory: Path):
        """Open the files. Raises InputError for a damaged one, as `document` does."""
        self._directory = directory
        with (directory / "text").open("rb") as file:
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            suffixes = np.load(directory / "suffixes.npy", mmap_mode="r", allow_pickle=False)
        except ValueError:
            raise self.damaged("suffixes.npy") from None
        self._suffixes = np.asarray(suffixes)  # mapped as well, and faster to index
        self._documents = np.load(directory / "documents.npy", allow_pickle=False)
        self._frames = np.load(directory / "frames.npy", allow_pickle=False)
        self.document = lru_cache(64)(self._document)

    def damaged(self, what: str) -> InputError:
        """Return the error of a damaged file."""
        fix = "biomedlm trace --build writes it again"
        return InputError(f"the index {self._directory} is damaged: {what}; {fix}")

    def longest(self, pattern: bytes) -> int:
        """Return how many bytes of the longest whole words that `pattern` begins with are here.

        A pattern is words with a space before and after each; so is what the number counts.
        """
        window, rows = WINDOW, range(len(self._suffixes))
        while True:
            part = pattern[:window]
            place = self._first(part, rows)
            longest = max(self._common(row, part) for row in (place - 1, place))
            if longest < len(part) or len(part) == len(pattern):
                return part.rfind(_SPACE, 1, longest) + 1 if longest > 1 else 0
            rows = range(place, self._first(part + b"\xff", rows))  # a longer part is in these
            window *= 4

    def rows(self, pattern: bytes) -> range:
        """Return the rows of `suffixes` that begin with `pattern`, whole words as above."""
        every = range(len(self._suffixes))
        return range(self._first(pattern, every), self._first(pattern + b"\xff", every))

    def places(self, rows: range) -> tuple[np.ndarray, np.ndarray]:
        """Return the documents in which rows begin, and their places in the text, in its order."""
        places = np.sort(np.asarray(self._suffixes[rows.start : rows.stop], np.int64))
        return np.searchsorted(self._documents, places, side="right") - 1, places

    def words_before(self, document: int, place: int) -> int:
        """Return how many words of a document are before a place in the text."""
        return self._text[int(self._documents[document]) : place].count(_SPACE)

    def _document(self, number: int) -> dict[str, Any]:
        """Return a document: its names and its text."""
        start, end = self._frames[number : number + 2].tolist()
        with (self._directory / "documents.zst").open("rb") as file:
            file.seek(start)
            frame = file.read(end - start)
        try:
            return json.loads(zstandard.ZstdDecompressor().decompress(frame))
        except (zstandard.ZstdError, ValueError):
            raise self.damaged("documents.zst") from None

    def _first(self, pattern: bytes, rows: range) -> int:
        """Return the first of some rows whose suffix is not before `pattern`, or their end."""
        low, high, size = rows.start, rows.stop, len(pattern)
        while low < high:
            middle = (low + high) // 2
            place = int(self._suffixes[middle])
            if self._text[place : place + size] < pattern:
                low = middle + 1
            else:
                high = middle
        return low

    def _common(self, row: int, pattern: bytes) -> int:
        """Return how many bytes a row's suffix and `pattern` have in common at their beginning."""
        if not 0 <= row < len(self._suffixes):
            return 0
        place = int(self._suffixes[row])
        suffix = self._text[place : place + len(pattern)]
        if suffix == pattern:
            return len(pattern)
        low, high = 0, min(len(suffix), len(pattern))
        while low < high:  # the longest equal beginning
            middle = (low + high + 1) // 2
            low, high = (middle, high) if suffix[:middle] == pattern[:middle] else (low, middle - 1)
        return low
