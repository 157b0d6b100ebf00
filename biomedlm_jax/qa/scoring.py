"""score(): what a model answers, by letters, by the options' own text, or by a fine-tuned head."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from tokenizers import Tokenizer

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.model.heads import CHOICE
from biomedlm_jax.qa import rows as formats
from biomedlm_jax.qa.packing import LAST, TOKENS, Prompt, Rows, batches, make_buckets
from biomedlm_jax.qa.states import head_scores, token_log_probabilities
from biomedlm_jax.qa.tasks import Example, Task

LETTER, OPTION, CLASSIFIER = MODES = ("letter", "option", "classifier")
BATCH_TOKENS = 4096  # tokens of one batch on one device

_head_scores = jax.jit(head_scores)


def score(
    model,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    task: Task,
    *,
    mode: str = OPTION,
    shots: Sequence[Example] = (),
    row_format: str = formats.PAPER,
    max_length: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[str, list[dict]]:
    """Answer the examples; return a list of items, one per example, for every way of scoring.

    Args:
      model: a GPT for "letter" and "option", a MultipleChoice or SequenceClassifier for
        "classifier".
      mode: "letter" gives {"letter": items}; "option" gives the summed log-probability of each
        option's text ("option"), the same per character and per token, and minus its
        log-probability without the question; "classifier" gives {"classifier": items}.
      shots: answered examples before the question (letter only).
      row_format, max_length: of a classifier: those it was tuned with.
      batch_tokens: tokens per device and batch; with the model, this decides the memory.

    Returns:
      Items of the form that `report` reads: id, options, gold, prediction, scores, probabilities
      (a softmax over the question's own options) and truncated. Where the scores tie the first
      option is predicted.

    Raises:
      ValueError: an unknown mode; a kind of model, a tokenizer or a length that does not serve it.
    """
    if mode not in MODES:
        raise ValueError(f"got mode={mode!r}; choose one of {', '.join(MODES)}")
    if not examples:
        raise ValueError("got no questions to score")
    if mode == CLASSIFIER:
        return _by_head(model, tokenizer, examples, row_format, max_length, batch_tokens)
    if not isinstance(model, GPT):
        raise ValueError(f"mode={mode} needs a language model; this one has a {model.kind} head")
    limit = model.config.context_length
    if mode == LETTER:
        made = formats.letter_prompts(tokenizer, examples, task, shots=shots, max_length=limit)
        sums = _sums(model, made.prompts, examples, batch_tokens)
        return {LETTER: _items(examples, sums, made.truncated)}
    made = formats.option_prompts(tokenizer, examples, max_length=limit)
    sums = _sums(model, made.prompts, examples, batch_tokens)
    alone = formats.unconditional_prompts(tokenizer, examples, max_length=limit)
    before = _sums(model, alone.prompts, examples, batch_tokens)
    lengths = [[0] * len(example.options) for example in examples]
    for prompt in made.prompts:
        for i, branch in enumerate(prompt.branches):
            lengths[prompt.question][prompt.first_option + i] = len(branch)
    ways = {
        OPTION: sums,
        "option per character": [
            [s / len(option) for s, option in zip(of, example.options, strict=True)]
            for of, example in zip(sums, examples, strict=True)
        ],
        "option per token": [
            np.divide(of, n).tolist() for of, n in zip(sums, lengths, strict=True)
        ],
        "option minus unconditional": [
            np.subtract(of, without).tolist() for of, without in zip(sums, before, strict=True)
        ],
    }
    return {name: _items(examples, scores, made.truncated) for name, scores in ways.items()}


def log_probabilities(
    model: GPT, prompts: Sequence[Prompt], *, batch_tokens: int = BATCH_TOKENS
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """For every branch: its question, its option, its tokens' log-probabilities, and which were
    the likeliest of all. In no particular order; one compile per row length, four at most.
    """
    for rows, (logp_BxE, likeliest_BxE) in _run(
        token_log_probabilities, model, prompts, read=TOKENS, batch_tokens=batch_tokens
    ):
        for b, begin, end in _branches(rows):
            question, option = rows.question_BxE[b, begin], rows.option_BxE[b, begin]
            yield int(question), int(option), logp_BxE[b, begin:end], likeliest_BxE[b, begin:end]


def _by_head(model, tokenizer, examples, row_format, max_length, batch_tokens):
    kind = getattr(model, "kind", None)
    if kind is None:
        raise ValueError("mode=classifier needs a fine-tuned head, and this is a language model")
    formats.check_tokens(tokenizer, kind)
    limit = model.gpt.config.context_length
    make = formats.choice_prompts if kind == CHOICE else formats.classification_prompts
    max_length = min(max_length or limit, limit)
    made = make(tokenizer, examples, row_format=row_format, max_length=max_length)
    scores = [[0.0] * len(example.options) for example in examples]
    for rows, found in _run(
        _head_scores, model, made.prompts, read=LAST, batch_tokens=batch_tokens
    ):
        for b, e in np.argwhere(rows.question_BxE >= 0):
            question, option = rows.question_BxE[b, e], rows.option_BxE[b, e]
            if kind == CHOICE:
                scores[question][option] = float(found[b, e])
                continue
            if len(found[b, e]) != len(scores[question]):
                raise ValueError(
                    f"the head has {len(found[b, e])} classes, and example "
                    f"{examples[question].id!r} has {len(scores[question])}"
                )
            scores[question] = found[b, e].tolist()
    return {CLASSIFIER: _items(examples, scores, made.truncated)}


def _run(compute, model, prompts: Sequence[Prompt], *, read: str, batch_tokens: int):
    """Yield every batch of rows with what `compute(model, rows)` found, as numpy arrays.

    Every process computes all batches together and has all results.
    """
    mesh = _mesh_of(model)
    shards = meshes.batch_shards(mesh)
    layout = meshes.sharding(mesh, "batch", None)
    waiting = None
    for bucket in make_buckets(prompts, read=read):
        per_shard = max(1, batch_tokens // bucket.length)
        batch_size = shards * min(per_shard, -(-len(bucket.rows) // shards))
        for rows in batches(prompts, bucket, batch_size=batch_size, read=read):
            placed = jax.tree.map(lambda array: meshes.place(array, layout), rows)
            with jax.set_mesh(mesh):  # not around the yield: the caller's mesh is the caller's
                found = rows, compute(model, placed)
            if waiting:  # fetched while the next batch is computed
                yield _fetched(*waiting)
            waiting = found
    if waiting:
        yield _fetched(*waiting)


def _fetched(rows: Rows, found):
    if jax.process_count() == 1:
        return rows, jax.tree.map(np.asarray, found)
    return rows, multihost_utils.process_allgather(found, tiled=True)


def _mesh_of(model):
    sharding = jax.tree.leaves(model)[0].sharding
    return sharding.mesh if isinstance(sharding, NamedSharding) else meshes.one_device()


def _branches(rows: Rows) -> Iterator[tuple[int, int, int]]:
    """Row, begin and end of the answers of each branch."""
    for b, (questions, options) in enumerate(zip(rows.question_BxE, rows.option_BxE, strict=True)):
        used = int((questions >= 0).sum())
        keys = np.stack([questions, options])[:, :used]
        edges = [0, *(np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(0)) + 1).tolist(), used]
        yield from ((b, begin, end) for begin, end in itertools.pairwise(edges) if used)


def _sums(model, prompts, examples, batch_tokens) -> list[list[float]]:
    sums = [[math.nan] * len(example.options) for example in examples]
    for question, option, logp, _ in log_probabilities(model, prompts, batch_tokens=batch_tokens):
        sums[question][option] = float(logp.sum(dtype=np.float64))
    return sums


def _items(examples: Iterable[Example], scores, truncated) -> list[dict]:
    items = []
    for example, of, cut in zip(examples, scores, truncated, strict=True):
        if not np.isfinite(of).all():
            raise ValueError(
                f"example {example.id!r} got the scores {of}: the model's weights are not finite"
            )
        weights = np.exp(np.subtract(of, max(of)))
        items.append(
            {
                "id": example.id,
                "options": list(example.options),
                "gold": example.label,
                "prediction": int(np.argmax(of)),
                "scores": [float(s) for s in of],
                "probabilities": (weights / weights.sum()).tolist(),
                "truncated": cut,
            }
        )
    return items
