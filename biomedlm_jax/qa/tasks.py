"""Tasks are data: each entry of `TASKS` names a task's files, their formats and published scores.

`mmlu` is all subjects, `mmlu:<subject>` any one, and `jsonl:<path>` your own set: a file, or a
directory with some of train.jsonl, dev.jsonl and test.jsonl, by default of the format `questions`.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from biomedlm_jax.errors import InputError
from biomedlm_jax.qa.folds import FOLDS, WHOLE_SETS
from biomedlm_jax.qa.formats import CHOICE, CLASSIFICATION, FORMATS, class_names, formats_that_read
from biomedlm_jax.qa.question_rows import plain_name
from biomedlm_jax.streams import COMPRESSIONS

SPLITS = ("train", "dev", "test")
GIVEN = "given file"  # in place of a split: a file whose name has none
WORDS = {"training": "train", "val": "dev", "valid": "dev", "validation": "dev"}
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
    subjects: int = 0  # of the whole set, for the mean of the subjects
    options: int = 0  # of each question of the official set, if all have as many
    subject: str = ""  # of MMLU: rows of other subjects in the same file are left out
    folds: int = 1  # ways to divide train and dev
    path: Path | None = None  # where the questions are, if the name contains it
    origin: str = ""  # what of it is in the literature by construction

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
    Task("mmlu", CHOICE, _MMLU_ALL, _MMLU_SPLITS, subjects=57),
    Task(
        "medmcqa", CHOICE, {"{split}.jsonl": "questions", "{split}.json": "medmcqa"},
        sizes={"train": 182_822, "dev": 4_183, "test": 6_150},  # the test answers are secret
        published={
            "BioMedLM": 57.3, "GPT-4": 72.4, "Flan-PaLM": 57.6, "Galactica-120B": 52.9,
            "GPT-3.5": 51.0,
        },
        published_split="dev", options=4,
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
        options=4,
    ),
    Task(
        "pubmedqa", CLASSIFICATION,
        {
            "ori_pqal.json": "pubmedqa",  # as published, all splits
            "*ori_pqa[au].json": "pubmedqa",  # the artificial and the unlabelled set
            "pqal_fold{fold}/{split}_set.json": "pubmedqa_set", "{split}_set.json": "pubmedqa_set",
            **_SENTENCES,
        },
        origin="each context is an abstract of PubMed without its conclusion, and the question is "
        "the article's title or made from it, so that both are in a corpus of PubMed by "
        "construction; the answer is the abstract's conclusion in one word",
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
        origin="the contexts are passages of PubMed's abstracts, so that they are in a corpus of "
        "PubMed by construction; experts wrote the questions",
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
        raise InputError(f"expected a format among {', '.join(FORMATS)}, got {format!r}")
    family, _, rest = name.partition(":")
    if family == "jsonl" and rest:
        return _own_task(name, Path(rest), format or "questions")
    if name not in TASKS and not (family == "mmlu" and re.fullmatch(r"[a-z0-9_]+", rest)):
        known = f"{', '.join(TASKS)}, mmlu:<any other subject> and jsonl:<path of your own set>"
        raise InputError(f"expected a task among {known}, got {name!r}")
    task = TASKS.get(name) or _mmlu(rest)
    if not format:
        return task
    if FORMATS[format].kind != task.kind:
        raise InputError(f"format {format} is {FORMATS[format].kind}, and {name} is {task.kind}")
    return replace(task, files=dict.fromkeys([*task.files, *PARQUET, "*"], format))


def default_split(task: Task, path: str | Path | None = None) -> str:
    """Return the one split that the name of a file contains, GIVEN if it contains none.

    Of a directory, and of a file that has all splits, it is the task's last split.
    """
    file = Path(path or task.path or "")
    if not file.is_dir() and _format_by_name(task, file, fold="*") in WHOLE_SETS:
        return task.splits[-1]
    return split_in_name(file, task.splits) or (task.splits[-1] if file.is_dir() else GIVEN)


def without_directory(name: str) -> str:
    """Return the name of a task, of somebody's own set without its place on this machine."""
    family, _, rest = name.partition(":")
    return f"{family}:{Path(rest).resolve().name}" if family == "jsonl" else name


