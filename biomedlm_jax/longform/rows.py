"""Rows: source + separator + target, packed, with a loss on the target only.

Axes: B rows, L tokens of a row. The format is the published one: the first tokens of the source,
`<|startoftext|>`, the first tokens of the target, `<|endoftext|>`; `[PAD]` and `<|startoftext|>`
are added to the vocabulary in this order (28896 and 28897 for BioMedLM).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from biomedlm_jax.corpus.tokenizer import END_OF_TEXT
from biomedlm_jax.longform.examples import Example

PAD, SEPARATOR = "[PAD]", "<|startoftext|>"
ADDED = (PAD, SEPARATOR)


@dataclass(frozen=True)
class Limits:
    """How much of each text is kept, and how long a row is, in tokens."""

    source: int
    target: int
    row: int

    def __post_init__(self):
        if min(self.source, self.target) < 1 or self.source + self.target + 2 > self.row:
            raise ValueError(
                f"got source_tokens={self.source}, target_tokens={self.target} and "
                f"row_tokens={self.row}; a row must hold source + separator + target + end, "
                f"{self.source + self.target + 2} tokens"
            )


class Batch(NamedTuple):
    """Packed rows, each array [B, L]."""

    tokens: np.ndarray
    segments: np.ndarray  # which text a token belongs to, from 1; 0 is padding
    positions: np.ndarray  # of a token in its text
    weights: np.ndarray  # 1 where the next token is one of a target


def add_tokens(tokenizer: Tokenizer) -> int:
    """Add the two tokens to a tokenizer; returns how many were new (0 the second time)."""
    return tokenizer.add_special_tokens(list(ADDED))


def encode_source(tokenizer: Tokenizer, source: str, limits: Limits) -> list[int]:
    """What an answer is generated from: the source's first tokens and the separator."""
    ids = tokenizer.encode(source, add_special_tokens=False).ids[: limits.source]
    return [*ids, tokenizer.token_to_id(SEPARATOR)]


def encode(tokenizer: Tokenizer, example: Example, limits: Limits) -> tuple[list[int], int]:
    """The ids of an example's text, and how many of them come before the target."""
    source = encode_source(tokenizer, example.source, limits)
    target = tokenizer.encode(example.target, add_special_tokens=False).ids[: limits.target]
    return [*source, *target, tokenizer.token_to_id(END_OF_TEXT)], len(source)


def pack(lengths: Sequence[int], row: int) -> list[list[int]]:
    """Which texts share a row: first fit, longest first, so that few tokens are padding."""
    rows, room = [], []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((r for r, free in enumerate(room) if free >= lengths[i]), None)
        if place is None:
            rows.append([])
            room.append(row)
            place = -1
        rows[place].append(i)
        room[place] -= lengths[i]
    return rows


def lay_out(
    texts: Sequence[tuple[list[int], int]],
    rows: Sequence[Sequence[int]],
    *,
    batch_size: int,
    length: int,
    pad: int,
) -> Batch:
    """A batch of the packed `rows`, filled up with rows of padding."""
    shape = batch_size, length
    tokens, segments, positions = np.full(shape, pad, np.int32), *np.zeros((2, *shape), "i4")
    weights = np.zeros(shape, np.float32)
    for b, row in enumerate(rows):
        start = 0
        for segment, i in enumerate(row, start=1):
            ids, before = texts[i]
            end = start + len(ids)
            tokens[b, start:end], segments[b, start:end] = ids, segment
            positions[b, start:end] = np.arange(len(ids))
            # The token before the target predicts its first; the last predicts nothing.
            weights[b, start + before - 1 : end - 1] = 1
            start = end
    return Batch(tokens, segments, positions, weights)


class Packed:
    """Texts packed into rows, and any batch of them by its number alone."""

    def __init__(self, texts, *, length: int, batch_size: int, pad: int):
        self._texts, self._pad = texts, pad
        self.length, self.batch_size = length, batch_size
        self.rows = pack([len(ids) for ids, _ in texts], length)
        self.batches = -(-len(self.rows) // batch_size)
        self.tokens = sum(len(ids) for ids, _ in texts)
        self.filled = self.tokens / (len(self.rows) * length)  # share that is no padding

    def at_limit(self, limits: Limits) -> int:
        """How many texts have a source or a target as long as allowed: nearly all are cut."""
        return sum(
            before > limits.source or len(ids) - before > limits.target
            for ids, before in self._texts
        )

    def batch(self, index: int, order: Sequence[int] | None = None) -> Batch:
        """Batch `index` of the rows as packed, or in another order; the last has padding."""
        order = range(len(self.rows)) if order is None else order
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
        return lay_out(
            self._texts,
            [self.rows[i] for i in chosen],
            batch_size=self.batch_size,
            length=self.length,
            pad=self._pad,
        )

    def shuffled(self, step: int, *, seed: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs; each epoch has its own order."""
        epoch, index = divmod(step, self.batches)
        order = np.random.default_rng([seed, epoch]).permutation(len(self.rows))
        return self.batch(index, order)
