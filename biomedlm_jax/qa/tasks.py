"""Tasks are data: each entry of `TASKS` says what a task is, where its files lie, what is known.

    task = find_task("pubmedqa")
    examples = read_examples(task, "data/pubmedqa", split="test")

`mmlu:<subject>` takes any subject, and `jsonl:<path>` is anybody's own set: a file of JSON lines,
which is a test set, or a directory with some of train.jsonl, dev.jsonl and test.jsonl.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from biomedlm_jax.corpus.documents import ON_ERROR
from biomedlm_jax.qa.examples import Example, Skipped, check_rows, class_name, row_form
from biomedlm_jax.qa.folds import FOLDS, pubmedqa_folds
from biomedlm_jax.qa.readers import read_rows

__all__ = ["TASKS", "Example", "Skipped", "Task", "find_task", "majority", "read_examples"]

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Task:
    """What a set of questions is, apart from the questions."""

    name: str  # as `find_task` knows it
    kind: str  # "choice": every question has its own options; "classification": all have the same
    files: tuple[str, ...]  # names tried in a directory, in this order, with {split} and so on
    splits: tuple[str, ...] = SPLITS  # in the order of their use; the last one is reported
    classes: tuple[str, ...] = ()  # of a classification, sorted; the labels count in this order
    metrics: tuple[str, ...] = ("accuracy",)  # and "macro_f1" where the classes are uneven
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False)  # split -> official rows
    published: Mapping[str, float] = field(default_factory=dict, hash=False)  # system -> percent
    published_split: str = ""  # the split that the published scores are of
    subject: str = ""  # of MMLU: rows of other subjects in the same file are left out
    folds: int = 1  # ways to divide train and dev
    path: Path | None = None  # where the questions lie, if the name says it


UNEVEN = ("accuracy", "macro_f1")
MMLU = Task(
    "mmlu",
    "choice",
    files=("{split}/{subject}_{split}.csv", "{subject}_{split}.csv", "{split}.jsonl"),
    splits=("dev", "val", "test"),  # dev: five questions, for prompts
    published_split="test",
)


def _mmlu(
    subject: str, size: int = 0, *, biomedlm: float = 0, gpt4: float = 0, gpt35: float = 0
) -> Task:
    scores = {"BioMedLM": biomedlm, "GPT-4": gpt4, "GPT-3.5": gpt35} if biomedlm else {}
    sizes = {"dev": 5, "test": size} if size else {}
    return replace(MMLU, name=f"mmlu:{subject}", subject=subject, sizes=sizes, published=scores)


# The published scores are those of the tables in the BioMedLM paper (arXiv 2403.18421).
_TASKS = (
    Task(
        "medmcqa",
        "choice",
        files=("{split}.jsonl", "{split}.json"),
        sizes={"train": 182_822, "dev": 4_183, "test": 6_150},  # the test answers are secret
        published={
            "BioMedLM": 57.3,
            "GPT-4": 72.4,
            "Flan-PaLM": 57.6,
            "Galactica-120B": 52.9,
            "GPT-3.5": 51.0,
        },
        published_split="dev",
    ),
    Task(
        "medqa",
        "choice",
        files=("{split}.jsonl", "phrases_no_exclude_{split}.jsonl", "{split}.json"),
        sizes={"train": 10_178, "dev": 1_272, "test": 1_273},
        published={
            "BioMedLM": 50.3,
            "BioMedLM with MedMCQA data": 54.7,
            "Med-PaLM 2": 85.4,
            "GPT-4": 81.4,
            "Flan-PaLM": 67.2,
            "GPT-3.5": 53.6,
            "DRAGON": 47.5,
            "BioLinkBERT": 45.1,
            "Galactica": 44.4,
            "GPT-Neo 2.7B": 37.7,
        },
        published_split="test",
    ),
    Task(
        "pubmedqa",
        "classification",
        # The labelled set as published, what its own script makes of it, the original's rows.
        files=(
            "ori_pqal.json",
            "pqal_fold{fold}/{split}_set.json",
            "{split}_set.json",
            "{split}.jsonl",
            "{split}.json",
        ),
        classes=("maybe", "no", "yes"),
        metrics=UNEVEN,
        sizes={"train": 450, "dev": 50, "test": 500},
        published={
            "BioMedLM": 74.4,
            "BioGPT with extra data": 81.0,
            "Flan-PaLM": 79.0,
            "Galactica": 77.6,
            "GPT-4": 75.2,
            "DRAGON": 73.4,
            "BioLinkBERT": 72.4,
            "GPT-Neo": 66.1,
        },
        published_split="test",
        folds=FOLDS,
    ),
    Task(
        "bioasq",
        "classification",
        files=("{split}.tsv", "{split}.jsonl", "{split}.json"),
        classes=("no", "yes"),
        metrics=UNEVEN,
        sizes={"train": 670, "dev": 75, "test": 140},
        published={
            "BioMedLM": 95.7,
            "DRAGON": 96.4,
            "BioLinkBERT": 94.9,
            "Galactica": 94.3,
            "GPT-Neo": 67.1,
        },
        published_split="test",
    ),
    _mmlu("anatomy", 135),
    _mmlu("clinical_knowledge", 265, biomedlm=59.6, gpt4=86.4, gpt35=69.8),
    _mmlu("college_biology", 144, biomedlm=60.7, gpt4=93.8, gpt35=72.2),
    _mmlu("college_medicine", 173),
    _mmlu("medical_genetics", 100, biomedlm=69.0, gpt4=92.0, gpt35=70.0),
    _mmlu("professional_medicine", 272, biomedlm=63.1, gpt4=93.8, gpt35=70.2),
)
TASKS = {task.name: task for task in _TASKS}


def find_task(name: str) -> Task:
    """Return the task of this name; that of `jsonl:<path>` is read off its files.

    Raises:
      ValueError: no such task; FileNotFoundError: no such path.
    """
    family, _, rest = name.partition(":")
    if name in TASKS:
        return TASKS[name]
    if family == "mmlu" and re.fullmatch(r"[a-z0-9_]+", rest):
        return _mmlu(rest)
    if family == "jsonl" and rest:
        return _own_task(name, Path(rest))
    raise ValueError(
        f"got the task {name!r}; the tasks are {', '.join(TASKS)}, mmlu:<any other subject> "
        "and jsonl:<path of your own set>"
    )


def read_examples(
    task: Task,
    path: str | Path | None = None,
    *,
    split: str,
    fold: int = 0,
    on_error: str = "raise",
    skipped: Skipped | None = None,
) -> list[Example]:
    """Return the examples of one split, in the order of the file.

    Args:
      path: a file, which is taken for the split that is asked for, or a directory with the first
        of `task.files`; None for `jsonl:<path>`. Only the labelled set of PubMedQA is one file
        with all splits (see `pubmedqa_folds`), unless it is named `*_set.json`.
      fold: which tenth of PubMedQA's training questions is dev; the original took 0.
      on_error: "raise" stops at the first bad row; "skip" counts it in `skipped` and goes on.
      skipped: is told what was left out.

    Raises:
      ValueError: a bad argument; a bad row, naming file and line; no example at all.
      FileNotFoundError: no such path.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"got on_error={on_error!r}; it is one of {', '.join(ON_ERROR)}")
    if split not in task.splits:
        raise ValueError(f"{task.name} has no split {split!r}; it has {', '.join(task.splits)}")
    if fold not in range(task.folds):
        raise ValueError(f"got fold {fold}; {task.name} has the folds 0 to {task.folds - 1}")
    if (path is None) == (task.path is None):
        if task.path:
            raise ValueError(f"got the path {str(path)!r}; that of {task.name} is {task.path}")
        raise ValueError(f"{task.name} needs the path of its data (--path, or config.task.path)")
    skipped = Skipped() if skipped is None else skipped
    refuse = _refuse(on_error, skipped)
    file = _file(task, Path(path or task.path), split=split, fold=fold)
    rows = read_rows(file, refuse)
    if any("QUESTION" in row.fields for row in rows) and not file.name.endswith("_set.json"):
        rows = pubmedqa_folds(rows, file, fold)[split]
    elif fold and split != "test" and f"fold{fold}" not in str(file):
        raise ValueError(f"{file} is of fold 0 only; fold {fold} needs ori_pqal.json")
    if task.subject:
        others = [row for row in rows if row.fields.get("subject", task.subject) != task.subject]
        skipped.left_out.update(f"of the subject {row.fields['subject']}" for row in others)
        rows = [row for row in rows if row.fields.get("subject", task.subject) == task.subject]
    examples = check_rows(rows, task.kind, task.classes, refuse, skipped)
    if not examples:
        raise ValueError(f"no examples of {task.name} in {file}; skipped: {skipped}")
    return examples


