"""Shuffled: the batches of a fine-tuning run, any of them by its step alone."""

from collections.abc import Sequence

import numpy as np

from biomedlm_jax.model.heads import CHOICE
from biomedlm_jax.qa.losses import TunedBatch
from biomedlm_jax.qa.packing import LAST, Prompt, Rows, lay_out, make_buckets, size


class Shuffled:
    """Every epoch all questions once, in an order of its own; the last batch may be smaller.

    Rows are as long as the longest question, and their number per batch takes at most four
    values, so that at most four steps compile.
    """

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
            raise ValueError(
                f"training.batch_size={batch_size}, and there are {len(labels)} questions to "
                "learn; choose at most that"
            )
        self._of_question = [[] for _ in labels]
        for prompt in prompts:
            self._of_question[prompt.question].append(prompt)
        self._labels, self._kind, self._seed = labels, kind, seed
        self._batch_size, self._parts = batch_size, parts
        self.steps_per_epoch = -(-len(labels) // batch_size)
        self._sizes = [sum(size(p, LAST) for p in of) for of in self._of_question]
        longest = max(size(prompt, LAST) for prompt in prompts)
        self.row_length = -(-longest // 64) * 64
        self.rows_per_step = batch_size * np.mean(self._sizes) / self.row_length
        # As if the longest questions met in one batch, packed as badly as can be.
        most = min(
            2 * sum(sorted(self._sizes)[-batch_size:]) / self.row_length + 1, batch_size * 26
        )
        self._rows = -(-int(np.ceil(most / 4)) // multiple) * multiple
        density = max(len(p.branches) / size(p, LAST) for p in prompts)
        self._answers = -(-int(np.ceil(density * self.row_length)) // 8) * 8

    def batch(self, step: int) -> TunedBatch:
        """The batch of a step, counted from 0 over all epochs, as numpy arrays."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._labels))
        chosen = order[index * self._batch_size : (index + 1) * self._batch_size]
        prompts = [
            prompt._replace(question=number)
            for number, question in enumerate(chosen)
            for prompt in self._of_question[question]
        ]
        (bucket,) = make_buckets(prompts, read=LAST, lengths=[self.row_length])
        rows = lay_out(
            prompts,
            bucket.rows,
            batch_size=-(-len(bucket.rows) // self._rows) * self._rows,
            length=self.row_length,
            sources=self._answers,
            answers=self._answers,
            read=LAST,
        )
        return self._answered(rows, np.array([self._labels[i] for i in chosen], np.int32))

    def _answered(self, rows: Rows, labels_Q: np.ndarray) -> TunedBatch:
        used_BxE = rows.question_BxE >= 0
        gold_BxE = labels_Q[rows.question_BxE]  # of padding the last one's, with no weight
        if self._kind == CHOICE:
            gold_BxE = ((rows.option_BxE == gold_BxE) & used_BxE).astype(np.int32)
        # Gradients are averaged over the parts, and each part holds only some of the questions.
        weight = self._parts / len(labels_Q)
        return TunedBatch(rows, gold_BxE, (used_BxE * weight).astype(np.float32))
