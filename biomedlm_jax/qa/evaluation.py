"""evaluate(): answer a task's questions with a model and write the report."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.files import check_output
from biomedlm_jax.interop.directories import model_config, read_tokenizer
from biomedlm_jax.interop.finetuned import Head, load_finetuned, read_head
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.mesh import check_fits
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.heads import Scorer
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.qa import calibration, identity, report, statistics
from biomedlm_jax.qa.formats import CHOICE, CLASSIFICATION
from biomedlm_jax.qa.journal import Journal, print_progress
from biomedlm_jax.qa.questions import Question, Skipped, counted, questions_hash
from biomedlm_jax.qa.scoring import (
    BATCH_TOKENS,
    CLASSIFIER,
    LETTER,
    NOT_PROBABILITIES,
    OPTION,
    WAYS,
    score,
)
from biomedlm_jax.qa.tasks import Task, default_split, find_task, read_questions, read_shots
from biomedlm_jax.training.provenance import weights_hash

AUTO = "auto"


def evaluate(
    models: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    task: str,
    path: str | Path | None = None,
    format: str = "",
    split: str | None = None,
    mode: str = AUTO,
    shots: int = 0,
    fold: int = 0,
    on_error: str = "raise",
    label_base: str = "auto",
    twins: str = "keep",
    baseline: str | Path | None = None,
    limit: float | None = None,
    calibrate: str | Path | None = None,
    risk: float = calibration.RISK,
    orders: int = 1,
    batch_tokens: int = BATCH_TOKENS,
    overwrite: bool = False,
    mesh: Mesh | None = None,
    notify: Callable[[str], None] = print,
    progress: Callable[[str], None] = print_progress,
    **execution,
) -> list[dict]:
    """Score a model on a split of a task, write a report into `out`, and return its summaries.

    Batches that are scored are kept in `out`.partial until the report is written: the same call
    after an interruption resumes there (not in several processes). Progress is printed to stderr.
    Call it in every process; process 0 writes and notifies. For the questions' arguments see
    `find_task`, `read_questions` and `default_split`; `execution` are fields of the model's config.

    Args:
      models: a run, fine-tuned or Hugging Face directory; several are seeds of one training, as
        their records must state, and their mean accuracy is reported.
      mode: one of WAYS; "auto" is "classifier" for a fine-tuned model, else "letter" and "option".
        Of several ways of scoring each gets a folder in `out`.
      shots: answered questions before each question (letter), the first of the first split.
      limit: score only the first questions: a number, or below 1 a fraction of them.
      calibrate: this model's report on dev questions, to fit a temperature and to choose the
        threshold below which to abstain: at most a share `risk` of the dev answers is wrong.
      orders: in how many orders the options are shown (the file's, then random ones), for the
        position bias of the first model's letters or head.
      baseline: another model's report on the same questions: a directory or items.jsonl.

    Raises ValueError, FileNotFoundError or FileExistsError for bad input, before any work.
    """
    keep_freed_memory()
    models = [models] if isinstance(models, str | Path) else list(models)
    if not models:
        raise ValueError("expected at least one model, got none")
    chosen = find_task(task, format=format)
    split = split or default_split(chosen, path)
    name, skipped = f"{chosen.name}, {split}", Skipped()
    read = {"fold": fold, "on_error": on_error, "skipped": skipped}
    read |= {"label_base": label_base, "twins": twins}
    questions = read_questions(chosen, path, split=split, **read)
    labelled = questions[0].label is not None  # the reader refuses a mixture
    if baseline and not labelled:
        got = f"the {counted(len(questions), 'question')} of {name} have no labels"
        raise ValueError(f"{got}; fix: leave out --baseline for predictions, or choose a split")
    in_split = len(questions)
    questions = _first(questions, limit)
    complete = chosen.sizes.get(split) == in_split + skipped.bad and len(questions) == in_split
    heads = [check_model(model, mesh) for model in models]
    modes = _modes(mode, models, heads, chosen)
    examples = _shots(shots, modes, chosen, questions, path, read)
    ways = [way for one in modes for way in WAYS[one]]
    baselines = {way: report.read_seeds(baseline, way=way) for way in ways} if baseline else {}
    for items in itertools.chain(*baselines.values()):
        statistics.same_questions(_as_result(questions), statistics.columns(items))
    if orders < 1 or (orders > 1 and not (labelled and chosen.kind == CHOICE)):
        got = f"got orders={orders} for {name}"
        raise ValueError(f"{got}; expected at least 1, and 1 for classes or without gold labels")
    on_dev = (
        _dev_reports(calibrate, ways, models, questions, labelled=labelled) if calibrate else {}
    )
    chosen_on_dev = {w: calibration.calibrate(d, risk=risk) for w, (d, _) in on_dev.items()}
    writes = jax.process_index() == 0
    if writes:
        check_output(out, replaceable=report.is_report, overwrite=overwrite)
        unlike = chosen.unlike_official(split, len(questions))
        unlike += f" (the first of {in_split:,})" if limit is not None else ""
        notify(f"{name}: {counted(len(questions), 'question')}{unlike}; skipped: {skipped}")
    weights = _different_weights(models, heads, mesh)
    partial = f"{Path(out)}.partial" if jax.process_count() == 1 else None
    results: dict[str, list[list[dict]]] = {}
    options: dict[str, Any] = {"shots": examples, "batch_tokens": batch_tokens}
    described, chose, shuffled = [], [], {}
    for directory, head, digest in zip(models, heads, weights, strict=True):
        model, tokenizer = load_model(directory, head, mesh, **execution)
        rows = {"row_format": head.row_format, "max_length": head.max_length} if head else {}
        options |= rows
        described.append(identity.describe(directory, model, tokenizer, weights=digest, **rows))
        for _, digest in on_dev.values():
            if digest != described[-1]["weights"]:
                got = f"{calibrate} is of the weights {digest[:12]}, not {directory}'s"
                raise ValueError(f"{got}; fix: evaluate this model on dev first")
        start = [described[-1]["weights"], described[-1]["dtype"], repr(model.config)]
        journal = Journal(partial, start=start, notify=progress if writes else _silent)
        chose.append(identity.chosen_on(directory, chosen.name, split, questions))
        for one in modes:
            scored = score(
                model, tokenizer, questions, chosen, mode=one, journal=journal, **options
            )
            for way, items in scored.items():
                results.setdefault(way, []).append(items)
            if orders > 1 and directory == models[0] and one != OPTION:
                again = {"task": chosen, "mode": one, "journal": journal, **options}
                answer = functools.partial(score, model, tokenizer, **again)
                shuffled[one] = _shuffled(questions, scored[one], orders, answer, way=one)
    provenance = {
        "models": described,
        "questions": {
            "task": chosen.name,
            "split": split,
            "path": str(path or chosen.path),
            "fold": fold,
            "hash": questions_hash(questions),
            "scored": len(questions),
            "in_split": in_split,
            "limit": limit,
        },
        "shots": {"count": shots, "hash": questions_hash(examples) if shots else None},
        **identity.circumstances(),
    }
    reports = {}
    for way, seeds in results.items():
        summary = report.summarise(
            seeds[0],
            name=name,
            what=f"{models[0]}, {way}" + (f", {shots} shots" if shots and way == LETTER else ""),
            official=chosen.sizes.get(split),
            published=chosen.published if complete and split == chosen.published_split else {},
            published_split=chosen.published_split,
            with_macro_f1=chosen.kind == CLASSIFICATION,
            baseline=baselines[way][0] if baselines else None,
            baseline_seeds=baselines[way][1:] if baselines else (),
            baseline_name=str(baseline),
            seeds=seeds if len(seeds) > 1 else None,
            skipped=identity.account(skipped),
            provenance={**provenance, "way": way},
            chose_checkpoint=any(chose),
            shuffled=shuffled.get(way),
            calibrated={"name": str(calibrate), **calibration.apply(chosen_on_dev[way], seeds[0])}
            if way in chosen_on_dev
            else None,
        )
        reports[way if len(results) > 1 else ""] = summary, *seeds
        if summary["truncated"] and writes:
            notify(f"{way}: {summary['truncated']:,} of {summary['n']:,} questions were cut to fit")
    if writes:
        report.write_reports(out, reports, overwrite=overwrite)
        Journal(partial).remove()
    return [summary for summary, *_ in reports.values()]


def _as_result(questions: Sequence[Question]) -> statistics.Columns:
    """Return the questions as a result has them; the predictions are the gold labels."""
    gold_N = np.array([question.label for question in questions])
    content = [identity.question_hash(question) for question in questions]
    ids, options = [one.id for one in questions], [one.options for one in questions]
    return statistics.Columns(ids, gold_N, gold_N, [], None, options, content)


def _dev_reports(
    path: str | Path,
    ways: Sequence[str],
    models: Sequence[str | Path],
    questions: Sequence[Question],
    *,
    labelled: bool,
) -> dict[str, tuple[list[dict], str]]:
    """Return the items on dev and the hash of their weights, by way with probabilities."""
    if len(models) > 1 or not labelled:
        raise ValueError("expected one model and gold labels with calibrate; fix: leave it out")
    here = {identity.question_hash(question) for question in questions}
    reports = {}
    for way in ways:
        if way in NOT_PROBABILITIES:
            continue
        items, of_report = report.read_items(path, way=way), report.read_provenance(path, way=way)
        if of_report.get("way") not in (None, way):
            got = f"{path} is a report of the way {of_report['way']!r}, not {way!r}"
            raise ValueError(f"{got}; fix: choose its --mode, or evaluate dev with this one")
        if both := [item["id"] for item in items if item.get("content") in here]:
            got = f"{len(both)} questions of {path} are among those to score, as {both[0]!r}"
            raise ValueError(f"{got}; fix: calibrate on another split")
        described = of_report.get("models") or [{}]
        reports[way] = items, str(described[0].get("weights"))
    return reports


def _shuffled(
    questions: Sequence[Question],
    items: Sequence[dict],
    count: int,
    answer: Callable[[list[Question]], dict[str, list[dict]]],
    *,
    way: str,
) -> dict:
    """Return the position bias over `count` orders of the options, `items` those of the first."""
    orders = [[list(range(len(question.options))) for question in questions]]
    answered = [items]
    for seed in range(1, count):
        rng = np.random.default_rng(seed)
        orders.append([rng.permutation(len(one.options)).tolist() for one in questions])
        shown = [
            dataclasses.replace(
                one,
                options=tuple(one.options[k] for k in order),
                label=None if one.label is None else order.index(one.label),
            )
            for one, order in zip(questions, orders[-1], strict=True)
        ]
        answered.append(answer(shown)[way])
    predicted, gold = (
        np.array([[item[name] for item in of_order] for of_order in answered])
        for name in ("prediction", "gold")
    )
    return statistics.position_bias(predicted, gold, orders)


def _silent(line: str) -> None:
    pass


def _first(questions: list[Question], limit: float | None) -> list[Question]:
    """Return the first questions: `limit` of them, or below 1 this fraction."""
    if limit is None:
        return questions
    if limit <= 0 or (limit > 1 and limit != int(limit)):
        raise ValueError(f"got limit={limit}; expected a number of questions, or a fraction of 1")
    return questions[: math.ceil(len(questions) * limit) if limit < 1 else int(limit)]


def check_model(path: str | Path, mesh: Mesh | None, **execution) -> Head | None:
    """Return the head of a directory (None: a language model); raise if it does not fit."""
    head, config = read_head(path), model_config(path, **execution)
    if read_tokenizer(path, config) is None:
        raise ValueError(f"{path} has no tokenizer; add the tokenizer.json it was trained with")
    if mesh is not None:
        check_fits(mesh, model=abstract_model(config))
    return head


def load_model(
    path: str | Path, head: Head | None, mesh: Mesh | None, **execution
) -> tuple[LanguageModel | Scorer, Tokenizer]:
    """Load a model that `check_model` returned the head of, and its tokenizer."""
    loader = load if head is None else load_finetuned
    model, tokenizer, *_ = loader(path, mesh=mesh, **execution)
    assert tokenizer is not None  # by check_model
    return model, tokenizer


def _different_weights(
    models: Sequence[str | Path], heads: Sequence[Head | None], mesh: Mesh | None
) -> list[str | None]:
    """Return the hashes of the weights of several seeds; raise ValueError unless they are seeds."""
    if len(models) == 1:
        return [None]
    seen: dict[str, str | Path] = {}
    paths = [str(Path(model).resolve()) for model in models]
    repeated = next((n for n, path in enumerate(paths) if path in paths[:n]), None)
    if repeated is None:
        identity.check_seeds(models)
    for directory, head in zip(models, heads, strict=True):
        digest = weights_hash(load_model(directory, head, mesh)[0])
        if digest in seen:
            got = f"{directory} has the same weights as {seen[digest]}"
            raise ValueError(f"{got}; fix: name each seed once")
        seen[digest] = directory
    return [*seen]


def check_head(head: Head, task: Task, *, where: str | Path, fix: str) -> None:
    """Raise ValueError if the head of the model at `where` is of another kind than the task."""
    if (head.kind, head.classes) != (task.kind, task.classes):
        got = f"{where} has a {head.kind} head {list(head.classes) or ''}"
        needed = f"{task.name} needs {task.kind} {list(task.classes) or ''}"
        raise ValueError(f"{got} (fine-tuned on {head.task}), and {needed}; {fix}")


def _modes(
    mode: str, models: Sequence[str | Path], heads: Sequence[Head | None], task: Task
) -> list[str]:
    """Return the modes to score in; raise ValueError if mode, models and task do not fit."""
    for path, head in zip(models, heads, strict=True):
        if head is not None:
            check_head(head, task, where=path, fix="choose another model")
    finetuned = [head is not None for head in heads]
    if any(finetuned) and not all(finetuned):
        one, other = models[finetuned.index(True)], models[finetuned.index(False)]
        raise ValueError(f"{one} is fine-tuned and {other} is not; evaluate them one at a time")
    if mode == AUTO:
        return [CLASSIFIER] if finetuned[0] else [LETTER, OPTION]
    if mode not in WAYS:
        raise ValueError(f"got mode={mode!r}; choose one of {AUTO}, {', '.join(WAYS)}")
    if finetuned[0] != (mode == CLASSIFIER):
        kind = "has a fine-tuned head" if finetuned[0] else "is a language model"
        raise ValueError(f"mode={mode} does not fit {models[0]}, which {kind}; choose {AUTO}")
    return [mode]


def _shots(
    count: int, modes: Sequence[str], task: Task, questions: Sequence[Question], path, read: dict
) -> list[Question]:
    """Return the shots of the letter prompts; raise ValueError if the modes have none."""
    if (count and LETTER not in modes) or count < 0:
        raise ValueError(f"got shots={count}; only letter prompts have shots, at least 0 of them")
    if not count:
        return []
    return read_shots(task, path, count, questions, **read)
