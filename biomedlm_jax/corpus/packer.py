"""Tokenise documents into the streams of token ids of the splits, and cut streams into rows.

Tokenising is nearly all of the work. `tokenizers` spreads a batch of texts over all cores and
releases the GIL, so two threads that submit batches keep the cores busy (one fills the cores where
the batch of the other ends) while the caller's thread reads and writes. A document is never split
before it is tokenised: words at the cuts could get other tokens.
"""

import errno
import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from biomedlm_jax.corpus.documents import Document

SPLITS: tuple[str, ...] = ("train", "validation")
COUNTS: tuple[str, ...] = ("documents", "text_bytes", "tokens")
BATCH_BYTES = 1 << 20  # of text in a call of the tokenizer
THREADS = 2
AHEAD = 4  # batches in flight: a few MB of text in memory, whatever the size of the corpus
READ_IDS = 1 << 20  # of a file in memory


def split_of(text: bytes, *, validation_fraction: float) -> str:
    """Return the split of a text in UTF-8, which depends on its BLAKE2b hash only."""
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return "validation" if number < validation_fraction * 2**64 else "train"


def plain_text_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that encodes text that spells a special token, `<|endoftext|>`, as plain text.

    All other text has the same ids. transformers does so with `split_special_tokens=True`; its
    default, and the published script, would turn the author's text into the end of a document.
    """
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = True
    return copy


def token_byte_counts(tokenizer: Tokenizer) -> np.ndarray:
    """Return the bytes of text of each token id, int32 [V]; special tokens have none."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())  # a character for each byte
    lengths = np.zeros(1 + max(tokenizer.get_vocab().values()), np.int32)
    for token, i in tokenizer.get_vocab().items():
        lengths[i] = len(token) if alphabet.issuperset(token) else len(token.encode("utf-8"))
    for i, added in tokenizer.get_added_tokens_decoder().items():
        lengths[i] = 0 if added.special else len(added.content.encode("utf-8"))
    return lengths


class _Batch(NamedTuple):
    split: str
    texts: list[str]
    text_bytes: int


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How documents become token ids, beside the tokenizer.

    Args:
      separator: the id after each document, or None.
      begin: the id before each document, or None.
      dtype: of the ids.
      validation_fraction: probability that a text is in the validation split.
    """

    separator: int | None
    begin: int | None = None
    dtype: str
    validation_fraction: float


class Encoder:
    """Encodes documents into the token ids of each split.

    `counts` has the totals of each split so far: `COUNTS`. `special_text` counts the special tokens
    that the texts spell, which are encoded as plain text.
    """

    def __init__(self, tokenizer: Tokenizer, encoding: Encoding, *, threads: int = THREADS):
        plain = tokenizer.encode_special_tokens  # already; to copy it takes a tenth of a second
        self._tokenizer = tokenizer if plain else plain_text_tokenizer(tokenizer)
        self._encoding, self._threads = encoding, min(threads, THREADS)
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = [token.content for token in added if token.special]
        self.special_text: Counter[str] = Counter()
        self._separator = () if encoding.separator is None else (encoding.separator,)
        self._begin = () if encoding.begin is None else (encoding.begin,)
        self.counts = {split: dict.fromkeys(COUNTS, 0) for split in SPLITS}

    def ids(self, documents: Iterable[Document]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (split, ids [n]) in the order of the documents in each split."""
        for (split, texts, text_bytes), ids in self._encoded(self._batches(documents)):
            counts = self.counts[split]
            counts["documents"] += len(texts)
            counts["text_bytes"] += text_bytes
            counts["tokens"] += ids.size
            yield split, ids

    def _batches(self, documents: Iterable[Document]) -> Iterator[_Batch]:
        texts: dict[str, list[str]] = {split: [] for split in SPLITS}
        sizes = dict.fromkeys(SPLITS, 0)
        for document in documents:
            text = document.text.encode("utf-8")
            for token in self._special:
                if token in document.text:
                    self.special_text[token] += document.text.count(token)
            split = split_of(text, validation_fraction=self._encoding.validation_fraction)
            texts[split].append(document.text)
            sizes[split] += len(text)
            if sizes[split] >= BATCH_BYTES:
                yield _Batch(split, texts[split], sizes[split])
                texts[split], sizes[split] = [], 0
        yield from (_Batch(split, texts[split], sizes[split]) for split in SPLITS if texts[split])

    def _encoded(self, batches: Iterable[_Batch]) -> Iterator[tuple[_Batch, np.ndarray]]:
        """Yield the batches with their token ids, in order, tokenised up to `AHEAD` in advance."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="tokenise")
        try:
            waiting = deque()
            for batch in batches:
                waiting.append((batch, pool.submit(self._encode, batch.texts)))
                if len(waiting) > AHEAD:
                    batch, ids = waiting.popleft()
                    yield batch, ids.result()
            yield from ((batch, ids.result()) for batch, ids in waiting)
        finally:
            pool.shutdown(cancel_futures=True)

    def _encode(self, texts: list[str]) -> np.ndarray:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        begin, end = self._begin, self._separator
        size = sum(map(len, encodings)) + len([*begin, *end]) * len(texts)
        # An Encoding returns its ids as a list only; fromiter is the fastest conversion.
        ids = chain.from_iterable(chain(begin, encoding.ids, end) for encoding in encodings)
        return np.fromiter(ids, self._encoding.dtype, count=size)


def read_rows(
    spans: Sequence[tuple[Path, int, int]], *, length: int, dtype: str
) -> Iterator[np.ndarray]:
    """Yield rows [n, length], n >= 0, of files of ids: the ids from a start to a stop of each.

    The spans are one stream; ids at its end that are no whole row are omitted. Raises OSError if a
    file ends before its span does.
    """
    rest = np.empty(0, dtype)
    for path, start, stop in spans:
        with path.open("rb") as file:
            file.seek(start * rest.itemsize)
            while start < stop:
                ids = np.fromfile(file, dtype, min(stop - start, max(READ_IDS, length)))
                if not ids.size:
                    raise OSError(errno.EIO, f"the file ends before id {start:,}", str(path))
                start += ids.size
                stream = np.concatenate([rest, ids])
                rows = stream[: stream.size // length * length].reshape(-1, length)
                rest = stream[rows.size :]
                yield rows
