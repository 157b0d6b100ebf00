"""versus(): a model and the base it came from, each with the setting that dev chose for it.

A setting is a way of scoring, with or without the chat template of the model's directory. Whoever
tries several on test and reports the best one reports luck as skill, and more of it for the model
that has more settings. Here dev chooses, and test is scored once with what was chosen.
"""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.buckets import is_bucket
from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.interop.directories import training_record
from biomedlm_jax.interop.finetuned import Head
from biomedlm_jax.outputs import check_output
from biomedlm_jax.qa import identity, prompts, report, statistics
from biomedlm_jax.qa.disagreements import disagreements
from biomedlm_jax.qa.formats import CLASSIFICATION
from biomedlm_jax.qa.journal import Journal, print_progress
from biomedlm_jax.qa.models import (
    AUTO,
    ChatPrompt,
    check_model,
    choose_modes,
    load_model,
    read_chat_prompt,
)
from biomedlm_jax.qa.questions import (
    Question,
    Skipped,
    first_questions,
    overlap,
    questions_hash,
)
from biomedlm_jax.qa.scoring import BATCH_TOKENS, LETTER, WAYS, score
from biomedlm_jax.qa.splits import note_shared_questions, read_dev, read_questions, read_shots
from biomedlm_jax.qa.statistics import Item
from biomedlm_jax.qa.summary import summarise
from biomedlm_jax.qa.tasks import Task, default_split, find_task
from biomedlm_jax.qa.versus_table import versus_markdown

BASE, MODEL = ROLES = ("base", "model")


class Setting(NamedTuple):
    """How a model is asked."""

    way: str
    chat: bool  # whether a prompt is a user's turn of the chat template

    @property
    def name(self) -> str:
        """As reports name it."""
        return f"{self.way}, chat template" if self.chat else self.way


class QuestionSets(NamedTuple):
    """The questions, and how both models are asked them."""

    task: Task
    questions: list[Question]
    dev: list[Question]  # to choose the settings on; empty: they are not chosen
    shots: list[Question]
    batch_tokens: int
    all_settings: bool
    date: str  # that chat templates print


class Answered(NamedTuple):
    """What one model answered."""

    described: dict[str, Any]
    chosen: Setting
    settings: list[Setting]
    dev: dict[Setting, list[Item]]  # empty: not chosen
    items: dict[Setting, list[Item]]  # of `chosen`; with all_settings of every setting
    spelling: list[str]  # ids of questions with the spelling of a special token
    chat: ChatPrompt | None


