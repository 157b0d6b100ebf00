"""Packing: documents -> a stream of token ids for each split -> rows of equal length, in memory.

Tokenising is nearly all of the work. `tokenizers` spreads a batch of texts over every core and
lets go of the interpreter meanwhile, so two threads that each hand it a batch keep the cores busy
(one fills them where the other's batch ends) while the caller's thread reads, packs and writes.
A document is never cut to be tokenised in parts: pieces of words could come out differently.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
from tokenizers import Tokenizer

from biomedlm_jax.corpus.documents import Document

SPLITS = ("train", "validation")
BATCH_BYTES = 1 << 20  # of text, given to the tokenizer at once
THREADS = 2
AHEAD = 4  # batches tokenised or waiting: memory for a few MB of text, whatever the corpus


def split_of(text: bytes, *, validation_fraction: float) -> str:
    """The split of a text in UTF-8, by its BLAKE2b hash: always the same, whatever is around it."""
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return "validation" if number < validation_fraction * 2**64 else "train"


class Stream:
    """The ids of one split, cut into rows as they arrive."""

    def __init__(self, *, length: int, dtype: str):
        self.documents = self.text_bytes = self.tokens = self.rows = 0
        self._length, self._rest = length, np.empty(0, dtype)

    def add(self, ids: np.ndarray, *, documents: int, text_bytes: int) -> np.ndarray:
        """Append ids and return the rows that are full now: [rows, length], maybe none."""
        stream = np.concatenate([self._rest, ids])
        rows = stream[: stream.size // self._length * self._length].reshape(-1, self._length)
        self._rest = stream[rows.size :]
        self.documents += documents
        self.text_bytes += text_bytes
        self.tokens += ids.size
        self.rows += len(rows)
        return rows

    def counts(self) -> dict[str, int]:
        """What went in and out; the dropped tokens are those that wait for a full row."""
        return {
            "documents": self.documents,
            "text_bytes": self.text_bytes,
            "tokens": self.tokens,
            "rows": self.rows,
            "dropped_tokens": self._rest.size,
        }


@dataclass(frozen=True)
class _Batch:
    split: str
    texts: list[str]
    text_bytes: int


class Packer:
    """Packs documents into rows of `length` ids of `dtype`, and counts by split in `streams`.

    `separator` is the id written after each document, or None.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        length: int,
        separator: int | None,
        dtype: str,
        validation_fraction: float,
    ):
        self._tokenizer, self._dtype = tokenizer, dtype
        self._separator = () if separator is None else (separator,)
        self._validation_fraction = validation_fraction
        self.streams = {split: Stream(length=length, dtype=dtype) for split in SPLITS}

    def rows(self, documents: Iterable[Document]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (split, rows [n, length]) in the order of the documents within each split."""
        for batch, ids in self._encoded(self._batches(documents)):
            stream = self.streams[batch.split]
            counts = {"documents": len(batch.texts), "text_bytes": batch.text_bytes}
            yield batch.split, stream.add(ids, **counts)

    def _batches(self, documents: Iterable[Document]) -> Iterator[_Batch]:
        texts = {split: [] for split in SPLITS}
        sizes = dict.fromkeys(SPLITS, 0)
        for document in documents:
            text = document.text.encode("utf-8")
            split = split_of(text, validation_fraction=self._validation_fraction)
            texts[split].append(document.text)
            sizes[split] += len(text)
            if sizes[split] >= BATCH_BYTES:
                yield _Batch(split, texts[split], sizes[split])
                texts[split], sizes[split] = [], 0
        yield from (_Batch(split, texts[split], sizes[split]) for split in SPLITS if texts[split])

    def _encoded(self, batches: Iterable[_Batch]) -> Iterator[tuple[_Batch, np.ndarray]]:
        """The batches with their ids, in order, tokenised a few ahead of the caller."""
        pool = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenise")
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
        size = sum(map(len, encodings)) + len(self._separator) * len(texts)
        # An Encoding gives its ids as a list only; fromiter is numpy's fastest way from there.
        ids = chain.from_iterable(chain(encoding.ids, self._separator) for encoding in encodings)
        return np.fromiter(ids, self._dtype, count=size)
