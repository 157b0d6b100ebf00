"""Tasks are data: each entry of `TASKS` names a task's files, their formats and published scores.

`mmlu` is all subjects, `mmlu:<subject>` any one, and `jsonl:<path>` your own set: a file, or a
directory with some of train.jsonl, dev.jsonl and test.jsonl, by default of the format `questions`.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from biomedlm_jax.files import COMPRESSIONS
from biomedlm_jax.qa.folds import FOLDS, pubmedqa_split
from biomedlm_jax.qa.formats import (
    CHOICE,
    CLASSIFICATION,
    FORMATS,
    Row,
    answer_number,
    class_names,
    first_numbers,
    plain_name,
    to_questions,
)
from biomedlm_jax.qa.questions import Question, Skipped, counted, overlap

SPLITS = ("train", "dev", "test")
WORDS = {"training": "train", "val": "dev", "valid": "dev", "validation": "dev"}
ON_ERROR = ("raise", "skip")
TWINS = ("keep", "skip")  # questions with two equal options
LABEL_BASES = ("auto", "0", "1")  # the number of the first option in the file's answers
WHOLE_SETS = ("pubmedqa", "pubmedqa_rows")  # formats of files that have all splits
# Names of parquet files in a directory, tried after those of a format that is given.
PARQUET = ("{split}.parquet", "{split}-*.parquet", "data/{split}-*.parquet")


@dataclass(frozen=True)
class Task:
    """What a set of questions is, apart from the questions."""

    name: str  # as `find_task` knows it
    kind: str  # CHOICE: every question has its own options; CLASSIFICATION: all have the same
    # Name of a file -> its format, in the order of trial; one with * but no {split} is not looked
    # for in a directory, and for a file given by path {split} is any text.
    files: Mapping[str, str] = field(hash=False)
    splits: tuple[str, ...] = SPLITS  # in the order of their use; the last one is reported
    classes: tuple[str, ...] = ()  # sorted class names; the labels of a classification index them
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False)  # split -> official count
    published: Mapping[str, float] = field(default_factory=dict, hash=False)  # system -> percent
    published_split: str = "test"  # the split of the published scores
    subject: str = ""  # of MMLU: rows of other subjects in the same file are left out
    folds: int = 1  # ways to divide train and dev
    path: Path | None = None  # where the questions are, if the name contains it

    def unlike_official(self, split: str, n: int) -> str:
        """Return a note for `n` questions if the official split has another number, else ""."""
        official = self.sizes.get(split, n)
        return "" if n == official else f" (the official {split} split has {official:,})"


_MMLU_FILES = {"{split}.jsonl": "questions", "*.csv": "mmlu"}
_MMLU_ALL = {"{split}.jsonl": "questions", "{split}/*_{split}.csv": "mmlu", "*.csv": "mmlu"}
_MMLU_SPLITS = ("dev", "val", "test")  # dev: five questions a subject, for prompts
_SENTENCES = {"{split}.jsonl": "sentences", "{split}.json": "sentences"}


def _mmlu(subject: str, size: int = 0, **scores: float) -> Task:
    names = (f"{{split}}/{subject}_{{split}}.csv", f"{subject}_{{split}}.csv")
    files = dict.fromkeys(names, "mmlu") | _MMLU_FILES
    task = Task(f"mmlu:{subject}", CHOICE, files, _MMLU_SPLITS, subject=subject, published=scores)
    return replace(task, sizes={"dev": 5, "test": size}) if size else task


# The published scores are those of the tables in the BioMedLM paper (arXiv 2403.18421).
# fmt: off
_TASKS = (
    Task("mmlu", CHOICE, _MMLU_ALL, _MMLU_SPLITS),
    Task(
        "medmcqa", CHOICE, {"{split}.jsonl": "questions", "{split}.json": "medmcqa"},
        sizes={"train": 182_822, "dev": 4_183, "test": 6_150},  # the test answers are secret
        published={
            "BioMedLM": 57.3, "GPT-4": 72.4, "Flan-PaLM": 57.6, "Galactica-120B": 52.9,
            "GPT-3.5": 51.0,
        },
        published_split="dev",
    ),
    Task(
        "medqa", CHOICE,
        {
            "{split}.jsonl": "questions", "phrases_no_exclude_{split}.jsonl": "questions",
            "{split}.json": "endings",
        },
        sizes={"train": 10_178, "dev": 1_272, "test": 1_273},
        published={
            "BioMedLM": 50.3, "BioMedLM with MedMCQA data": 54.7, "Med-PaLM 2": 85.4, "GPT-4": 81.4,
            "Flan-PaLM": 67.2, "GPT-3.5": 53.6, "DRAGON": 47.5, "BioLinkBERT": 45.1,
            "Galactica": 44.4, "GPT-Neo 2.7B": 37.7,
        },
    ),
    Task(
        "pubmedqa", CLASSIFICATION,
        {
            "ori_pqal.json": "pubmedqa",  # as published, all splits
            "*ori_pqa[au].json": "pubmedqa",  # the artificial and the unlabelled set
            "pqal_fold{fold}/{split}_set.json": "pubmedqa_set", "{split}_set.json": "pubmedqa_set",
            **_SENTENCES,
        },
        classes=("maybe", "no", "yes"), folds=FOLDS, sizes={"train": 450, "dev": 50, "test": 500},
        published={
            "BioMedLM": 74.4, "BioGPT with extra data": 81.0, "Flan-PaLM": 79.0, "Galactica": 77.6,
            "GPT-4": 75.2, "DRAGON": 73.4, "BioLinkBERT": 72.4, "GPT-Neo": 66.1,
        },
    ),
    Task(
        "bioasq", CLASSIFICATION,
        # BioASQ-training7b.json, 7B1_golden.json
        {"*[0-9]b*.json": "bioasq", "{split}.tsv": "blurb", **_SENTENCES},
        classes=("no", "yes"), sizes={"train": 670, "dev": 75, "test": 140},
        published={
            "BioMedLM": 95.7, "DRAGON": 96.4, "BioLinkBERT": 94.9, "Galactica": 94.3,
            "GPT-Neo": 67.1,
        },
    ),
    _mmlu("anatomy", 135),
    _mmlu("clinical_knowledge", 265, **{"BioMedLM": 59.6, "GPT-4": 86.4, "GPT-3.5": 69.8}),
    _mmlu("college_biology", 144, **{"BioMedLM": 60.7, "GPT-4": 93.8, "GPT-3.5": 72.2}),
    _mmlu("college_medicine", 173),
    _mmlu("medical_genetics", 100, **{"BioMedLM": 69.0, "GPT-4": 92.0, "GPT-3.5": 70.0}),
    _mmlu("professional_medicine", 272, **{"BioMedLM": 63.1, "GPT-4": 93.8, "GPT-3.5": 70.2}),
)
# fmt: on
TASKS = {task.name: task for task in _TASKS}


def find_task(name: str, *, format: str = "") -> Task:
    """Return the task of this name, whose files are all of `format` if that is given."""
    if format and format not in FORMATS:
        raise ValueError(f"expected a format among {', '.join(FORMATS)}, got {format!r}")
    family, _, rest = name.partition(":")
    if family == "jsonl" and rest:
        return _own_task(name, Path(rest), format or "questions")
    if name not in TASKS and not (family == "mmlu" and re.fullmatch(r"[a-z0-9_]+", rest)):
        known = f"{', '.join(TASKS)}, mmlu:<any other subject> and jsonl:<path of your own set>"
        raise ValueError(f"expected a task among {known}, got {name!r}")
    task = TASKS.get(name) or _mmlu(rest)
    if not format:
        return task
    if FORMATS[format].kind != task.kind:
        raise ValueError(f"format {format} is {FORMATS[format].kind}, and {name} is {task.kind}")
    return replace(task, files=dict.fromkeys([*task.files, *PARQUET, "*"], format))


def default_split(task: Task, path: str | Path | None = None) -> str:
    """Return the one split that the name of a file contains, else the task's last split."""
    return _split_in_name(Path(path or task.path or ""), task.splits) or task.splits[-1]