def versus(
    model: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    task: str,
    path: str | Path | None = None,
    dev_path: str | Path | None = None,
    format: str = "",
    split: str | None = None,
    mode: str = AUTO,
    shots: int = 0,
    fold: int = 0,
    on_error: str = "raise",
    label_base: str = "auto",
    twins: str = "keep",
    limit: float | None = None,
    all_settings: bool = False,
    date: str = "",
    batch_tokens: int = BATCH_TOKENS,
    overwrite: bool = False,
    mesh: Mesh | None = None,
    notify: Callable[[str], None] = print,
    progress: Callable[[str], None] = print_progress,
    **execution,
) -> dict:
    """Compare a model with its base on the same questions; write a report, return its summary.

    Each model is scored on dev with every setting, and on `split` once, with the setting of the
    highest accuracy on dev, of equals the first listed. Without dev questions both have the first
    setting: letters, in lm-evaluation-harness's prompt. Models are loaded one after the other, the
    model twice, as its weights are compared with the base's before anything is scored. It resumes,
    and is called in every process, as `evaluate`, whose arguments are not repeated here.

    Args:
      base: what the model was trained from: a directory, as `model`.
      dev_path: file or directory of questions to choose on; default: the dev split of `path`.
        Those that are also scored, or shots, are left out.
      limit: score, and choose on, only the first questions of each split.
      all_settings: score `split` with every setting, too, once the choice is made.
      date: YYYY-MM-DD, what a chat template prints as today; "": the day of the call. After another
        day, or another template, answers from before are not taken over.

    Raises InputError for bad input, equal weights and a missing dev file, before any is scored.
    """
    from biomedlm_jax.corpus.chat_template import fixed_date  # imports Jinja

    keep_freed_memory()
    date = date or datetime.date.today().isoformat()
    fixed_date(date, name="date")
    paths = {BASE: base, MODEL: model}
    if Path(model).resolve() == Path(base).resolve():
        raise InputError(f"got {model} as the model and as its base; fix: name two directories")
    chosen_task = find_task(task, format=format)
    split = split or default_split(chosen_task, path)
    name, skipped, skipped_dev = f"{chosen_task.name}, {split}", Skipped(), Skipped()
    read: dict[str, Any] = {"fold": fold, "on_error": on_error}
    read |= {"label_base": label_base, "twins": twins}
    where: dict[str, Any] = {"split": split, "skipped": skipped, **read}
    questions = read_questions(chosen_task, path, labelled=True, **where)
    writes = jax.process_index() == 0
    progress = progress if writes else lambda line: None
    note_shared_questions(chosen_task, path, questions, progress=progress, **where)
    whole, questions = questions, first_questions(questions, limit)
    heads = {role: check_model(one, mesh) for role, one in paths.items()}
    modes = {r: choose_modes(mode, [paths[r]], [heads[r]], chosen_task) for r in ROLES}
    if (shots and LETTER not in (*modes[BASE], *modes[MODEL])) or shots < 0:
        raise InputError(f"got shots={shots}; only letter prompts have shots, at least 0 of them")
    given = {"skipped": skipped, **read}
    examples = read_shots(chosen_task, path, shots, questions, **given) if shots else []
    dev = read_dev(chosen_task, path, dev_path, scored=split, skipped=skipped_dev, **read)
    dev_whole, dev_split, why = ([], "", dev) if isinstance(dev, str) else (*dev, "")
    left_out = {*overlap(dev_whole, [*whole, *examples])}
    dev_questions = [one for one in dev_whole if one.id not in left_out]
    if dev_whole and not dev_questions:
        got = f"all {counted(len(dev_whole), 'dev question')} are also scored or shots"
        raise InputError(f"{got}; fix: --dev_path of other questions")
    dev_questions = first_questions(dev_questions, limit)
    if writes:
        if is_bucket(out):
            raise InputError(f"got out={out}; reports are written to a local directory")
        check_output(out, replaceable=report.is_report, overwrite=overwrite)
        more = f" (the first of {len(whole):,})" if limit is not None else ""
        notify(f"{name}: {counted(len(questions), 'question')}{more}; skipped: {skipped}")
        line = f"settings are not chosen: {why}"
        if dev_whole:
            line = (
                f"settings are chosen on {counted(len(dev_questions), 'question')} of {dev_split}"
            )
            line += f", {len(left_out):,} that are also scored or shots left out"
            line += f"; skipped: {skipped_dev}"
        notify(line)
    how = batch_tokens, all_settings, date
    sets = QuestionSets(chosen_task, questions, dev_questions, examples, *how)
    partial = f"{Path(out)}.partial" if writes else None
    journal, load = {"folder": partial, "notify": progress}, {"mesh": mesh, **execution}
    weights = _weights(model, heads[MODEL], **load)
    answers: dict[str, Answered] = {}
    for role, other in ((BASE, weights), (MODEL, "")):
        place = paths[role], heads[role], modes[role]
        answers[role] = _answer(*place, sets, unlike=other, journal=journal, load=load)
        remark = f"spelling a special token of the {role}, encoded as text, in a chat with a space"
        skipped.note(remark, answers[role].spelling)
    provenance = {
        "questions": {
            "task": chosen_task.name,
            "split": split,
            "path": str(path or chosen_task.path),
            "fold": fold,
            "hash": questions_hash(questions),
            "scored": len(questions),
            "in_split": len(whole),
            "limit": limit,
        },
        "shots": {"count": shots, "hash": questions_hash(examples) if shots else None},
        **identity.run_environment(),
    }
    chosen_on = {
        "split": dev_split,
        "path": str(dev_path or path or chosen_task.path),
        "n": len(dev_questions),
        "hash": questions_hash(dev_questions),
        "left_out": sorted(left_out),
        "skipped": skipped_dev.tables(),
    }
    reports: dict[str, Sequence] = {}
    models: dict[str, dict] = {}
    for role, of in answers.items():
        items, place = of.items[of.chosen], (paths[role], chosen_task.name)
        summary = summarise(
            items,
            name=name,
            what=f"{paths[role]}, {of.chosen.name}",
            official=chosen_task.sizes.get(split),
            official_subjects=chosen_task.subjects or None,
            with_macro_f1=chosen_task.kind == CLASSIFICATION,
            baseline=[answers[BASE].items[answers[BASE].chosen]] if role == MODEL else (),
            baseline_name=str(base),
            skipped=skipped.tables(),
            provenance={"models": [of.described], **provenance, "way": of.chosen.name},
            uses=identity.used_in_training(*place, split, whole),
            questions=questions,
        )
        reports[role] = summary, items
        uses = identity.used_in_training(*place, dev_split, dev_whole) if dev_whole else []
        models[role] = {**_figures(of, summary), "trained_on_dev": "train" in uses}
    of_model, answered = reports[MODEL][0], (reports[role][1] for role in (MODEL, BASE))
    result = {
        "task": name,
        **{key: of_model[key] for key in ("n", "groups", "chance", "skipped", "bootstrap")},
        "chosen_on": chosen_on if dev_whole else None,
        "not_chosen_because": why,
        "models": models,
        "versus": of_model["baseline"],
        "disagreements": disagreements(*answered, questions),
        "base_in_record": _base_in_record(model, answers[BASE].described["weights"]),
        "provenance": provenance,
    }
    if writes:
        of_both = result, versus_markdown(result)
        report.write_reports(out, reports, whole=of_both, overwrite=overwrite)
        Journal(partial).remove()
    return result


