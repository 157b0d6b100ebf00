"""score(): a model's answers by option letter, by option text, or by a fine-tuned head."""

import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from tokenizers import Tokenizer

from biomedlm_jax import mesh as meshes
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.finetuned import KEEP_END
from biomedlm_jax.model.heads import CHOICE, Scorer
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.qa import prompts, states
from biomedlm_jax.qa.identity import question_hash
from biomedlm_jax.qa.journal import Journal
from biomedlm_jax.qa.packing import LAST, TOKENS, Prompt, Rows, batches, make_buckets
from biomedlm_jax.qa.questions import Question
from biomedlm_jax.qa.tasks import Task

LETTER, OPTION, CLASSIFIER = "letter", "option", "classifier"
WAYS = {  # mode -> the ways of scoring that it returns
    LETTER: (LETTER,),
    OPTION: ("option", "option per character", "option per token", "option minus unconditional"),
    CLASSIFIER: (CLASSIFIER,),
}
# Scores divided by a length, or relative to a prior, are no log-probabilities of the options.
NOT_PROBABILITIES = WAYS[OPTION][1:]
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
    journal: Journal | None = None,
    check_stop: Callable[[], None] = lambda: None,
    wrap: prompts.Wrap | None = None,
) -> dict[str, list[dict]]:
    """Answer the questions; return a list of items, one per question, for each way in WAYS[mode].

    `mode` "letter" scores the options' letters, after answered `shots`; "option" their texts by the
    summed log-probability in nats, by that per character and per token, and by that minus their
    log-probability without the question; "classifier" needs a Scorer, and the `row_format` and
    `max_length` of its training. `batch_tokens` per device bound the activation memory. `journal`
    prints the progress and, with a folder, keeps the results of batches: the same call after an
    interruption (Ctrl-C) resumes there. Without one it starts again. `check_stop` is called before
    every batch, in every process, and may raise.

    Items have id, content (a hash of what was asked), group, subject, options, gold, prediction
    (the first of equal scores), scores, probabilities (a softmax over the options; None for
    NOT_PROBABILITIES), truncated, and indistinct: two options became equal tokens. Raises
    InputError for an unknown mode, or a model, tokenizer or length that does not fit it.
    """
    if mode not in WAYS:
        raise InputError(f"got mode={mode!r}; choose one of {', '.join(WAYS)}")
    if not questions:
        raise InputError("expected at least one question to score, got none")
    limit = model.config.context_length
    options: dict[str, Any] = {"batch_tokens": batch_tokens, "journal": journal}
    options["check_stop"] = check_stop

    def sums(made: prompts.Prompts) -> list[np.ndarray]:
        assert isinstance(model, LanguageModel)
        branches = branch_log_probabilities(model, made.prompts, **options)
        return _by_option(questions, branches)

    if isinstance(model, Scorer):
        if mode != CLASSIFIER:
            got = f"got one with a {model.kind} head"
            raise InputError(f"mode={mode} needs a language model, {got}")
        choice, classes = model.kind == CHOICE, model.score.kernel.shape[-1]
        if differ := [q for q in questions if not choice and len(q.options) != classes]:
            one = f"question {differ[0].id!r} has {len(differ[0].options)}"
            raise InputError(f"the head has {classes} classes, and {one}")
        rows = {"row_format": row_format, "max_length": min(max_length or limit, limit)}
        made = prompts.HEAD_PROMPTS[model.kind](tokenizer, questions, **rows)
        scores = [_by_option(questions, _by_head(model, made, **options))]
    elif mode == CLASSIFIER:
        raise InputError("mode=classifier needs a fine-tuned head, and this is a language model")
    elif mode == LETTER:
        shown: dict[str, Any] = {"shots": shots, "max_length": limit, "wrap": wrap}
        made = prompts.letter_prompts(tokenizer, questions, task, **shown)
        scores = [sums(made)]
    else:
        make = functools.partial(prompts.option_prompts, max_length=limit, wrap=wrap)
        made = make(tokenizer, questions)
        alone = make(tokenizer, questions, unconditional=True)
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
    both = zip(made.truncated, made.alike, strict=True)
    flags = [{"truncated": cut, "indistinct": alike} for cut, alike in both]
    return {
        way: [_item(*one, way) for one in zip(questions, of_way, flags, strict=True)]
        for way, of_way in zip(WAYS[mode], scores, strict=True)
    }