def read_questions(
    task: Task,
    path: str | Path | None = None,
    *,
    split: str,
    fold: int = 0,
    on_error: str = "raise",
    label_base: str = "auto",
    twins: str = "keep",
    skipped: Skipped | None = None,
    labelled: bool = False,
) -> list[Question]:
    """Return the questions of one split, in the order of the file.

    `path` is a directory with one of `task.files`, or a file; None for `jsonl:<path>`. `fold` is
    the tenth of PubMedQA's training questions that is dev; the original took 0. on_error="skip"
    counts bad rows in `skipped`. `label_base` is the number of the first option; "auto" is 0, and
    for MedMCQA what the file and those of its other splits show. `twins`: whether questions with
    two equal options are kept, as lm-evaluation-harness does. `labelled`: every question must have
    a label. Raises ValueError (for a bad row with its file and line) or FileNotFoundError.
    """
    for name, value, allowed in (("label_base", label_base, LABEL_BASES), ("twins", twins, TWINS)):
        if value not in allowed:
            raise ValueError(f"expected {name} among {', '.join(allowed)}, got {value!r}")
    if on_error not in ON_ERROR:
        raise ValueError(f"expected on_error among {', '.join(ON_ERROR)}, got {on_error!r}")
    if split not in task.splits:
        raise ValueError(f"{task.name} has the splits {', '.join(task.splits)}, got {split!r}")
    if fold not in range(task.folds):
        raise ValueError(f"{task.name} has the folds 0 to {task.folds - 1}, got {fold}")
    if path and task.path:
        raise ValueError(f"{task.name} has the path {task.path}, got another one: {path}")
    path = path or task.path
    if not path:
        raise ValueError(f"{task.name} needs the path of its data; fix: --path (config.task.path)")
    skipped = Skipped() if skipped is None else skipped

    def refuse(problem: str) -> None:
        message = f"{problem}; fix the row, or skip bad rows with --on_error=skip"
        if on_error == "raise":
            raise ValueError(message)
        skipped.add(problem, message)

    files, format = _files(task, Path(path), split=split, fold=fold)
    file = files[0]
    rows = [row for one in files for row in FORMATS[format].read(one, refuse)]
    if format in WHOLE_SETS:
        rows = pubmedqa_split(rows, file, split, fold)
    elif fold and split != "test" and f"fold{fold}" not in str(file):
        raise ValueError(f"{file} is of fold 0; fix: fold {fold} needs ori_pqal.json")
    if task.kind == CHOICE:
        rows = _numbered(rows, task, format, Path(path), split, label_base)
    if format == "mmlu":
        rows = [_with_subject(row) for row in rows]
    if task.subject:
        kept = []
        for row in rows:
            subject = row.fields.get("subject", task.subject)
            if subject == task.subject:
                kept.append(row)
            else:
                skipped.leave_out(f"of the subject {subject}", str(row.id))
        rows = kept
    questions = to_questions(rows, format, task.classes, refuse, skipped, twins=twins)
    if not questions:
        raise ValueError(f"no questions of {task.name} in {file}; skipped: {skipped}")
    if labelled and (missing := sum(question.label is None for question in questions)):
        got = f"{missing} of {counted(len(questions), 'question')} of {task.name}, {split}, have"
        raise ValueError(f"{got} no label, so nothing can be reported; fix: choose another split")
    return questions


