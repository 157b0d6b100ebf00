"""score(): a model's answers by option letter, by option text, or by a fine-tuned head."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from tokenizers import Tokenizer

from biomedlm_jax import mesh as meshes
from biomedlm_jax.interop.finetuned import KEEP_END
from biomedlm_jax.model.heads import CHOICE, Scorer
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.qa import prompts, states
from biomedlm_jax.qa.packing import LAST, TOKENS, Prompt, Rows, batches, make_buckets
from biomedlm_jax.qa.questions import Question
from biomedlm_jax.qa.tasks import Task

LETTER, OPTION, CLASSIFIER = "letter", "option", "classifier"
WAYS = {  # mode -> the ways of scoring that it returns
    LETTER: (LETTER,),
    OPTION: ("option", "option per character", "option per token", "option minus unconditional"),
    CLASSIFIER: (CLASSIFIER,),
}
BATCH_TOKENS = 4096  # tokens of one batch on one device

_head_scores = jax.jit(states.head_scores)


def score(
    model: LanguageModel | Scorer,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    task: Task,
    *,
    mode: str = OPTION,
    shots: Sequence[Question] = (),
    row_format: str = KEEP_END,
    max_length: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[str, list[dict]]:
    """Answer the questions; return a list of items, one per question, for each way in WAYS[mode].

    `mode` "letter" scores the options' letters, after answered `shots`; "option" their texts by the
    summed log-probability in nats, by that per character and per token, and by that minus their
    log-probability without the question; "classifier" needs a Scorer, and the `row_format` and
    `max_length` of its training. `batch_tokens` per device bound the activation memory.

    Items have id, group, options, gold, prediction (the first of equal scores), scores,
    probabilities (a softmax over the options) and truncated. Raises ValueError for an unknown mode,
    or a model, tokenizer or length that does not fit it.
    """
    if mode not in WAYS:
        raise ValueError(f"got mode={mode!r}; choose one of {', '.join(WAYS)}")
    if not questions:
        raise ValueError("expected at least one question to score, got none")
    limit = model.config.context_length

    def sums(made: prompts.Prompts) -> list[np.ndarray]:
        assert isinstance(model, LanguageModel)
        branches = branch_log_probabilities(model, made.prompts, batch_tokens=batch_tokens)
        return _by_option(questions, branches)

    if isinstance(model, Scorer):
        if mode != CLASSIFIER:
            got = f"got one with a {model.kind} head"
            raise ValueError(f"mode={mode} needs a language model, {got}")
        choice, classes = model.kind == CHOICE, model.score.kernel.shape[-1]
        if differ := [q for q in questions if not choice and len(q.options) != classes]:
            one = f"question {differ[0].id!r} has {len(differ[0].options)}"
            raise ValueError(f"the head has {classes} classes, and {one}")
        rows = {"row_format": row_format, "max_length": min(max_length or limit, limit)}
        made = prompts.HEAD_PROMPTS[model.kind](tokenizer, questions, **rows)
        scores = [_by_option(questions, _by_head(model, made, batch_tokens))]
    elif mode == CLASSIFIER:
        raise ValueError("mode=classifier needs a fine-tuned head, and this is a language model")
    elif mode == LETTER:
        made = prompts.letter_prompts(tokenizer, questions, task, shots=shots, max_length=limit)
        scores = [sums(made)]
    else:
        made = prompts.option_prompts(tokenizer, questions, max_length=limit)
        alone = prompts.option_prompts(tokenizer, questions, max_length=limit, unconditional=True)
        lengths = (
            (prompt.question, option, len(branch))
            for prompt in made.prompts
            for option, branch in enumerate(prompt.branches, prompt.first_option)
        )
        characters = [[len(option) for option in question.options] for question in questions]
        whole = sums(made)
        scores = [
            whole,
            map(np.divide, whole, characters),
            map(np.divide, whole, _by_option(questions, lengths)),
            map(np.subtract, whole, sums(alone)),
        ]
    return {
        way: [_item(*one) for one in zip(questions, of_way, made.truncated, strict=True)]
        for way, of_way in zip(WAYS[mode], scores, strict=True)
    }


def branch_log_probabilities(
    model: LanguageModel, packed: Sequence[Prompt], *, batch_tokens: int = BATCH_TOKENS
) -> Generator[tuple[int, int, float, bool], None, None]:
    """Yield question, option, log-probability in nats and greediness of every branch, unordered."""
    results = _computed(states.token_log_probabilities, model, packed, TOKENS, batch_tokens)
    for rows, (logp_BxE, argmax_BxE) in results:
        used_BxE = rows.question_BxE >= 0
        branch_2xE = np.stack([rows.question_BxE, rows.option_BxE])[:, used_BxE]
        starts = np.flatnonzero(np.diff(branch_2xE, prepend=-1).any(axis=0))
        sums = np.add.reduceat(logp_BxE[used_BxE].astype(np.float64), starts)
        greedy = np.logical_and.reduceat(argmax_BxE[used_BxE], starts)
        yield from zip(*branch_2xE[:, starts].tolist(), sums.tolist(), greedy.tolist(), strict=True)


def _by_head(model: Scorer, made: prompts.Prompts, batch_tokens: int):
    """Yield question, option and score of each option; of a classification all scores at once."""
    for rows, scores in _computed(_head_scores, model, made.prompts, LAST, batch_tokens):
        for b, e in np.argwhere(rows.question_BxE >= 0):
            option = rows.option_BxE[b, e] if model.kind == CHOICE else slice(None)
            yield rows.question_BxE[b, e], option, scores[b, e]


def _by_option(questions: Sequence[Question], entries: Iterable[tuple]) -> list[np.ndarray]:
    """Return each question's values of its options, from (question, option, value, ...) entries."""
    values = [np.full(len(question.options), np.nan) for question in questions]
    for question, option, value, *_ in entries:
        values[question][option] = value
    return values


