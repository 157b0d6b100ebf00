"""evaluate(): answer a task's questions with a model and write the report."""

import datetime
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.buckets import is_bucket
from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.outputs import check_output
from biomedlm_jax.qa import calibration, identity, prompts, report, statistics
from biomedlm_jax.qa.exclusions import read_exclusions
from biomedlm_jax.qa.formats import CHOICE, CLASSIFICATION
from biomedlm_jax.qa.journal import Journal, print_progress
from biomedlm_jax.qa.models import (
    AUTO,
    check_model,
    check_seeds,
    choose_modes,
    load_model,
    read_chat_prompt,
    refuse_equal,
)
from biomedlm_jax.qa.orders import bias_of_seeds, random_orders, reorder_options
from biomedlm_jax.qa.questions import Question, Skipped, first_questions, questions_hash
from biomedlm_jax.qa.scoring import BATCH_TOKENS, LETTER, NOT_PROBABILITIES, OPTION, WAYS, score
from biomedlm_jax.qa.splits import note_shared_questions, read_questions, read_shots
from biomedlm_jax.qa.summary import summarise
from biomedlm_jax.qa.tasks import default_split, find_task


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
    risk: float | None = None,
    orders: int = 1,
    exclude: str | Path | None = None,
    chat_template: bool = False,
    date: str = "",
    batch_tokens: int = BATCH_TOKENS,
    overwrite: bool = False,
    mesh: Mesh | None = None,
    notify: Callable[[str], None] = print,
    progress: Callable[[str], None] = print_progress,
    **execution,
) -> list[dict]:
    """Score a model (several: its seeds) on a split, write a report, return a summary per way.

    Batches that are scored are kept in `out`.partial until the report is written: the same call
    after an interruption resumes there. Progress is printed to stderr.
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
        threshold below which to abstain: at most a share `risk` of the dev answers is wrong, by
        default calibration.RISK.
      orders: in how many orders the options are shown (the file's, then random ones), for the
        position bias of letters or heads, over the answers of all models.
      exclude: list of questions of this split, written by `contamination`: the report has a second
        score, without them.
      chat_template: put each prompt into the chat template of the model's directory, as a user's
        turn; shots are part of it.
      date: YYYY-MM-DD, what that template prints as today; "": the day of the call.
      baseline: another model's report on the same questions: a directory or items.jsonl.

    Raises InputError for bad input: before a model is loaded,
    but for a copy of another seed and a `calibrate` of other weights, before that model is scored.
    """
    keep_freed_memory()
    models = [models] if isinstance(models, str | Path) else list(models)
    if not models:
        raise InputError("expected at least one model, got none")
    chosen = find_task(task, format=format)
    split = split or default_split(chosen, path)
    name, skipped = f"{chosen.name}, {split}", Skipped()
    read: dict[str, Any] = {"fold": fold, "on_error": on_error, "skipped": skipped}
    read |= {"label_base": label_base, "twins": twins}
    questions = read_questions(chosen, path, split=split, **read)
    labelled = questions[0].label is not None  # the reader refuses a mixture
    if baseline and not labelled:
        got = f"the {counted(len(questions), 'question')} of {name} have no labels"
        raise InputError(f"{got}; fix: leave out --baseline for predictions, or choose a split")
    if exclude and not labelled:
        got = f"the {counted(len(questions), 'question')} of {name} have no labels"
        raise InputError(f"{got}; fix: leave out --exclude, or choose a split with labels")
    exclusions = read_exclusions(exclude, questions) if exclude else None
    progress = progress if jax.process_index() == 0 else lambda line: None
    note_shared_questions(chosen, path, questions, split=split, progress=progress, **read)
    whole, in_split = questions, len(questions)
    questions = first_questions(questions, limit)
    counts = {len(question.options) for question in questions}
    complete = chosen.sizes.get(split) == in_split == len(questions)
    complete = complete and (not chosen.options or counts == {chosen.options})
    heads = [check_model(model, mesh) for model in models]
    modes = choose_modes(mode, models, heads, chosen)
    today = date or datetime.date.today().isoformat()
    if chat_template and any(heads):
        got = f"got chat_template with {models[0]}, whose fine-tuned head reads no chat"
        raise InputError(f"{got}; fix: leave it out")
    chats = [read_chat_prompt(one, date=today) if chat_template else None for one in models]
    if chat_template and not all(chats):
        got = f"{models[chats.index(None)]} has no chat template"
        raise InputError(f"{got}; fix: leave out --chat_template, or add chat_template.jinja to it")
    check_seeds(models)
    if (shots and LETTER not in modes) or shots < 0:
        raise InputError(f"got shots={shots}; only letter prompts have shots, at least 0 of them")
    examples = read_shots(chosen, path, shots, questions, **read) if shots else []
    ways = [way for one in modes for way in WAYS[one]]
    baselines = {way: report.read_seeds(baseline, way=way) for way in ways} if baseline else {}
    for items in itertools.chain(*baselines.values()):
        statistics.same_questions(_as_result(questions), statistics.columns(items))
    if orders < 1 or (orders > 1 and not (labelled and chosen.kind == CHOICE)):
        got = f"got orders={orders} for {name}"
        raise InputError(f"{got}; expected at least 1, and 1 for classes or without gold labels")
    if risk is not None and not calibrate:
        got = f"got risk={risk} without calibrate, the report on dev that it is chosen on"
        raise InputError(f"{got}; fix: add --calibrate=REPORT, or leave out --risk")
    on_dev = {}
    if calibrate:
        on_dev = _dev_reports(calibrate, ways, models, questions, labelled, chat_template)
    share = calibration.RISK if risk is None else risk
    chosen_on_dev = {w: calibration.calibrate(d, risk=share) for w, (d, _) in on_dev.items()}
    writes = jax.process_index() == 0
    if writes:
        if is_bucket(out):
            raise InputError(f"got out={out}; reports are written to a local directory")
        check_output(out, replaceable=report.is_report, overwrite=overwrite)
        unlike = chosen.unlike_official(split, len(questions))
        unlike += f" (the first of {in_split:,})" if limit is not None else ""
        notify(f"{name}: {counted(len(questions), 'question')}{unlike}; skipped: {skipped}")
    partial = f"{Path(out)}.partial" if writes else None  # of process 0, whose journal decides
    results: dict[str, list[list[dict]]] = {}
    options: dict[str, Any] = {"shots": examples, "batch_tokens": batch_tokens}
    described, uses = [], []
    orderings, shuffled = random_orders(questions, orders), {}
    for directory, head, chat in zip(models, heads, chats, strict=True):
        model, tokenizer = load_model(directory, head, mesh, **execution)
        rows: Any = {"row_format": head.row_format, "max_length": head.max_length} if head else {}
        options |= rows
        described.append(identity.describe(directory, model, tokenizer, **rows))
        described[-1] |= {"chat_template": chat_template, "chat_date": chat.date if chat else None}
        refuse_equal([one["weights"] for one in described], models)
        for _, digest in on_dev.values():
            if digest != described[-1]["weights"]:
                got = f"{calibrate} is of the weights {digest[:12]}, not {directory}'s"
                raise InputError(f"{got}; fix: evaluate this model on dev first")
        start = [described[-1]["weights"], described[-1]["dtype"], repr(model.config)]
        if chat:
            options["wrap"] = chat.wrap
            start += [chat.template, str(chat.date)]
        journal = Journal(partial, start=start, notify=progress)
        if directory == models[0]:
            noted = prompts.spells_special(tokenizer, questions)
            skipped.note("spelling a special token, encoded as text", noted)
        uses += identity.used_in_training(directory, chosen.name, split, whole)
        for one in modes:
            given = {"task": chosen, "mode": one, "journal": journal, **options}
            answer = functools.partial(score, model, tokenizer, **given)
            scored = answer(questions)
            for way, items in scored.items():
                results.setdefault(way, []).append(items)
            if orders > 1 and one != OPTION:
                others = [answer(reorder_options(questions, order))[one] for order in orderings[1:]]
                shuffled.setdefault(one, []).append([scored[one], *others])
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
        **identity.run_environment(),
    }
    reports = {}
    for way, seeds in results.items():
        summary = summarise(
            *seeds,
            name=name,
            what=f"{models[0]}, {way}{', chat template' if chat_template else ''}"
            + (f", {shots} shots" if shots and way == LETTER else ""),
            official=chosen.sizes.get(split),
            published=chosen.published if complete and split == chosen.published_split else {},
            published_split=chosen.published_split,
            official_subjects=chosen.subjects or None,
            with_macro_f1=chosen.kind == CLASSIFICATION,
            baseline=baselines.get(way, ()),
            baseline_name=str(baseline),
            exclusions=exclusions,
            skipped=skipped.tables(),
            provenance={**provenance, "way": way},
            uses=uses,
            questions=questions,
            shuffled=bias_of_seeds(shuffled[way], orderings) if way in shuffled else None,
            calibrated={
                "name": str(calibrate),
                **calibration.calibrated_metrics(chosen_on_dev[way], seeds[0]),
            }
            if way in chosen_on_dev
            else None,
        )
        reports[way if len(results) > 1 else ""] = summary, *seeds
        if summary["truncated"] and writes:
            of = counted(summary["n"], "question")
            notify(f"{way}: {summary['truncated']:,} of {of} were cut to fit")
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
    labelled: bool,
    chat_template: bool,
) -> dict[str, tuple[list[dict], str]]:
    """Return the items on dev and the hash of their weights, by way with probabilities."""
    if len(models) > 1 or not labelled:
        raise InputError("expected one model and gold labels with calibrate; fix: leave it out")
    here = {identity.question_hash(question) for question in questions}
    reports = {}
    for way in ways:
        if way in NOT_PROBABILITIES:
            continue
        items, of_report = report.read_items(path, way=way), report.read_provenance(path, way=way)
        if of_report.get("way") not in (None, way):
            got = f"{path} is a report of the way {of_report['way']!r}, not {way!r}"
            raise InputError(f"{got}; fix: choose its --mode, or evaluate dev with this one")
        if both := [item["id"] for item in items if item.get("content") in here]:
            got = f"{len(both)} questions of {path} are among those to score, as {both[0]!r}"
            raise InputError(f"{got}; fix: calibrate on another split")
        described = of_report.get("models") or [{}]
        if bool(described[0].get("chat_template")) != chat_template:
            got = f"{path} was made {'without' if chat_template else 'with'} a chat template"
            raise InputError(f"{got}; fix: evaluate dev as this split")
        reports[way] = items, str(described[0].get("weights"))
    return reports
