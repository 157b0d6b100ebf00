"""Signatures of texts: what deduplication compares instead of the texts.

A text is the set of its shingles, all runs of five words in lower case. All numbers depend on the
text and the settings only: on no machine, process or order.

MinHash is datasketch's: it is computed with numpy, so that every machine gets the same bits, and
its schemes stay as they are between versions. rensa is many times faster, but its signatures
changed with its version 0.5, and the words and shingles take as long as datasketch does.
"""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasketch import MinHash

WIDTH = 5  # words of a shingle
PERMUTATIONS = 128  # at most
RECALL = 0.99  # of the bands, for a pair whose similarity is the threshold
SEEDS = 6  # shingles by which a short text is looked up in longer ones
SAMPLED = 8  # one shingle in so many can be a seed
_WORD = re.compile(r"\w+")
_KNOWN_WORDS = 1 << 18
_CHUNK = 256  # shingles whose permutations fit the cache of a core
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Banding:
    """`bands` keys of `rows` MinHash values each: texts with an equal key are compared."""

    bands: int
    rows: int

    @classmethod
    def of(cls, threshold: float) -> "Banding":
        """Return the longest rows whose recall at the Jaccard similarity `threshold` is RECALL."""
        choices = (cls(PERMUTATIONS // rows, rows) for rows in range(PERMUTATIONS, 0, -1))
        return next(one for one in choices if one.rows == 1 or one.recall(threshold) >= RECALL)

    def recall(self, similarity: float) -> float:
        """Return the probability that two texts of a Jaccard similarity have an equal key."""
        return 1 - (1 - similarity**self.rows) ** self.bands


@dataclass(frozen=True)
class Signature:
    """Numbers of one text, uint64; a key of 0 stands for nothing."""

    exact: tuple[int, int]  # hash of the text but for its white space
    shingles: int
    bands: np.ndarray  # [bands]
    seeds: np.ndarray  # [SEEDS]
    sample: np.ndarray  # all shingles that can be seeds, of it or of another text


def sign(text: str, banding: Banding) -> Signature:
    """Return the signature of a text."""
    hashes = shingles(text)
    sample = hashes[hashes < np.uint64(2**64 // SAMPLED)]
    seeds = np.zeros(SEEDS, np.uint64)
    seeds[: min(SEEDS, sample.size)] = sample[:SEEDS]  # they are sorted
    exact = text_hash(text)
    halves = (int.from_bytes(exact[:8], "big"), int.from_bytes(exact[8:], "big"))
    return Signature(halves, hashes.size, _bands(hashes, banding), seeds, sample)


def text_hash(text: str) -> bytes:
    """Return the 16 bytes of a hash of a text in NFC whose runs of white space are one space."""
    plain = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def shingles(text: str) -> np.ndarray:
    """Return the hashes of the shingles of a text, uint64, sorted, each once, none 0.

    A text of fewer words is one shingle, a text without words has none.
    """
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    if not words:
        return np.empty(0, np.uint64)
    ids = word_ids(words)
    hashes = np.unique(run_hashes(ids, min(WIDTH, ids.size)))
    return hashes[1:] if hashes[0] == 0 else hashes


def word_ids(words: Sequence[str]) -> np.ndarray:
    """Return a hash of each word, uint64."""
    return np.fromiter(map(_word_hashes.__getitem__, words), np.uint64, len(words))


def run_hashes(ids: np.ndarray, width: int) -> np.ndarray:
    """Return the hash of each run of `width` uint64 numbers; none if there are fewer.

    A run is a polynomial of its numbers. That of twice the width is made of two of half of it, so
    that the work grows with the logarithm of the width.
    """
    size = 1
    hashes = ids if ids.size >= width else ids[:0]
    for bit in f"{width:b}"[1:] if hashes.size else "":
        factor = np.uint64(pow(int(_FACTOR), size, 2**64))
        hashes, size = hashes[:-size] * factor + hashes[size:], 2 * size
        if bit == "1":
            hashes, size = hashes[:-1] * _FACTOR + ids[size:], size + 1
    return mixed(hashes)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Jaccard similarity of two arrays of `shingles`."""
    both = _common(one, other)
    return both / (one.size + other.size - both) if both else 0.0


def containment(part: np.ndarray, whole: np.ndarray) -> float:
    """Return the share of the `shingles` of `part` that `whole` has."""
    return _common(part, whole) / part.size if part.size else 0.0


def _common(one: np.ndarray, other: np.ndarray) -> int:
    small, large = sorted((one, other), key=len)
    if not large.size:
        return 0
    places = np.minimum(np.searchsorted(large, small), large.size - 1)
    return int(np.count_nonzero(large[places] == small))


class _WordHashes(dict[str, int]):
    """The hashes of words; a dict is several times as fast as an lru_cache."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _KNOWN_WORDS:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8"), digest_size=8).digest()
        self[word] = number = int.from_bytes(digest, "big")
        return number


_word_hashes = _WordHashes()


def mixed(hashes: np.ndarray) -> np.ndarray:
    """Return hashes each bit of which depends on all bits (the finaliser of MurmurHash3)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(33))


@functools.lru_cache(1)
def _minhash(permutations: int) -> "MinHash":
    # It imports scipy.integrate, half a second: a parent of workers would only delay these.
    from datasketch import MinHash

    return MinHash(num_perm=permutations, seed=1, scheme="affine32", hashfunc=int)


def _bands(hashes: np.ndarray, banding: Banding) -> np.ndarray:
    if not (hashes.size and banding.bands):
        return np.zeros(banding.bands, np.uint64)
    minhash = _minhash(banding.bands * banding.rows)
    minhash.clear()
    low = (hashes & np.uint64(0xFFFFFFFF)).tolist()
    for first in range(0, len(low), _CHUNK):
        minhash.update_batch(low[first : first + _CHUNK])
    values = minhash.hashvalues.astype(np.uint64).reshape(banding.bands, banding.rows)
    keys = np.arange(1, banding.bands + 1, dtype=np.uint64)  # equal values differ between bands
    for row in range(banding.rows):
        keys = keys * _FACTOR + values[:, row]
    return np.maximum(mixed(keys), np.uint64(1))
