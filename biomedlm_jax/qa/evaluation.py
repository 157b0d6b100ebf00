"""evaluate(): answer a task's questions with a model and write the report."""

import itertools
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
from biomedlm_jax.qa import identity, report, statistics
from biomedlm_jax.qa.formats import CLASSIFICATION
from biomedlm_jax.qa.questions import Question, Skipped, counted
from biomedlm_jax.qa.scoring import BATCH_TOKENS, CLASSIFIER, LETTER, OPTION, WAYS, score
from biomedlm_jax.qa.tasks import Task, default_split, find_task, read_questions
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
      models: a run, fine-tuned or Hugging Face directory; several are seeds of one training, as
        their records must state, and their mean accuracy is reported.
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
    questions = read_questions(chosen, path, split=split, **read)
    labelled = questions[0].label is not None  # the reader refuses a mixture
    if baseline and not labelled:
        got = f"the {counted(len(questions), 'question')} of {name} have no labels"
        raise ValueError(f"{got}; fix: leave out --baseline for predictions, or choose a split")
    complete = chosen.sizes.get(split) == len(questions) + skipped.bad
    heads = [check_model(model, mesh) for model in models]
    modes = _modes(mode, models, heads, chosen)
    examples = _shots(shots, modes, chosen, questions, path, read)
    ways = [way for one in modes for way in WAYS[one]]
    baselines = {way: report.read_seeds(baseline, way=way) for way in ways} if baseline else {}
    for items in itertools.chain(*baselines.values()):
        statistics.same_ids({one.id for one in questions}, {item["id"] for item in items})
    writes = jax.process_index() == 0
    if writes:
        check_output(out, replaceable=report.is_report, overwrite=overwrite)
        unlike = chosen.unlike_official(split, len(questions))
        notify(f"{name}: {counted(len(questions), 'question')}{unlike}; skipped: {skipped}")
    weights = _different_weights(models, heads, mesh)
    results: dict[str, list[list[dict]]] = {}
    options: dict[str, Any] = {"shots": examples, "batch_tokens": batch_tokens}
    described, chose = [], []
    for directory, head, digest in zip(models, heads, weights, strict=True):
        model, tokenizer = load_model(directory, head, mesh, **execution)
        rows = {"row_format": head.row_format, "max_length": head.max_length} if head else {}
        options |= rows
        described.append(identity.describe(directory, model, tokenizer, weights=digest, **rows))
        chose.append(identity.chosen_on(directory, chosen.name, split, questions))
        for one in modes:
            scored = score(model, tokenizer, questions, chosen, mode=one, **options)
            for way, items in scored.items():
                results.setdefault(way, []).append(items)
    provenance = {
        "models": described,
        "questions": {
            "task": chosen.name,
            "split": split,
            "path": str(path or chosen.path),
            "fold": fold,
            "hash": identity.questions_hash(questions),
            "scored": len(questions),
            "skipped": skipped.bad + sum(skipped.left_out.values()),
        },
        "shots": {"count": shots, "hash": identity.questions_hash(examples) if shots else None},
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
        )
        reports[way if len(results) > 1 else ""] = summary, *seeds
        if summary["truncated"] and writes:
            notify(f"{way}: {summary['truncated']:,} of {summary['n']:,} questions were cut to fit")
    if writes:
        report.write_reports(out, reports, overwrite=overwrite)
    return [summary for summary, *_ in reports.values()]


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
    """Return the first questions of the task's first split, none of which is scored."""
    if (count and LETTER not in modes) or count < 0:
        raise ValueError(f"got shots={count}; only letter prompts have shots, at least 0 of them")
    if not count:
        return []
    split = task.splits[0]
    shots = read_questions(task, path, split=split, **read)[:count]
    if len(shots) < count or any(shot.label is None for shot in shots):
        raise ValueError(f"got shots={count}; {split} has {len(shots)} with answers")
    if {*shots} & {*questions}:
        fix = f"give a directory with a {split} split, and score another one"
        raise ValueError(f"got shots={count}, which are among the questions to score; {fix}")
    return shots
