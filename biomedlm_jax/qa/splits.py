"""The questions of one split of a task, read and checked against those of other splits."""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.qa.folds import WHOLE_SETS, pubmedqa_split
from biomedlm_jax.qa.formats import CHOICE, FORMATS, answer_number, first_numbers, to_questions
from biomedlm_jax.qa.journal import print_progress
from biomedlm_jax.qa.question_rows import Row, plain_name
from biomedlm_jax.qa.questions import Question, Skipped, overlap
from biomedlm_jax.qa.tasks import Task, default_split, find_task, split_files, split_in_name

ON_ERROR = ("raise", "skip")
TWINS = ("keep", "skip")  # questions with two equal options
LABEL_BASES = ("auto", "0", "1")  # the number of the first option in the file's answers
NO_NUMBERS = ("bigbio", "mmlu")  # formats whose answers are texts or letters
SLOW_SECONDS = 2.0  # to read the train split, before a line about it


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
    a label. Raises InputError, for a bad row with its file and line.
    """
    choices = {"on_error": ON_ERROR, "label_base": LABEL_BASES, "twins": TWINS}
    for value, (name, allowed) in zip((on_error, label_base, twins), choices.items(), strict=True):
        if value not in allowed:
            raise InputError(f"expected {name} among {', '.join(allowed)}, got {value!r}")
    if split not in (*task.splits, default_split(task, path)):
        raise InputError(f"{task.name} has the splits {', '.join(task.splits)}, got {split!r}")
    if fold not in range(task.folds):
        raise InputError(f"{task.name} has the folds 0 to {task.folds - 1}, got {fold}")
    if path and task.path:
        raise InputError(f"{task.name} has the path {task.path}, got another one: {path}")
    path = path or task.path
    if not path:
        raise InputError(f"{task.name} needs the path of its data; fix: --path (config.task.path)")
    skipped = Skipped() if skipped is None else skipped

    def refuse(problem: str) -> None:
        fix = "fix the row, or skip bad rows with --on_error=skip (config.task.on_error)"
        message = f"{problem}; {fix}"
        if on_error == "raise":
            raise InputError(message)
        skipped.add(problem, message)

    files, format = split_files(task, Path(path), split=split, fold=fold)
    file = files[0]
    uses_numbers = task.kind == CHOICE and format not in NO_NUMBERS
    for name, value, default, used, user in (
        ("label_base", label_base, "auto", uses_numbers, "a format with numbered answers"),
        ("twins", twins, "keep", task.kind == CHOICE, "a task whose questions have own options"),
    ):
        if value != default and not used:
            got = f"got {name}={value} for {task.name}, format {format}, where it has no effect"
            raise InputError(f"{got}: only {user} uses it; fix: leave it out")
    named = split_in_name(Path(path), task.splits) or split
    if named != split and format not in WHOLE_SETS:
        skipped.note(f"file of the {named} split by its name (fix: --split={named})", [file.name])
    rows = [row for one in files for row in FORMATS[format].read(one, refuse)]
    if format in WHOLE_SETS:
        rows = pubmedqa_split(rows, file, split, fold)
    elif fold and split != "test" and f"fold{fold}" not in str(file):
        raise InputError(f"{file} is of fold 0; fix: fold {fold} needs ori_pqal.json")
    if task.kind == CHOICE:
        rows = _numbered(rows, task, format, Path(path), split, label_base)
        if label_base == "auto" and format not in NO_NUMBERS and (unsure := _unsure(rows)):
            remark = "numbers of options that fit a count from 0, as taken, and from 1"
            skipped.note(f"{remark} (fix: --label_base)", unsure)
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
        raise InputError(f"no questions of {task.name} in {file}; skipped: {skipped}")
    if labelled and (missing := sum(question.label is None for question in questions)):
        got = f"{missing} of {counted(len(questions), 'question')} of {task.name}, {split}, have"
        raise InputError(f"{got} no label, so nothing can be reported; fix: choose another split")
    return questions


def note_shared_questions(
    task: Task,
    path: str | Path | None,
    questions: Sequence[Question],
    *,
    split: str,
    skipped: Skipped,
    progress: Callable[[str], None] = print_progress,
    **read,
) -> None:
    """Note in `skipped` which questions are also in the train or dev split of the same directory.

    `read` are arguments of `read_questions`. A split that cannot be read is noted. Raises
    InputError if two splits are one set.
    """
    path = Path(path or task.path or "")
    if split == "train" or not path.is_dir():
        return
    read["on_error"] = "skip"
    for other in task.splits:
        if other in (split, "test"):
            continue
        try:
            files, _ = split_files(task, path, split=other, fold=read.get("fold", 0))
        except ValueError:  # there is none
            continue
        line = f"reading {files[0]}, to count the questions that are also in {other}"
        slow = threading.Timer(SLOW_SECONDS, progress, [line])
        slow.start()
        try:
            others = read_questions(task, None if task.path else path, split=other, **read)
        except (ValueError, OSError) as error:
            remark = f"{other} file that cannot be read, so that shared questions are unknown"
            skipped.note(f"{remark}: {error}", [files[0].name])
            continue
        finally:
            slow.cancel()
        refuse_copy(others, questions, names=(other, f"{split} of {path}"))
        skipped.note(f"also in {other}", overlap(questions, others))


def read_dev(
    task: Task, path: str | Path | None, dev_path: str | Path | None, *, scored: str, **read
) -> tuple[list[Question], str] | str:
    """Return questions to choose a setting on, and their split; or in words why there are none.

    They are of the dev split of `path` (val, if the task has one), or of `dev_path`, a file or
    directory; `scored` is the split that is reported. `read` are arguments of `read_questions`.
    Raises InputError for a missing dev file, questions of the test split, or another kind.
    """
    name = "val" if "val" in task.splits else "dev"
    if dev_path:
        format = next(iter(task.files.values()))
        own = find_task(f"jsonl:{dev_path}", format=format) if task.path else task
        if (own.kind, own.classes) != (task.kind, task.classes):
            got = f"{dev_path} has {own.kind} {list(own.classes) or ''}".strip()
            needed = f"{task.name} {task.kind} {list(task.classes) or ''}".strip()
            raise InputError(f"{got}, and {needed}; fix: --dev_path of the same task")
        file = Path(dev_path)
        split = name if file.is_dir() else default_split(own, file)
        if not file.is_dir() and split_files(own, file, split=split, fold=0)[1] in WHOLE_SETS:
            split = name
        if split == "test":
            got = f"got --dev_path={dev_path}, of the test split by its name"
            raise InputError(f"{got}; fix: choose on other questions")
        where = None if own.path else dev_path
        return read_questions(own, where, split=split, labelled=True, **read), split
    if scored == name:
        return f"the {name} split is scored, so it cannot choose (--dev_path would)"
    place = Path(path or task.path or "")
    if task.path and (name not in task.splits or not place.is_dir()):
        return f"{task.name} has no {name} split to choose on (--dev_path would)"
    fix = f"--dev_path=FILE of {name} questions"
    if not place.is_dir():
        format = split_files(task, place, split=scored, fold=read.get("fold", 0))[1]
        if format not in WHOLE_SETS:  # of which one file has every split
            got = f"{place} is one file, without a {name} split to choose the settings on"
            raise InputError(f"{got}; fix: {fix}")
    try:
        split_files(task, place, split=name, fold=read.get("fold", 0))
    except InputError as error:
        got = str(error).split("; fix")[0]
        raise InputError(f"{got}; fix: {fix}, to choose the settings on") from None
    where = None if task.path else path
    return read_questions(task, where, split=name, labelled=True, **read), name


def refuse_copy(
    first: Sequence[Question], second: Sequence[Question], *, names: tuple[str, str]
) -> None:
    """Raise InputError if two splits are one file, or different files of the same content."""
    if {one.content for one in first} == {one.content for one in second}:
        got = f"{' and '.join(names)} have the same {counted(len(second), 'question')}"
        raise InputError(f"{got}; fix: give each split its own file, or task.train_path")


def read_shots(
    task: Task, path: str | Path | None, count: int, questions: Sequence[Question], **read
) -> list[Question]:
    """Return the first `count` questions of the task's first split, of MMLU those of each subject.

    `read` are arguments of `read_questions`. A shot with the content of one of `questions` under
    another id is noted: `letter_prompts` leaves it out of that question's prompt. Raises InputError
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
            raise InputError(f"got shots={count}; {split} has {len(here)}{of} with answers")
    shots = [shot for ones in by_subject.values() for shot in ones]
    if {*shots} & {*questions}:
        fix = f"give a directory with a {split} split, and score another one"
        raise InputError(f"got shots={count}, which are among the questions to score; {fix}")
    if skipped is not None:
        skipped.note("equal to a shot, which their prompts leave out", overlap(questions, shots))
    return shots


