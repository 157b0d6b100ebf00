"""N-grams of texts in two units, and which n-grams of some texts are in others.

words        Brown et al. 2020 (GPT-3, arXiv 2005.14165, appendix C) compare n-grams of words and
             ignore case and punctuation; n is at most 13 there, and always 13 in
             lm-evaluation-harness (docs/decontamination.md). Here a text is in NFKC and
             case-folded, every character that is no letter, digit or white space is deleted
             ("beta-blocker's" is "betablockers"), and what white space separates is a word.
characters   OpenAI 2023 (GPT-4, arXiv 2303.08774, appendix C) look for substrings of 50
             characters in texts without spaces and symbols. Here a text is in NFKC, its letters and
             digits stay, and case counts. All substrings are looked for, not three random ones.

The memory is that of the texts that are looked for, whatever is read. Hashes find candidates, whose
words (as hashes of 64 bits) or characters are then compared.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from biomedlm_jax.corpus.signatures import mixed, run_hashes, word_ids
from biomedlm_jax.errors import InputError

LENGTHS = {"words": 13, "characters": 50}  # of an n-gram, by its unit
BLOCK = 1 << 20  # characters of a long document that are looked at together
_SPARSE = 16  # entries of the table of possible hashes for each n-gram
_SYMBOL = re.compile(r"[^\w\s]+|_+")
_TOKEN = re.compile(r"\S+")


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return _SYMBOL.sub("", unicodedata.normalize("NFKC", text).casefold()).split()


def characters(text: str) -> np.ndarray:
    """Return the code points of the characters of a text that count, uint64."""
    encoded = unicodedata.normalize("NFKC", text).encode("utf-32-le", "surrogatepass")
    points = np.frombuffer(encoded, np.uint32)
    return points[_is_alphanumeric()[points]].astype(np.uint64)


def tokens(text: str, unit: str) -> np.ndarray:
    """Return the words or characters of a text as numbers, uint64."""
    return word_ids(words(text)) if unit == "words" else characters(text)


def excerpt(text: str, unit: str, start: int, count: int) -> str:
    """Return `count` words or characters of a text from the number `start`, with what is between.

    It is in NFKC, as the numbers are.
    """
    text = unicodedata.normalize("NFKC", text)
    if unit == "words":
        spans = word_spans(text)
    else:
        spans = [(i, i + 1) for i, char in enumerate(text) if char.isalnum()]
    return text[spans[start][0] : spans[start + count - 1][1]]


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return the first character of each of the `words` of a text in NFKC, and the one behind it.

    Punctuation around a word belongs to it.
    """
    tokens = _TOKEN.finditer(text)
    return [one.span() for one in tokens if any(map(str.isalnum, one[0].casefold()))]


@functools.lru_cache(1)
def _is_alphanumeric() -> np.ndarray:
    return np.fromiter((chr(point).isalnum() for point in range(0x110000)), bool, 0x110000)


@dataclass(frozen=True)
class Matched:
    """The n-grams of texts that are in a document: the texts' numbers, and where in each."""

    starts: np.ndarray  # sorted places among the tokens of all texts, each once
    texts: np.ndarray  # the number of the text of each start