def check_splits(
    task: Task, paths: Sequence[str | Path | None], splits: Sequence[str], *, fold: int = 0
) -> None:
    """Raise ValueError if two splits, each read from its path, are the questions of one file."""
    read = [
        _files(task, Path(path or task.path or ""), split=split, fold=fold)
        for path, split in zip(paths, splits, strict=True)
    ]
    (first, format), (second, _) = read
    one, other = ({file.resolve() for file in files} for files in (first, second))
    if one & other and (format not in WHOLE_SETS or splits[0] == splits[1]):
        got = f"{first[0]} has the questions of both {splits[0]} and {splits[1]}"
        fix = "fix: give a directory with a file for each, or task.train_path"
        raise ValueError(f"{got}; expected different files; {fix}")


def read_shots(
    task: Task, path: str | Path | None, count: int, questions: Sequence[Question], **read
) -> list[Question]:
    """Return the first `count` questions of the task's first split, of MMLU those of each subject.

    `read` are arguments of `read_questions`. A shot with the content of one of `questions` under
    another id is noted: `letter_prompts` leaves it out of that question's prompt. Raises ValueError
    for fewer than `count` answered shots, or shots that are among the `questions`.
    """
    split, skipped = task.splits[0], read.pop("skipped", None)
    by_subject: dict[str, list[Question]] = {}
    for one in read_questions(task, path, split=split, **read):
        by_subject.setdefault(_shot_subject(task, one), []).append(one)
    by_subject = {subject: ones[:count] for subject, ones in by_subject.items()}
    for subject in {_shot_subject(task, one) for one in questions}:
        here = by_subject.get(subject, [])
        if len(here) < count or any(shot.label is None for shot in here):
            of = f" of {subject}" if subject else ""
            raise ValueError(f"got shots={count}; {split} has {len(here)}{of} with answers")
    shots = [shot for ones in by_subject.values() for shot in ones]
    if {*shots} & {*questions}:
        fix = f"give a directory with a {split} split, and score another one"
        raise ValueError(f"got shots={count}, which are among the questions to score; {fix}")
    if skipped is not None:
        skipped.note("equal to a shot, which their prompts leave out", overlap(questions, shots))
    return shots


