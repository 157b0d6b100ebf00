"""Compare tokenizers on the same texts: how many tokens, which words stay whole, what changes.

A word is what stands between white space, without punctuation at its ends: `IL-6`, `don't`. It is
whole if exactly one token covers any of it, by the offsets of the tokens in the text, and that
token is not the unknown one. Offsets are the same for every kind of tokenizer; the entries of a
vocabulary mark the beginning or the continuation of a word in different ways.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from biomedlm_jax.corpus.packer import plain_text_tokenizer
from biomedlm_jax.corpus.round_trips import RoundTrips, round_trips
from biomedlm_jax.corpus.tokenizer import tokenizer_hash
from biomedlm_jax.errors import InputError

BATCH = 64  # texts in a call of a tokenizer
WORD = re.compile(r"[^\W_](?:\S*[^\W_])?")
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: bytes that are not UTF-8
SPACE = "\u2581"  # an entry of this alone is white space, at a text's start without a place


@dataclass(frozen=True)
class ListReport:
    """How a tokenizer splits the terms of a list, each after a space."""

    terms: int
    whole_terms: int  # those of which every word is whole
    words: int
    whole_words: int
    tokens: int  # that cover any of a word: at least the words
    split: dict[str, list[str]]  # the pieces of the terms that are not whole


@dataclass(frozen=True)
class TokenizerReport:
    """Figures of one tokenizer on the texts."""

    name: str
    hash: str
    vocab_size: int
    texts: int
    changed_texts: int  # that encoding and decoding changes
    bytes: int  # of the texts in UTF-8
    words: int
    tokens: int
    bytes_per_token: float  # more is better
    tokens_per_word: float  # all tokens, of white space and punctuation, too
    whole_words: float  # share of the words
    terms: dict[str, list[str]]  # the pieces of each term
    whole_terms: list[str]  # those of which every word is whole
    lists: dict[str, ListReport]
    round_trips: RoundTrips


class _Words(NamedTuple):
    starts_W: np.ndarray  # in characters
    ends_W: np.ndarray


class _Counts:
    """What is added up over the texts for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self.encoder, self._unknown = plain_text_tokenizer(tokenizer), _unknown_id(tokenizer)
        self.tokens = self.whole = self.changed = 0

    def add(self, texts: list[str], words: list[_Words]) -> None:
        encodings = self.encoder.encode_batch(texts, add_special_tokens=False)
        all_ids = [encoding.ids for encoding in encodings]
        decoded = self.encoder.decode_batch(all_ids, skip_special_tokens=False)
        self.tokens += sum(map(len, all_ids))
        self.changed += sum(map(str.__ne__, decoded, texts))
        for encoding, of_text in zip(encodings, words, strict=True):
            self.whole += int((self.cover(encoding, of_text) == 1).sum())

    def cover(self, encoding: Encoding, words: _Words) -> np.ndarray:
        """Return how many tokens cover any of each word [W]; an unknown one counts as two."""
        offsets_Tx2 = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        counts_T = 1 + (np.array(encoding.ids, np.int64) == self._unknown)
        blank_T = np.array([token == SPACE for token in encoding.tokens], bool)
        counts_T[blank_T | (offsets_Tx2[:, 0] >= offsets_Tx2[:, 1])] = 0
        # Of all tokens, those that end before a word or start after it cover nothing of it.
        starts_T, ends_T = np.repeat(offsets_Tx2, counts_T, axis=0).T
        before_W = np.searchsorted(np.sort(ends_T), words.starts_W, "right")
        after_W = len(starts_T) - np.searchsorted(np.sort(starts_T), words.ends_W, "left")
        return len(starts_T) - before_W - after_W

    def split(self, term: str) -> tuple[list[str], np.ndarray]:
        """Return the pieces of a term after a space, and how many tokens cover each word [W]."""
        text = f" {term}"
        encoding = self.encoder.encode(text, add_special_tokens=False)
        return _pieces(text, encoding), self.cover(encoding, _words(text))