def _computed(
    compute: Callable, model, packed: Sequence[Prompt], read: str, batch_tokens: int
) -> Iterator[tuple[Rows, Any]]:
    """Yield every batch of rows with `compute(model, rows)`, as numpy arrays in every process."""
    place = jax.tree.leaves(model)[0].sharding
    mesh: Any = place.mesh if isinstance(place, NamedSharding) else meshes.one_device()
    shards, layout = meshes.batch_shards(mesh), meshes.sharding(mesh, "batch", None)
    waiting = None
    for bucket in make_buckets(packed, read=read):
        per_shard = max(1, batch_tokens // bucket.length)
        batch_size = shards * min(per_shard, -(-len(bucket.rows) // shards))
        for rows in batches(packed, bucket, batch_size=batch_size, read=read):
            largest, size = int(np.max(rows.tokens_BxL)), model.config.vocab_size
            if largest >= size:
                got = (
                    f"a text has token id {largest}, and the model's vocabulary ends at {size - 1}"
                )
                raise ValueError(f"{got}; remove the special token that it spells")
            placed = jax.tree.map(lambda array: meshes.place(array, layout), rows)
            with jax.set_mesh(mesh):  # not around the yield: the caller's mesh stays
                result = rows, compute(model, placed)
            if waiting:  # fetched while the next batch is computed
                yield waiting[0], multihost_utils.process_allgather(waiting[1], tiled=True)
            waiting = result
    if waiting:
        yield waiting[0], multihost_utils.process_allgather(waiting[1], tiled=True)


def _item(question: Question, scores: np.ndarray, truncated: bool) -> dict:
    if not np.isfinite(scores).all():
        got = f"question {question.id!r} has the scores {scores.tolist()}"
        raise ValueError(f"{got}: the model's weights are not finite")
    weights = np.exp(scores - scores.max())
    return {
        "id": question.id,
        "group": question.group,
        "options": list(question.options),
        "gold": question.label,
        "prediction": int(scores.argmax()),
        "scores": scores.tolist(),
        "probabilities": (weights / weights.sum()).tolist(),
        "truncated": truncated,
    }