class NgramIndex:
    """The n-grams of one unit of some texts, in arrays that processes share as files."""

    def __init__(self, unit: str, length: int, arrays: dict[str, np.ndarray]):
        self.unit, self.length = unit, length
        self.tokens, self.offsets = arrays["tokens"], arrays["offsets"]
        self._hashes, self._first, self._starts = (
            arrays[name] for name in ("hashes", "first", "starts")
        )
        self._table, self._arrays = arrays["table"], arrays
        self._shift = np.uint64(64 - (self._table.size.bit_length() - 1))

    @classmethod
    def of(cls, texts: Sequence[str], unit: str, length: int) -> "NgramIndex":
        """Index the n-grams of texts. Raises InputError for a length below 2."""
        if length < 2:
            raise InputError(f"got n-grams of {length} {unit}; expected at least 2")
        parts = [tokens(text, unit) for text in texts]
        offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        flat = np.concatenate([np.empty(0, np.uint64), *parts])
        counts = np.maximum(np.diff(offsets) - (length - 1), 0)
        starts = np.repeat(offsets[:-1] - np.cumsum(counts) + counts, counts)
        starts += np.arange(starts.size)
        hashes = _hashes(flat, unit, length)[starts] if starts.size else np.empty(0, np.uint64)
        order = np.argsort(hashes, kind="stable")
        unique, first = np.unique(hashes[order], return_index=True)
        bits = max(16, min(30, (_SPARSE * unique.size).bit_length()))
        table = np.zeros(1 << bits, bool)
        table[unique >> np.uint64(64 - bits)] = True
        arrays = {"tokens": flat, "offsets": offsets, "hashes": unique, "table": table}
        arrays |= {"first": np.append(first, starts.size), "starts": starts[order]}
        return cls(unit, length, arrays)

    @classmethod
    def load(cls, folder: Path, unit: str, length: int) -> "NgramIndex":
        """Map what `save` wrote into memory."""
        names = ("tokens", "offsets", "hashes", "table", "first", "starts")
        files = {name: folder / f"{unit}-{name}.npy" for name in names}
        load = functools.partial(np.load, mmap_mode="r", allow_pickle=False)
        return cls(unit, length, {name: np.asarray(load(file)) for name, file in files.items()})

    def save(self, folder: Path) -> None:
        """Write the arrays to files of a folder."""
        for name, values in self._arrays.items():
            np.save(folder / f"{self.unit}-{name}.npy", values, allow_pickle=False)

    def ngrams(self) -> np.ndarray:
        """Return how many n-grams each text has."""
        return np.maximum(np.diff(self.offsets) - (self.length - 1), 0)

    def find(self, document: str) -> Matched:
        """Return the n-grams of the texts that are in a document."""
        rows = [self._rows(block) for block in self._blocks(document)] if self._hashes.size else []
        chosen = np.unique(np.concatenate([np.empty(0, np.int64), *rows]))
        counts = self._first[chosen + 1] - self._first[chosen]
        places = np.repeat(self._first[chosen] - np.cumsum(counts) + counts, counts)
        starts = np.sort(self._starts[places + np.arange(places.size)])
        return Matched(starts, np.searchsorted(self.offsets, starts, side="right") - 1)

    def _blocks(self, document: str) -> Iterator[np.ndarray]:
        """Yield the tokens of a document in blocks, each with the end of the last."""
        kept, start = np.empty(0, np.uint64), 0
        while start < len(document):
            end = start + BLOCK
            if end < len(document):
                space = max(document.rfind(one, start + 1, end) for one in " \n")
                end = space if space > 0 else end  # a word is cut only if it is as long
            block = np.concatenate([kept, tokens(document[start:end], self.unit)])
            yield block
            kept, start = block[block.size - min(block.size, self.length - 1) :], end

    def _rows(self, block: np.ndarray) -> np.ndarray:
        """Return the numbers of the hashes whose n-grams are in a block of tokens."""
        hashes = _hashes(block, self.unit, self.length)
        places = np.flatnonzero(self._table[hashes >> self._shift])
        rows = np.searchsorted(self._hashes, hashes[places])
        rows[rows == self._hashes.size] = 0
        same = self._hashes[rows] == hashes[places]
        rows, index = np.unique(rows[same], return_index=True)
        places = places[same][index]
        equal, starts = np.ones(rows.size, bool), self._starts[self._first[rows]]
        for place in range(self.length):
            equal &= self.tokens[starts + place] == block[places + place]
        return rows[equal]


def _hashes(ids: np.ndarray, unit: str, length: int) -> np.ndarray:
    # Code points are small numbers, which a polynomial alone would not keep apart.
    return run_hashes(mixed(ids) if unit == "characters" else ids, length)