def branch_log_probabilities(
    model: LanguageModel,
    packed: Sequence[Prompt],
    *,
    batch_tokens: int = BATCH_TOKENS,
    journal: Journal | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> Generator[tuple[int, int, float, bool], None, None]:
    """Yield (question, option, log-probability in nats, greedy) of all branches, in any order."""
    compute = states.token_log_probabilities
    results = _computed(compute, model, packed, TOKENS, batch_tokens, journal, check_stop)
    for rows, (logp_BxE, argmax_BxE) in results:
        used_BxE = rows.question_BxE >= 0
        branch_2xE = np.stack([rows.question_BxE, rows.option_BxE])[:, used_BxE]
        starts = np.flatnonzero(np.diff(branch_2xE, prepend=-1).any(axis=0))
        sums = np.add.reduceat(logp_BxE[used_BxE].astype(np.float64), starts)
        greedy = np.logical_and.reduceat(argmax_BxE[used_BxE], starts)
        yield from zip(*branch_2xE[:, starts].tolist(), sums.tolist(), greedy.tolist(), strict=True)


def _by_head(model: Scorer, made: prompts.Prompts, **options: Any):
    """Yield question, option and score of each option; of a classification all scores at once."""
    for rows, scores in _computed(_head_scores, model, made.prompts, LAST, **options):
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
    compute: Callable,
    model,
    packed: Sequence[Prompt],
    read: str,
    batch_tokens: int,
    journal: Journal | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Rows, Any]]:
    """Yield every batch of rows with `compute(model, rows)`, as numpy arrays in every process."""
    place = jax.tree.leaves(model)[0].sharding
    mesh: Any = place.mesh if isinstance(place, NamedSharding) else meshes.one_device()
    shards, layout = meshes.batch_shards(mesh), meshes.sharding(mesh, "batch", None)
    buckets, journal = make_buckets(packed, read=read), journal or Journal()
    total = sum(bucket.length * len(bucket.rows) for bucket in buckets)
    journal.begin([read, shards, batch_tokens, packed], total=total)
    waiting: tuple | None = None
    number = 0

    def fetched(number: int, rows: Rows, result: Any, new: bool, size: int) -> tuple[Rows, Any]:
        if new:
            result = multihost_utils.process_allgather(result, tiled=True)
        journal.write(number, result, size=size, new=new)
        return rows, result

    for bucket in buckets:
        per_shard = max(1, batch_tokens // bucket.length)
        batch_size = shards * min(per_shard, -(-len(bucket.rows) // shards))
        for rows in batches(packed, bucket, batch_size=batch_size, read=read):
            check_stop()
            largest, rows_of = int(np.max(rows.tokens_BxL)), model.config.vocab_size
            if largest >= rows_of:
                got = f"a text has token id {largest}"
                known = f"the model's vocabulary ends at {rows_of - 1}"
                raise InputError(f"{got}, and {known}; remove the special token that it spells")
            size = bucket.length * int((rows.prompt_BxL >= 0).any(axis=1).sum())
            placed = jax.tree.map(lambda array: meshes.place(array, layout), rows)
            with jax.set_mesh(mesh):  # not around the yield: the caller's mesh stays
                result = _kept(journal.read(number), functools.partial(compute, model, placed))
                new = result is None
                if new:
                    result = compute(model, placed)
            if waiting:  # fetched while the next batch is computed
                yield fetched(*waiting)
            waiting = number, rows, result, new, size
            number += 1
    if waiting:
        yield fetched(*waiting)


def _kept(result: Any, compute: Callable) -> Any:
    """Return the result that process 0 has in its journal, in every process; None without one."""
    if jax.process_count() == 1:
        return result
    if not multihost_utils.broadcast_one_to_all(np.array(result is not None)):
        return None
    empty = jax.tree.map(lambda one: np.zeros(one.shape, one.dtype), jax.eval_shape(compute))
    sent = multihost_utils.broadcast_one_to_all(empty if result is None else result)
    return jax.tree.map(lambda one, zeros: np.asarray(one, zeros.dtype), sent, empty)


def _item(question: Question, scores: np.ndarray, flags: Mapping[str, bool], way: str) -> dict:
    if not np.isfinite(scores).all():
        got = f"question {question.id!r} has the scores {scores.tolist()}"
        raise InputError(f"{got}: the model's weights are not finite")
    weights = np.exp(scores - scores.max())
    return {
        "id": question.id,
        "content": question_hash(question),
        "group": question.group,
        "subject": question.subject,
        "options": list(question.options),
        "gold": question.label,
        "prediction": int(scores.argmax()),
        "scores": scores.tolist(),
        "probabilities": None if way in NOT_PROBABILITIES else (weights / weights.sum()).tolist(),
        **flags,
    }