def _shot_subject(task: Task, question: Question) -> str:
    return (question.subject or task.subject) if task.name.startswith("mmlu") else ""


def _numbered(
    rows: list[Row], task: Task, format: str, path: Path, split: str, label_base: str
) -> list[Row]:
    """Return the rows with the number of their first option; raise ValueError if none is sure."""
    shown, base = first_numbers(rows), 0 if label_base == "auto" else int(label_base)
    fix = "set --label_base (config.task.label_base) to"
    published = format == "medmcqa"  # the official files count from 1, mirrors from 0
    if published and label_base == "auto":
        for other in _sibling_rows(task, format, path, split):
            shown = first_numbers(other) | shown
        if len(shown) == 2:
            got = f"{shown[1]}: got cop 4, but cop 0 at {shown[0]}"
            raise ValueError(f"{got}; expected options counted from 1 to 4, or all from 0 to 3")
        if not shown and any(answer_number(row) is not None for row in rows):
            got = f"{rows[0].path}: no cop is 0 and none is 4, here and in the other splits"
            raise ValueError(f"{got}; {fix} 0 for a mirror, 1 for the official files")
        base = min(shown, default=1)
    other = shown.get(1 - base)
    if other is not None and (published or base not in shown):
        got = f"{other}: got the answer {answer_number(other)} where options count from {base}"
        raise ValueError(f"{got}; correct the row, or {fix} {1 - base}")
    return [row._replace(first=base) for row in rows]


def _sibling_rows(task: Task, format: str, path: Path, split: str) -> Iterator[list[Row]]:
    """Yield the rows of the task's other splits in the same directory and format."""
    folder = path if path.is_dir() else path.parent
    for other in task.splits:
        with contextlib.suppress(ValueError):  # there is none
            files, kind = _files(task, folder, split=other, fold=0)
            if other != split and kind == format:
                read = FORMATS[format].read
                yield [row for file in files for row in read(file, lambda problem: None)]


