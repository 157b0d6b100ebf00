"""The batches of a fine-tuning run, each a function of its step; every epoch is shuffled anew."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.losses import Batch
from biomedlm_jax.model.heads import CHOICE
from biomedlm_jax.qa import packing
from biomedlm_jax.qa.packing import (
    LAST,
    TOKENS,
    Bucket,
    Prompt,
    Rows,
    build_rows,
    make_buckets,
    size,
)

# The arrays of entries and what padding has in them.
ENTRIES = {"slot_BxE": 0, "target_BxE": 0, "question_BxE": -1, "option_BxE": 0}


class ShuffledQuestions:
    """Batches of questions, of at most four shapes; the last one of an epoch may have fewer."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        labels: Sequence[int],
        *,
        batch_size: int,
        multiple: int,
        parts: int = 1,
        kind: str,
        seed: int,
    ):
        """`multiple` is what the rows of a batch divide by; `parts` that they are summed in."""
        if batch_size > len(labels):
            got = f"got training.batch_size={batch_size}"
            raise InputError(f"{got}; expected at most {len(labels)}, the training questions")
        self._of_question: list[list[Prompt]] = [[] for _ in labels]
        for prompt in prompts:
            self._of_question[prompt.question].append(prompt)
        self._labels, self._kind, self._seed = labels, kind, seed
        self._batch_size, self._parts = batch_size, parts
        self.steps_per_epoch = -(-len(labels) // batch_size)
        sizes = [sum(size(p, LAST) for p in of) for of in self._of_question]
        self.tokens_per_step = sum(sizes) / self.steps_per_epoch
        longest = max(size(prompt, LAST) for prompt in prompts)
        self.row_length = packing.round_up(longest, packing.row_multiple())
        # As if the longest questions met in one batch, packed as badly as can be.
        most = min(
            2 * sum(sorted(sizes)[-batch_size:]) / self.row_length + 1,
            batch_size * max(map(len, self._of_question)),
        )
        self._rows = packing.round_up(int(np.ceil(most / 4)), multiple)
        density = max(len(p.branches) / size(p, LAST) for p in prompts)
        entries = packing.round_up(int(np.ceil(density * self.row_length)))
        self.branched = any(len(prompt.branches) > 1 for prompt in prompts)
        self._shape = Bucket(self.row_length, [], entries, entries, self.branched)

    def chosen(self, step: int) -> np.ndarray:
        """Return the numbers of the questions of a step, counted from 0 over all epochs."""
        return _chosen(step, self.steps_per_epoch, self._batch_size, len(self._labels), self._seed)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step as numpy arrays."""
        chosen = self.chosen(step)
        prompts = [
            prompt._replace(question=number)
            for number, question in enumerate(chosen)
            for prompt in self._of_question[question]
        ]
        (bucket,) = make_buckets(prompts, read=LAST, lengths=[self.row_length])
        batch_size = packing.round_up(len(bucket.rows), self._rows)
        rows = build_rows(prompts, self._shape, bucket.rows, batch_size=batch_size, read=LAST)
        used_BxE = rows.question_BxE >= 0
        label_Q = np.array([self._labels[i] for i in chosen], np.int32)
        gold_BxE = label_Q[rows.question_BxE]  # of padding the last one's, with no weight
        if self._kind == CHOICE:
            gold_BxE = ((rows.option_BxE == gold_BxE) & used_BxE).astype(np.int32)
        # The mean over the parts of a batch, summed one by one, is the mean over the batch.
        weight_BxE = (used_BxE * (self._parts / len(chosen))).astype(np.float32)
        return Batch(rows._replace(target_BxE=gold_BxE), weight_BxE)


class ShuffledTexts:
    """Batches of rows of texts, packed once; the last one of an epoch may have empty rows."""

    branched = False

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        row_length: int,
        batch_size: int,
        parts: int = 1,
        seed: int = 0,
        masks: Sequence[Sequence[bool]] | None = None,
        epochs: Sequence[Sequence[int]] | None = None,
        apart: bool = False,
    ):
        """`masks` state which tokens of a prompt's branch are targets, by default all.

        `epochs` are the numbers of each epoch's prompts, by default all in every one; each
        selection is packed by itself. `apart`: every prompt has a row of its own.
        """
        self._prompts, self._parts, self._seed = prompts, parts, seed
        self._batch_size, self.row_length, self._apart = batch_size, row_length, apart
        selections = [range(len(prompts))] if epochs is None else epochs
        packed = {tuple(chosen): self._pack(chosen) for chosen in {*map(tuple, selections)}}
        self._epochs = [packed[tuple(chosen)] for chosen in selections]
        buckets = packed.values()
        sources = max(bucket.sources for bucket in buckets)
        self._shape = Bucket(row_length, [], sources, max(b.entries for b in buckets), False)
        self._masks = None if masks is None else [np.array(mask, bool) for mask in masks]
        targets = [self._trained(i) for i in range(len(prompts))]
        rows = [row for bucket in buckets for row in bucket.rows]
        self._entries = packing.round_up(max(sum(targets[i] for i in row) for row in rows))
        self.rows = len(self._epochs[0].rows)
        self.steps_per_epoch = max(-(-len(b.rows) // batch_size) for b in buckets)
        sizes = [size(prompt, TOKENS) for prompt in prompts]
        tokens = [sum(sizes[i] for i in chosen) for chosen in selections]
        self.tokens, self.targets = tokens[0], sum(targets)  # of the first epoch; of all prompts
        self.tokens_per_step = sum(tokens) / len(tokens) / self.steps_per_epoch

    def chosen(self, step: int) -> np.ndarray:
        """Return the numbers of the packed rows of a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        count, per_step = len(self._of_epoch(epoch).rows), self._batch_size
        if count > (self.steps_per_epoch - 1) * per_step:
            return _chosen(step, self.steps_per_epoch, per_step, count, self._seed)
        # An epoch of fewer rows than another: no step may be without any.
        order = np.random.default_rng([self._seed, epoch]).permutation(count)
        return np.array_split(order, self.steps_per_epoch)[index]

    def batch(self, step: int) -> Batch:
        """Return the batch of a step as numpy arrays."""
        batch = self._of_rows(self.chosen(step), step // self.steps_per_epoch)
        scale = self._parts / max(1, batch.weight_BxE.sum())
        return batch._replace(weight_BxE=(batch.weight_BxE * scale).astype(np.float32))

    def in_order(self, index: int) -> Batch:
        """Return batch `index` of the first epoch's rows as packed; targets weigh 1."""
        first = index * self._batch_size
        return self._of_rows(range(first, min(first + self._batch_size, self.rows)))

    def _pack(self, chosen: Sequence[int]) -> Bucket:
        """Return a bucket whose rows have the numbers of the prompts that are chosen."""
        prompts = [self._prompts[i] for i in chosen]
        if self._apart:
            most = packing.round_up(max(len(prompt.branches[0]) for prompt in prompts))
            return Bucket(self.row_length, [[i] for i in chosen], most, most, False)
        (bucket,) = make_buckets(prompts, read=TOKENS, lengths=[self.row_length])
        rows = [[chosen[i] for i in row] for row in bucket.rows]
        return dataclasses.replace(bucket, rows=rows)

    def _trained(self, number: int) -> int:
        if self._masks is not None:
            return int(self._masks[number].sum())
        return sum(map(len, self._prompts[number].branches))

    def _of_epoch(self, epoch: int) -> Bucket:
        return self._epochs[epoch % len(self._epochs)]

    def _of_rows(self, numbers: Iterable[int], epoch: int = 0) -> Batch:
        bucket = self._of_epoch(epoch)
        packed = [bucket.rows[i] for i in numbers]
        shape = {"batch_size": self._batch_size, "read": TOKENS}
        rows = build_rows(self._prompts, self._shape, packed, **shape)
        if self._masks is not None:
            rows = self._without_others(rows, packed)
        return Batch(rows, (rows.question_BxE >= 0).astype(np.float32))

    def _without_others(self, rows: Rows, packed: Sequence[Sequence[int]]) -> Rows:
        """Return the rows with the entries of targets only: no logits are made of the others."""
        assert self._masks is not None
        kept = {
            name: np.full((len(rows.tokens_BxL), self._entries), filler, np.int32)
            for name, filler in ENTRIES.items()
        }
        for b, row in enumerate(packed):
            places = np.flatnonzero(np.concatenate([self._masks[i] for i in row]))
            for name, array in kept.items():
                array[b, : len(places)] = getattr(rows, name)[b, places]
        return rows._replace(**kept)


def _chosen(step: int, steps_per_epoch: int, batch_size: int, count: int, seed: int) -> np.ndarray:
    """Return the numbers below `count` of a step's batch; every epoch has an order of its own."""
    epoch, index = divmod(step, steps_per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return order[index * batch_size : (index + 1) * batch_size]