def list_settings(modes: Sequence[str], *, has_template: bool) -> list[Setting]:
    """Return the settings of a model, the default first: plain ones, then those of its chat."""
    ways = [way for mode in modes for way in WAYS[mode]]
    return [Setting(way, chat) for chat in (False, True)[: 1 + has_template] for way in ways]


def choose_setting(dev: Mapping[Setting, Sequence[Item]]) -> Setting:
    """Return the setting of the most right answers, of equals the first."""
    return max(
        dev, key=lambda setting: sum(one["prediction"] == one["gold"] for one in dev[setting])
    )


def _weights(path: str | Path, head: Head | None, **load: Any) -> str:
    model, tokenizer = load_model(path, head, **load)
    return identity.describe(path, model, tokenizer)["weights"]


def _answer(
    path: str | Path,
    head: Head | None,
    modes: Sequence[str],
    sets: QuestionSets,
    *,
    unlike: str,
    journal: Mapping[str, Any],
    load: Mapping[str, Any],
) -> Answered:
    """Load a model, choose its setting on dev, and score the questions with that.

    Raises InputError, before it is scored, if its weights have the hash `unlike`.
    """
    model, tokenizer = load_model(path, head, **load)
    rows: Any = {"row_format": head.row_format, "max_length": head.max_length} if head else {}
    described = identity.describe(path, model, tokenizer, **rows)
    if described["weights"] == unlike:
        got = f"the base {path} has the same weights as the model"
        raise InputError(f"{got}; fix: --versus of what the model was trained from")
    chat = None if head else read_chat_prompt(path, date=sets.date)
    settings = list_settings(modes, has_template=chat is not None)
    start = [described["weights"], described["dtype"], repr(model.config)]
    start += [chat.template, str(chat.date)] if chat else []
    kept = Journal(start=start, **journal)

    def answer(questions: Sequence[Question], of: Sequence[Setting]) -> dict[Setting, list[Item]]:
        answers: dict[Setting, list[Item]] = {}
        options: dict[str, Any] = {"shots": sets.shots, "batch_tokens": sets.batch_tokens, **rows}
        options["journal"] = kept
        for mode in modes:
            for in_chat in (False, True):
                wanted = [one for one in of if one.chat == in_chat and one.way in WAYS[mode]]
                if not wanted:
                    continue
                options["wrap"] = chat.wrap if in_chat and chat else None
                scored = score(model, tokenizer, questions, sets.task, mode=mode, **options)
                for one in wanted:
                    answers[one] = [*scored[one.way]]
        return {one: answers[one] for one in of}

    dev = answer(sets.dev, settings) if sets.dev else {}
    chosen = choose_setting(dev) if dev else settings[0]
    items = answer(sets.questions, settings if sets.all_settings else [chosen])
    spelling = prompts.spells_special(tokenizer, sets.questions)
    return Answered(described, chosen, settings, dev, items, spelling, chat)


def _figures(of: Answered, summary: Mapping) -> dict[str, Any]:
    """Return a model's part of the report."""

    def accuracies(answers: Mapping[Setting, Sequence[Item]]) -> dict[str, dict]:
        return {
            one.name: statistics.accuracy(statistics.columns(items))._asdict()
            for one, items in answers.items()
        }

    dev, test = accuracies(of.dev), accuracies(of.items)
    best = dev[of.chosen.name]["value"] if dev else None
    return {
        **of.described,
        "chat_template": any(setting.chat for setting in of.settings),
        "chat_date": of.chat.date if of.chat else None,
        "setting": of.chosen.name,
        "chosen": bool(dev),
        "tied": [n for n, one in dev.items() if one["value"] == best and n != of.chosen.name],
        "dev": dev,
        "accuracy": summary["accuracy"],
        "macro_f1": summary["macro_f1"],
        "truncated": summary["truncated"],
        "not_chosen": {n: one for n, one in test.items() if n != of.chosen.name} or None,
        "trained_on": summary["trained_on"],
        "chose_checkpoint": summary["chose_checkpoint"],
    }


def _base_in_record(model: str | Path, weights: str) -> bool | None:
    """Return whether the model's record has the base's weights; None without a record."""
    record = training_record(model)
    return weights in json.dumps(record) if record else None