def majority(examples: list[Example]) -> float:
    """Return what always giving the commonest answer would score, in percent.

    Raises:
      ValueError: no examples, or examples without answers.
    """
    counts = Counter(example.label for example in examples)
    if not examples or None in counts:
        raise ValueError(f"got {counts[None]} of {len(examples)} examples without an answer")
    return 100 * max(counts.values()) / len(examples)


def _refuse(on_error: str, skipped: Skipped) -> Callable[[str], None]:
    def refuse(what: str) -> None:
        message = f"{what}; mend it, or leave such input out with --on_error=skip"
        if on_error == "raise":
            raise ValueError(message)
        skipped.bad += 1
        skipped.examples = [*skipped.examples, message][:5]

    return refuse


def _file(task: Task, path: Path, *, split: str, fold: int) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"no such file or directory: {path}")
    if not path.is_dir():
        return path
    names = [name.format(split=split, subject=task.subject, fold=fold) for name in task.files]
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        there = sorted(entry.name for entry in path.iterdir())[:20]
        raise ValueError(
            f"no {split} file of {task.name} in {path}, which has {there}; it is called "
            f"{' or '.join(names)}, or give the file itself"
        )
    return found


def _own_task(name: str, path: Path) -> Task:
    """Read off its rows what somebody's own set is; the classes are those of all its splits."""
    if not path.exists():
        raise FileNotFoundError(f"no such file or directory: {path}")
    files = [path / f"{split}.jsonl" for split in SPLITS] if path.is_dir() else [path]
    files = [file for file in files if file.is_file()]
    splits = tuple(file.stem for file in files) if path.is_dir() else ("test",)
    rows = [row for file in files for row in read_rows(file, refuse=lambda what: None)]
    kind, classes, problem = None, set(), f"a set has {', '.join(f'{s}.jsonl' for s in SPLITS)}"
    for row in rows:
        try:
            kind = kind or row_form(row.fields).kind
            classes.add(class_name(row.fields.get("label")) if kind == "classification" else None)
        except ValueError as error:  # the reading itself will say so, or count it
            problem = f"{row.where}: {error}"
    if kind is None:
        raise ValueError(f"no questions in {path}; {problem}")
    task = Task(name, kind, ("{split}.jsonl",), splits=splits, path=path)
    if kind == "choice":
        return task
    classes -= {None}
    if len(classes) < 2:
        raise ValueError(f"got the classes {sorted(classes)} in {path}; there are at least two")
    return replace(task, classes=tuple(sorted(classes)), metrics=UNEVEN)