def compare_tokenizers(
    tokenizers: Mapping[str, Tokenizer],
    texts: Iterable[str],
    terms: Sequence[str] = (),
    lists: Mapping[str, Sequence[str]] | None = None,
) -> list[TokenizerReport]:
    """Count each tokenizer's tokens and whole words of the same texts, and split each term.

    The texts are read once. Raises InputError if there is no tokenizer, no word in the texts, or
    a term without a word.
    """
    for term in (*terms, *(term for of_list in (lists or {}).values() for term in of_list)):
        if not WORD.search(term) or HALF.search(term):
            raise InputError(
                f"got the term {term!r}; expected one with a letter or digit, in UTF-8"
            )
    counts = {name: _Counts(tokenizer) for name, tokenizer in tokenizers.items()}
    size, number, words, texts = 0, 0, 0, iter(texts)
    while batch := list(islice(texts, BATCH)):
        size += sum(len(text.encode("utf-8")) for text in batch)
        number += len(batch)
        of_batch = [_words(text) for text in batch]
        words += sum(len(of_text.starts_W) for of_text in of_batch)
        for of_tokenizer in counts.values():
            of_tokenizer.add(batch, of_batch)
    if not counts or not words:
        got = f"got {len(counts)} tokenizers and {size} bytes with {words} words"
        raise InputError(f"{got}; expected some of each")
    reports = []
    for name, tokenizer in tokenizers.items():
        of_tokenizer = counts[name]
        split = {term: of_tokenizer.split(term) for term in terms}
        reports.append(
            TokenizerReport(
                name=name,
                hash=tokenizer_hash(tokenizer),
                vocab_size=tokenizer.get_vocab_size(),
                texts=number,
                changed_texts=of_tokenizer.changed,
                bytes=size,
                words=words,
                tokens=of_tokenizer.tokens,
                bytes_per_token=size / of_tokenizer.tokens,
                tokens_per_word=of_tokenizer.tokens / words,
                whole_words=of_tokenizer.whole / words,
                terms={term: pieces for term, (pieces, _) in split.items()},
                whole_terms=[term for term, (_, cover_W) in split.items() if (cover_W == 1).all()],
                lists={of: _list_report(of_tokenizer, t) for of, t in (lists or {}).items()},
                round_trips=round_trips(tokenizer),
            )
        )
    return reports


def whole_terms(tokenizer: Tokenizer, terms: Sequence[str]) -> list[str]:
    """Return the terms of which every word is whole after a space."""
    counts = _Counts(tokenizer)
    return [term for term in terms if (counts.split(term)[1] == 1).all()]


def _list_report(counts: _Counts, terms: Sequence[str]) -> ListReport:
    split = {term: counts.split(term) for term in terms}
    cover_W = np.concatenate([cover_W for _, cover_W in split.values()])
    broken = {term: pieces for term, (pieces, cover_W) in split.items() if (cover_W != 1).any()}
    whole, tokens = int((cover_W == 1).sum()), int(cover_W.sum())
    return ListReport(len(terms), len(terms) - len(broken), len(cover_W), whole, tokens, broken)


def _words(text: str) -> _Words:
    spans_Wx2 = np.array([word.span() for word in WORD.finditer(text)], np.int64).reshape(-1, 2)
    return _Words(*spans_Wx2.T)


def _pieces(text: str, encoding: Encoding) -> list[str]:
    """Return the text of each token; of those that share a character, or have none, the entry."""
    spans, pieces = encoding.offsets, []
    for number, (token, (start, end)) in enumerate(zip(encoding.tokens, spans, strict=True)):
        near = spans[max(0, number - 1) : number] + spans[number + 1 : number + 2]
        shared = any(start < other_end and other < end for other, other_end in near)
        piece = token if shared else text[start:end].strip()
        if token != SPACE and piece:
            pieces.append(piece)
    return pieces


def _unknown_id(tokenizer: Tokenizer) -> int:
    """Return the id of the token for unknown text; -1 if the model has none."""
    model = json.loads(tokenizer.to_str())["model"]
    number = model.get("unk_id")
    token = model.get("unk_token")
    number = number if token is None else tokenizer.token_to_id(token)
    return -1 if number is None else number