def _format_by_name(task: Task, path: Path, *, fold: int | str) -> str | None:
    plain = plain_name(path).replace(".json-lines", ".jsonl")
    name = PurePath(str(path.parent).lower(), plain)
    patterns = ((one.format(split="*", fold=fold), format) for one, format in task.files.items())
    return next((format for pattern, format in patterns if name.match(pattern)), None)


def split_files(task: Task, path: Path, *, split: str, fold: int) -> tuple[list[Path], str]:
    """Return the files to read, several parts of one set, and their format."""
    if not path.exists():
        raise InputError(f"no such file or directory: {path}")
    if not path.is_dir():
        if by_name := _format_by_name(task, path, fold=fold):
            return [path], by_name
        fix = f"--format={' or '.join(FORMATS)} (config.task.format)"
        raise InputError(f"unknown format of {path}; fix: {fix}")
    names = {name: f for name, f in task.files.items() if "*" not in name or "{split}" in name}
    for name, format in names.items():
        for word in _words(split, task.splits):
            if files := _matching(path, name.format(split=word, fold=fold)):
                return files, format
    there = sorted(entry.name for entry in path.iterdir())[:20]
    plain = [name.format(split=split, fold=fold) for name in names if "*" not in name]
    expected = f"expected {' or '.join(plain)}, got {there}"
    parts = [file for name in PARQUET if (file := _matching(path, name.format(split=split)))]
    with contextlib.suppress(ValueError):  # a damaged file is refused when it is read
        fits = formats_that_read(parts[0][0], task.kind) if parts else []
        if fits:
            expected += f"; fix: --format={' or '.join(fits)}"
    before = task.splits[-2]  # what there is to score where the last split is kept secret
    others = [n.format(split=w, fold=fold) for w in _words(before, task.splits) for n in names]
    if split == task.splits[-1] and any(_matching(path, name) for name in others):
        expected += f"; fix: --split={before} to score the {before} split"
    if "; fix" not in expected:
        expected += "; fix: rename it, or give the file and its --format (config.task.format)"
    raise InputError(f"no {split} file of {task.name} in {path}: {expected}")


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


def split_in_name(file: Path, splits: tuple[str, ...]) -> str | None:
    """Return the one split that a file's name contains; None for none, several or a folder."""
    words = set() if file.is_dir() else {*re.findall(r"[a-z]+", file.name.lower())}
    named = {split for split in splits if words.intersection(_words(split, splits))}
    return named.pop() if len(named) == 1 else None


def _own_task(name: str, path: Path, format: str) -> Task:
    """Make the task of somebody's own set; its classes are those of all its splits."""
    if not path.exists():
        raise InputError(f"no such file or directory: {path}")
    one = FORMATS[format]
    name_of = f"{{split}}{one.suffix}"
    names = dict.fromkeys([name_of, *(PARQUET if one.suffix == ".jsonl" else ()), "*"], format)
    task = Task(name, one.kind, names, path=path)
    files: dict[str, list[Path]] = {split_in_name(path, SPLITS) or GIVEN: [path]}
    if path.is_dir():
        files = {}
        for split in SPLITS:
            with contextlib.suppress(ValueError):  # there is none
                files[split] = split_files(task, path, split=split, fold=0)[0]
    if not files:
        expected = ", ".join(name_of.format(split=split) for split in SPLITS)
        raise InputError(f"no questions in {path}: expected some of {expected}")
    task = replace(task, splits=SPLITS if GIVEN in files else tuple(files))
    if one.kind == CHOICE:
        return task
    problems: list[str] = []
    parts = [file for of_split in files.values() for file in of_split]
    rows = [row for file in parts for row in one.read(file, problems.append)]
    classes = tuple(sorted(class_names(rows, format, problems.append)))
    if len(classes) < 2:
        got = "; ".join([", ".join(classes) or "none", *problems[:1]])
        raise InputError(f"expected at least two classes in {path}, got {got}")
    return replace(task, classes=classes)
