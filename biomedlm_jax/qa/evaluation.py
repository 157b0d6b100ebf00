"""evaluate(): answer a task's questions with a model and write the report."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from biomedlm_jax import mesh as meshes
from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.interop.directories import model_config, read_tokenizer
from biomedlm_jax.interop.heads import Head, load_finetuned, read_head
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.qa import report, statistics
from biomedlm_jax.qa.formats import CLASSIFICATION
from biomedlm_jax.qa.questions import Question, Skipped, counted
from biomedlm_jax.qa.scoring import BATCH_TOKENS, CLASSIFIER, LETTER, OPTION, WAYS, score
from biomedlm_jax.qa.tasks import Task, default_split, find_task, read_questions

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
    baseline: str | Path | None = None,
    batch_tokens: int = BATCH_TOKENS,
    overwrite: bool = False,
    mesh: Mesh | None = None,
    notify: Callable[[str], None] = print,
    **execution,
) -> list[dict]:
    """Score a model on a split of a task, write a report into `out`, and return its summaries.

    With several processes, call it in every one; process 0 writes and notifies.

    Args:
      models: a run, fine-tuned or Hugging Face directory; several are seeds of one fine-tuning,
        whose mean accuracy is reported beside the first one's results.
      task, path, format, fold, on_error: see `find_task` and `read_questions`.
      split: by default the one in the file's name, else the task's last one.
      mode: one of WAYS; "auto" is "classifier" for a fine-tuned model, else "letter" and "option".
        Of several ways of scoring each gets a folder in `out`.
      shots: answered questions before each question (letter), the first of the first split.
      baseline: another model's report on the same questions: a directory or items.jsonl.
      batch_tokens: tokens per device and batch.
      mesh: the devices; one by default.
      execution: fields of the model's config such as `compute_dtype`.

    Raises:
      ValueError, FileNotFoundError, FileExistsError: bad input, before anything is computed.
    """
    keep_freed_memory()
    models = [models] if isinstance(models, str | Path) else list(models)
    if not models:
        raise ValueError("expected at least one model, got none")
    chosen = find_task(task, format=format)
    split = split or default_split(chosen, path)
    name, skipped = f"{chosen.name}, {split}", Skipped()
    read = {"fold": fold, "on_error": on_error, "skipped": skipped}
    questions = read_questions(chosen, path, split=split, **read)
    unlabelled = sum(question.label is None for question in questions)
    if unlabelled:
        raise ValueError(
            f"{unlabelled} of {counted(len(questions), 'question')} of {name}, have no label, so "
            "nothing can be reported; choose another split"
        )
    heads = [check_model(model, mesh) for model in models]
    modes = _modes(mode, models, heads, chosen)
    examples = _shots(shots, modes, chosen, questions, path, read)
    ways = [way for one in modes for way in WAYS[one]]
    baselines = {way: report.read_items(baseline, way=way) for way in ways} if baseline else {}
    for items in baselines.values():
        ids = {question.id for question in questions}
        statistics.same_ids(ids, {item["id"] for item in items})
    writes = jax.process_index() == 0
    if writes:
        report.check_directory(out, overwrite=overwrite)
        notify(f"{name}: {counted(len(questions), 'question')}; skipped: {skipped}")
    results: dict[str, list[list[dict]]] = {}
    options = {"shots": examples, "batch_tokens": batch_tokens}
    for model, head in zip(models, heads, strict=True):
        loaded = _load(model, head, mesh, execution)
        for one in modes:
            for way, items in loaded(questions, chosen, mode=one, **options).items():
                results.setdefault(way, []).append(items)
    reports = {}
    for way, seeds in results.items():
        summary = report.summarise(
            seeds[0],
            name=name,
            what=f"{models[0]}, {way}" + (f", {shots} shots" if shots and way == LETTER else ""),
            published=chosen.published,
            published_split=chosen.published_split,
            with_macro_f1=chosen.kind == CLASSIFICATION,
            baseline=baselines.get(way),
            baseline_name=str(baseline),
            seeds=seeds if len(seeds) > 1 else None,
        )
        reports[way if len(results) > 1 else ""] = summary, seeds[0]
        if summary["truncated"] and writes:
            notify(f"{way}: {summary['truncated']:,} of {summary['n']:,} questions were cut to fit")
    if writes:
        report.write_reports(out, reports, overwrite=overwrite)
    return [summary for summary, _ in reports.values()]


def check_model(path: str | Path, mesh: Mesh | None) -> Head | None:
    """Return the head of a directory, None for a language model.

    Raises ValueError or FileNotFoundError for a model that does not exist, has no tokenizer or
    cannot be divided over `mesh`.
    """
    head, config = read_head(path), model_config(path)
    if read_tokenizer(path, config) is None:
        raise ValueError(f"{path} has no tokenizer, and questions are text; add its tokenizer.json")
    if mesh is not None:
        rows = meshes.batch_shards(mesh)
        meshes.check_fits(mesh, batch_size=rows, model=abstract_model(config))
    return head


def _modes(
    mode: str, models: Sequence[str | Path], heads: Sequence[Head | None], task: Task
) -> list[str]:
    """Return the modes to score in; raise ValueError if mode, models and task do not fit."""
    for path, head in zip(models, heads, strict=True):
        if head is not None and (head.kind, head.classes) != (task.kind, task.classes):
            raise ValueError(
                f"{path} has a {head.kind} head {list(head.classes) or ''} (fine-tuned on "
                f"{head.task}), and {task.name} is {task.kind} {list(task.classes) or ''}"
            )
    finetuned = [head is not None for head in heads]
    if any(finetuned) and not all(finetuned):
        raise ValueError(
            f"{models[finetuned.index(True)]} is fine-tuned and {models[finetuned.index(False)]} "
            "is not; evaluate them one at a time"
        )
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
    """Return the first labelled questions of the task's first split, none of them scored."""
    if (count and LETTER not in modes) or count < 0:
        raise ValueError(f"got shots={count}; only letter prompts have shots, at least 0 of them")
    if not count:
        return []
    split = task.splits[0]
    shots = read_questions(task, path, split=split, **read)[:count]
    if len(shots) < count or any(shot.label is None for shot in shots):
        raise ValueError(f"got shots={count}; {split} has {len(shots)} with answers")
    if {*shots} & {*questions}:
        raise ValueError(
            f"got shots={count}, and the shots are among the questions to score; give a directory "
            f"with a {split} split, and score another split"
        )
    return shots


def _load(
    path: str | Path, head: Head | None, mesh: Mesh | None, execution: Mapping
) -> Callable[..., dict[str, list[dict]]]:
    """Load a model; return `score` with it, its tokenizer and the row format of its head."""
    if head is None:
        return functools.partial(score, *load(path, mesh=mesh, **execution))
    model, tokenizer, _ = load_finetuned(path, mesh=mesh, **execution)
    rows = {"row_format": head.row_format, "max_length": head.max_length}
    return functools.partial(score, model, tokenizer, **rows)