def _shot_subject(task: Task, question: Question) -> str:
    return (question.subject or task.subject) if task.name.startswith("mmlu") else ""


def _numbered(
    rows: list[Row], task: Task, format: str, path: Path, split: str, label_base: str
) -> list[Row]:
    """Return the rows with the number of their first option; raise InputError if none is sure."""
    needs = {*FORMATS[format].needs}
    shown = first_numbers(row for row in rows if needs <= row.fields.keys())
    base = 0 if label_base == "auto" else int(label_base)
    fix = "set --label_base (config.task.label_base) to"
    published = format == "medmcqa"  # the official files count from 1, mirrors from 0
    if published and label_base == "auto":
        for other in _sibling_rows(task, format, path, split):
            shown = first_numbers(other) | shown
        if len(shown) == 2:
            got = f"{shown[1]}: got cop 4, but cop 0 at {shown[0]}"
            raise InputError(f"{got}; expected options counted from 1 to 4, or all from 0 to 3")
        if not shown and any(
            answer_number(row) is not None and needs <= row.fields.keys() for row in rows
        ):
            got = f"{rows[0].path}: no cop is 0 and none is 4, here and in the other splits"
            raise InputError(f"{got}; {fix} 0 for a mirror, 1 for the official files")
        base = min(shown, default=1)
    other = shown.get(1 - base)
    if other is not None and (published or base not in shown):
        got = f"{other}: got the answer {answer_number(other)} where options count from {base}"
        raise InputError(f"{got}; correct the row, or {fix} {1 - base}")
    return [row._replace(first=base) for row in rows]


def _unsure(rows: Sequence[Row]) -> list[str]:
    """Return the ids of rows with numbers that show no base: none is the first or past the last."""
    numbered = [row for row in rows if answer_number(row) is not None]
    sure = any(row.first == 1 for row in rows) or first_numbers(numbered)
    return [] if sure else [str(row.id) for row in numbered]


def _sibling_rows(task: Task, format: str, path: Path, split: str) -> Iterator[list[Row]]:
    """Yield the rows of the task's other splits in the same directory and format."""
    folder = path if path.is_dir() else path.parent
    for other in task.splits:
        with contextlib.suppress(ValueError):  # there is none
            files, kind = split_files(task, folder, split=other, fold=0)
            if other != split and kind == format:
                read = FORMATS[format].read
                yield [row for file in files for row in read(file, lambda problem: None)]


def _with_subject(row: Row) -> Row:
    """Add the subject that the name of MMLU's file states."""
    named = re.fullmatch(r"(.+)_(dev|val|test)\.csv", plain_name(row.path))
    return row._replace(fields={**row.fields, "subject": named[1]}) if named else row