def _with_subject(row: Row) -> Row:
    """Add the subject that the name of MMLU's file states."""
    named = re.fullmatch(r"(.+)_(dev|val|test)\.csv", plain_name(row.path))
    return row._replace(fields={**row.fields, "subject": named[1]}) if named else row


def _files(task: Task, path: Path, *, split: str, fold: int) -> tuple[list[Path], str]:
    """Return the files to read, several parts of one set, and their format."""
    if not path.exists():
        raise FileNotFoundError(f"no such file or directory: {path}")
    if not path.is_dir():
        plain = plain_name(path).replace(".json-lines", ".jsonl")
        name = PurePath(str(path.parent).lower(), plain)
        for pattern, format in task.files.items():
            if name.match(pattern.format(split="*", fold=fold)):
                return [path], format
        raise ValueError(f"unknown format of {path}; fix: --format={' or '.join(FORMATS)}")
    names = {name: f for name, f in task.files.items() if "*" not in name or "{split}" in name}
    for name, format in names.items():
        for word in _words(split, task.splits):
            if files := _matching(path, name.format(split=word, fold=fold)):
                return files, format
    there = sorted(entry.name for entry in path.iterdir())[:20]
    plain = [name.format(split=split, fold=fold) for name in names if "*" not in name]
    expected = f"expected {' or '.join(plain)}, got {there}; fix: rename it, or give the file"
    raise ValueError(f"no {split} file of {task.name} in {path}: {expected}")


def _matching(folder: Path, name: str) -> list[Path]:
    """Return the files of this name or pattern in a folder, all of one compression."""
    for suffix in ("", *COMPRESSIONS):
        if files := sorted(file for file in folder.glob(name + suffix) if file.is_file()):
            return files
    return []


def _words(split: str, splits: Sequence[str]) -> list[str]:
    """Return the words that name a split, itself first; MMLU has a val beside its dev."""
    validation = "val" if "val" in splits else "dev"
    meant = {word: validation if one == "dev" else one for word, one in WORDS.items()}
    return [split, *(word for word, one in meant.items() if one == split != word)]


def _split_in_name(file: Path, splits: tuple[str, ...]) -> str | None:
    words = set() if file.is_dir() else {*re.findall(r"[a-z]+", file.name.lower())}
    named = {split for split in splits if words.intersection(_words(split, splits))}
    return named.pop() if len(named) == 1 else None


def _own_task(name: str, path: Path, format: str) -> Task:
    """Make the task of somebody's own set; its classes are those of all its splits."""
    if not path.exists():
        raise FileNotFoundError(f"no such file or directory: {path}")
    one = FORMATS[format]
    name_of = f"{{split}}{one.suffix}"
    names = dict.fromkeys([name_of, *(PARQUET if one.suffix == ".jsonl" else ()), "*"], format)
    task = Task(name, one.kind, names, path=path)
    files: dict[str, list[Path]] = {_split_in_name(path, SPLITS) or "test": [path]}
    if path.is_dir():
        files = {}
        for split in SPLITS:
            with contextlib.suppress(ValueError):  # there is none
                files[split] = _files(task, path, split=split, fold=0)[0]
    if not files:
        expected = ", ".join(name_of.format(split=split) for split in SPLITS)
        raise ValueError(f"no questions in {path}: expected some of {expected}")
    task = replace(task, splits=tuple(files))
    if one.kind == CHOICE:
        return task
    parts = [file for of_split in files.values() for file in of_split]
    rows = [row for file in parts for row in one.read(file, lambda problem: None)]
    classes = tuple(sorted(class_names(rows, format)))
    if len(classes) < 2:
        got = ", ".join(classes) or "none"
        raise ValueError(f"expected at least two classes in {path}, got {got}")
    return replace(task, classes=classes)
