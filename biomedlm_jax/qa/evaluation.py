"""evaluate(): answer a task's questions with a model and write the report."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
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
from biomedlm_jax.qa import report, statistics
from biomedlm_jax.qa.formats import CLASSIFICATION
from biomedlm_jax.qa.questions import Question, Skipped, counted
from biomedlm_jax.qa.scoring import BATCH_TOKENS, CLASSIFIER, LETTER, OPTION, WAYS, score
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
    batch_tokens: int = BATCH_TOKENS,
    overwrite: bool = False,
    mesh: Mesh | None = None,
    notify: Callable[[str], None] = print,
    **execution,
) -> list[dict]:
    """Score a model on a split of a task, write a report into `out`, and return its summaries.

    Call it in every process; process 0 writes and notifies. For the questions' arguments see
    `find_task`, `read_questions` and `default_split`; `execution` are fields of the model's config.

    Args:
      models: a run, fine-tuned or Hugging Face directory; several are seeds of one fine-tuning,
        whose mean accuracy is reported beside the first one's results.
      mode: one of WAYS; "auto" is "classifier" for a fine-tuned model, else "letter" and "option".
        Of several ways of scoring each gets a folder in `out`.
      shots: answered questions before each question (letter), the first of the first split.
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
    questions = read_questions(chosen, path, split=split, labelled=True, **read)
    complete = chosen.sizes.get(split) == len(questions) + skipped.bad
    heads = [check_model(model, mesh) for model in models]
    modes = _modes(mode, models, heads, chosen)
    examples = _shots(shots, modes, chosen, questions, path, read)
    ways = [way for one in modes for way in WAYS[one]]
    baselines = {way: report.read_items(baseline, way=way) for way in ways} if baseline else {}
    for items in baselines.values():
        statistics.same_ids({one.id for one in questions}, {item["id"] for item in items})
    writes = jax.process_index() == 0
    if writes:
        check_output(out, replaceable=report.is_report, overwrite=overwrite)
        unlike = chosen.unlike_official(split, len(questions))
        notify(f"{name}: {counted(len(questions), 'question')}{unlike}; skipped: {skipped}")
    seen: dict[str, str | Path] = {}
    for directory, head in zip(models, heads, strict=True) if len(models) > 1 else ():
        digest = weights_hash(load_model(directory, head, mesh)[0])
        if digest in seen:
            got = f"{directory} has the same weights as {seen[digest]}"
            raise ValueError(f"{got}; fix: name each seed once")
        seen[digest] = directory
    results: dict[str, list[list[dict]]] = {}
    options: dict[str, Any] = {"shots": examples, "batch_tokens": batch_tokens}
    for directory, head in zip(models, heads, strict=True):
        model, tokenizer = load_model(directory, head, mesh, **execution)
        if head is not None:
            options |= {"row_format": head.row_format, "max_length": head.max_length}
        for one in modes:
            scored = score(model, tokenizer, questions, chosen, mode=one, **options)
            for way, items in scored.items():
                results.setdefault(way, []).append(items)
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
