"""evaluate(): answer a task's questions in one or several ways and write the report."""

from collections.abc import Callable, Sequence
from pathlib import Path

from jax.sharding import Mesh

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.interop.directories import kind_of
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.qa import report, statistics
from biomedlm_jax.qa.scoring import BATCH_TOKENS, CLASSIFIER, LETTER, OPTION, score
from biomedlm_jax.qa.setup import Head, read_head
from biomedlm_jax.qa.tasks import Example, Skipped, Task, find_task, read_examples
from biomedlm_jax.qa.tuned import best_of, load_tuned

AUTO = "auto"


def evaluate(
    models: Sequence[str | Path],
    out: str | Path,
    *,
    task: str,
    path: str | Path | None = None,
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

    Args:
      models: one run, fine-tuned or Hugging Face directory; several are the same one fine-tuned
        with other seeds, of which the mean is reported beside the first.
      split: the task's last split by default.
      mode: "letter", "option" or "classifier"; "auto" is classifier for a fine-tuned model, and
        letter and option for a language model. Each way of scoring gets a folder of its own where
        there are several.
      shots: answered questions before the question (letter), the first ones of the train split.
      baseline: a report directory (or items.jsonl) of another model on the same questions.

    Raises:
      ValueError, FileNotFoundError, FileExistsError: in one line, before anything is computed.
    """
    keep_freed_memory()
    if not models:
        raise ValueError("give at least one model")
    found = find_task(task)
    split = split or found.splits[-1]
    skipped = Skipped()
    read = {"fold": fold, "on_error": on_error, "skipped": skipped}
    examples = read_examples(found, path, split=split, **read)
    secret = sum(example.label is None for example in examples)
    if secret:
        raise ValueError(
            f"{secret} of {len(examples)} questions of {found.name}, {split}, have no label, so "
            "nothing can be reported; choose another split"
        )
    models = [models] if isinstance(models, str | Path) else list(models)
    heads = [_head(model, found) for model in models]
    modes = _modes(mode, models, heads)
    told = _shots(shots, modes, found, examples, path, read)
    before = report.read_items(baseline) if baseline else None
    if before:
        statistics.same_ids({example.id for example in examples}, {item["id"] for item in before})
    report.check_directory(out, overwrite=overwrite)
    notify(f"{found.name}, {split}: {len(examples):,} questions; skipped: {skipped}")
    results: dict[str, list[list[dict]]] = {}
    for model in models:
        for way, items in _answers(
            model, modes, examples, found, told, batch_tokens, mesh, execution
        ).items():
            results.setdefault(way, []).append(items)
    reports = {}
    for way, seeds in results.items():
        summary = report.summarise(
            seeds[0],
            name=f"{found.name}, {split}",
            what=f"{models[0]}, {way}" + (f", {shots} shots" if shots and way == LETTER else ""),
            published=found.published,
            published_split=found.published_split,
            with_macro_f1="macro_f1" in found.metrics,
            baseline=before,
            baseline_name=str(baseline),
            seeds=seeds if len(seeds) > 1 else None,
        )
        reports[way if len(results) > 1 else ""] = summary, seeds[0]
        if summary["truncated"]:
            notify(f"{way}: {summary['truncated']:,} of {summary['n']:,} questions were cut to fit")
    report.write_reports(out, reports, overwrite=overwrite)
    return [summary for summary, _ in reports.values()]


def _head(model: str | Path, task: Task) -> Head | None:
    """The head of a directory, checked against the task; None for a language model."""
    head = read_head(best_of(model))
    if head is None:
        kind_of(model)  # raises if there is no model
    elif head.kind != task.kind or head.classes not in ((), task.classes):
        raise ValueError(
            f"{model} has a {head.kind} head {list(head.classes) or ''} (tuned on {head.task}), "
            f"and {task.name} is {task.kind} {list(task.classes) or ''}"
        )
    return head


def _shots(count: int, modes, task: Task, examples, path, read: dict) -> list[Example]:
    """The first answered questions of the task's first split; never one that is asked."""
    if (count and LETTER not in modes) or count < 0:
        raise ValueError(f"got shots={count}; only letter prompts have shots, at least 0 of them")
    if not count:
        return []
    split = task.splits[0]
    told = read_examples(task, path, split=split, **read)[:count]
    if len(told) < count or any(shot.label is None for shot in told):
        raise ValueError(f"got shots={count}; {split} has {len(told)} with answers")
    if set(told) & set(examples):
        raise ValueError(
            f"got shots={count}, and the shots are among the questions that are asked; give a "
            f"directory with a {split} split of its own, and ask another split"
        )
    return told


def _modes(mode: str, models, heads) -> list[str]:
    tuned = [head is not None for head in heads]
    if any(tuned) and not all(tuned):
        raise ValueError(
            f"{models[tuned.index(True)]} is fine-tuned and {models[tuned.index(False)]} is not; "
            "evaluate them one at a time"
        )
    if mode == AUTO:
        return [CLASSIFIER] if tuned[0] else [LETTER, OPTION]
    if tuned[0] != (mode == CLASSIFIER):
        have = "a fine-tuned head" if tuned[0] else "a language model"
        raise ValueError(f"mode={mode} does not fit {models[0]}, which is {have}; leave it at auto")
    return [mode]


def _answers(model, modes, examples, task, shots, batch_tokens, mesh, execution) -> dict:
    if modes == [CLASSIFIER]:
        tuned, tokenizer, head = load_tuned(model, mesh=mesh, **execution)
        options = {"row_format": head.row_format, "max_length": head.max_length}
        return score(
            tuned,
            tokenizer,
            examples,
            task,
            mode=CLASSIFIER,
            batch_tokens=batch_tokens,
            **options,
        )
    gpt, tokenizer = load(model, mesh=mesh, **execution)
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer, and questions are text")
    answers = {}
    for mode in modes:
        told = shots if mode == LETTER else ()
        answers |= score(
            gpt, tokenizer, examples, task, mode=mode, shots=told, batch_tokens=batch_tokens
        )
    return answers
