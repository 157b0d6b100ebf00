"""Benchmark of instruction tuning: packed rows against one padded row for each conversation.

All sides train the same model on the same conversations with the same loss; only the rows differ.
Conversations are random tokens of the lengths that mixed instruction data has: short answers with a
label, instructions with a paragraph, and chats of several turns.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from biomedlm_jax import mesh as meshes
from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.benchmarks import rounds as timed
from biomedlm_jax.benchmarks.training_steps import JaxSteps
from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.losses import Batch, target_loss
from biomedlm_jax.finetuning.shuffling import ShuffledTexts
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.qa import packing
from biomedlm_jax.qa.packing import TOKENS, Prompt, size
from biomedlm_jax.training.config import OptimizerSettings
from biomedlm_jax.training.state import random_model

OPTIMIZER = OptimizerSettings(learning_rate=2e-5, warmup_steps=0)
# Share of the conversations, turns, and median tokens of a question and of an answer.
KINDS = ((0.4, (1, 1), 60, 6), (0.4, (1, 1), 60, 80), (0.2, (2, 4), 30, 60))
PACKED, PADDED, LONGEST = "packed rows", "one padded row each", "padded to the longest"

Masked = tuple[list[Prompt], list[list[bool]]]


def measure(
    config: ModelConfig,
    *,
    examples: int = 5_000,
    batch_size: int = 16,
    length: int = 512,
    steps: int = 4,
    rounds: int = 5,
) -> dict[str, Any]:
    """Time training steps on the same conversations in packed and in padded rows.

    `examples` conversations are packed into rows of `length` tokens to state how full they are. A
    round trains on `steps` batches of `batch_size` of them. `difference` is the largest one between
    the losses of a side's first call and the packed side's.
    """
    keep_freed_memory()
    if steps * batch_size > examples:
        got = f"got steps={steps} x batch_size={batch_size}"
        raise InputError(f"{got}; expected at most examples={examples}")
    prompts, masks = conversations(examples, length=length, vocab_size=config.vocab_size)
    full = fullness(prompts, masks, length=length)
    chosen = [range(i * batch_size, (i + 1) * batch_size) for i in range(steps)]
    make = functools.partial(random_model, config, seed=0)
    learn = functools.partial(JaxSteps, meshes.one_device(), make, target_loss)
    rows = functools.partial(batches, (prompts, masks), chosen)
    shortest = longest(prompts, steps * batch_size)
    sides: dict[str, Callable] = {
        PACKED: learn(rows(length=length), OPTIMIZER),
        PADDED: learn(rows(length=length, apart=True), OPTIMIZER),
        LONGEST: learn(rows(length=shortest, apart=True), OPTIMIZER),
    }
    timings = timed.alternate(sides, rounds=rounds)
    table = timed.summarise_timings(timings, "examples", steps * batch_size, PACKED)
    timed.compare_first(table, timings)
    work = f"length {length}, {batch_size} conversations in a batch"
    tokens = np.mean([size(prompt, TOKENS) for prompt in prompts])
    note = f"{examples:,} conversations of {tokens:.0f} tokens each pack to {full:.1%} full rows"
    return {
        **timed.benchmark_header(work, ("jax", "flax"), config=config),
        "notes": [note],
        "full": full,
        "tables": {"instruction tuning": table},
    }


def conversations(count: int, *, length: int, vocab_size: int, seed: int = 0) -> Masked:
    """Return conversations of random tokens as prompts with masks, none longer than a row."""
    rng = np.random.default_rng(seed)
    prompts, masks = [], []
    while len(prompts) < count:
        kind = rng.choice(len(KINDS), p=[share for share, *_ in KINDS])
        _, (fewest, most), question, answer = KINDS[kind]
        ids: list[int] = []
        trained: list[bool] = []
        for _ in range(rng.integers(fewest, most + 1)):
            for median, learned in ((question, False), (answer, True)):
                number = max(2, int(median * rng.lognormal(0, 0.7)))
                ids += rng.integers(0, vocab_size, number).tolist()
                trained += [learned] * number
        first = trained.index(True)
        prompt = Prompt(ids[:first], [ids[first:]], len(prompts))
        if size(prompt, TOKENS) <= length:
            prompts.append(prompt)
            masks.append(trained[first:])
    return prompts, masks


def fullness(prompts: Sequence[Prompt], masks: Sequence[list[bool]], *, length: int) -> float:
    """Return the share of the positions of packed rows that hold a token."""
    data = ShuffledTexts(prompts, row_length=length, batch_size=1, masks=masks)
    return data.tokens / (data.rows * length)


def longest(prompts: Sequence[Prompt], count: int) -> int:
    """Return the length of rows that hold the first `count` prompts, as rows are rounded up."""
    most = max(size(prompt, TOKENS) for prompt in prompts[:count])
    return packing.round_up(most, packing.row_multiple())


def batches(
    masked: Masked, chosen: Sequence[Sequence[int]], *, length: int, apart: bool = False
) -> list[Batch]:
    """Return a batch for each selection of conversations, all of one shape."""
    prompts, masks = masked
    texts = functools.partial(
        ShuffledTexts, prompts, row_length=length, masks=masks, epochs=chosen, apart=apart
    )
    rows = texts(batch_size=1).steps_per_epoch
    return [texts(batch_size=rows).batch(step) for step in range(len(chosen))]
