"""The one record of a question, and the account of what a reader left out."""

import functools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field

from biomedlm_jax.errors import InputError, counted, one_line
from biomedlm_jax.files import content_hash


@dataclass(frozen=True)
class Question:
    """One question with its possible answers. Texts are kept as published, white space included."""

    id: str
    question: str
    options: tuple[str, ...]  # for classification the class names, sorted
    label: int | None  # index into options; None where the file has no answers
    context: str = ""  # the text that the question is about
    group: str | None = None  # questions of one group are dependent: statistics resample groups
    subject: str = ""  # MMLU's or MedMCQA's, for the breakdown

    @functools.cached_property
    def content(self) -> tuple[str, ...]:
        """What is equal for equal questions: all texts, but for case, white space and order."""
        options = sorted(map(_plain, self.options))
        return _plain(self.question), _plain(self.context), *options


@dataclass
class Skipped:
    """What a reader left out or noted, and why; pass one to `read_questions`, then print it."""

    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason -> ids, outside the task
    error: str = ""  # the message of the first bad row, under on_error="skip"
    places: dict[str, list[str]] = field(default_factory=dict)  # reason -> "file:line" of bad rows
    noted: dict[str, list[str]] = field(default_factory=dict)  # remark -> ids of questions in use

    @property
    def bad(self) -> int:
        """Rows that could not be used."""
        return sum(map(len, self.places.values()))

    def add(self, problem: str, error: str) -> None:
        """Count a row with `problem`, "file:line: reason"; quoted values make no other reason."""
        self.error = self.error or error
        place, _, reason = re.sub(r"'[^']*'", "'...'", problem).partition(": ")
        self.places.setdefault(reason, []).append(place.rsplit("/", 1)[-1])

    def leave_out(self, reason: str, id: str) -> None:
        """Count a good row that is not used."""
        self.left_out.setdefault(reason, []).append(id)

    def note(self, remark: str, ids: Iterable[str]) -> None:
        """Count questions that are used, and that a reader should know of."""
        if ids := [*ids]:
            self.noted.setdefault(remark, []).extend(ids)

    def tables(self) -> dict[str, dict[str, list[str]]]:
        """Return what was left out or noted, by kind and reason, without the empty tables."""
        return {k: dict(v) for k, v in vars(self).items() if isinstance(v, dict) and v}

    def __str__(self) -> str:
        """One line, "nothing" if no row was left out; after "; used:" what is noted."""
        parts = [f"{counted(self.bad, 'bad row')}, the first: {self.error}"] if self.bad else []
        for reason, places in self.places.items() if self.bad > 1 else ():
            more = ", ..." if len(places) > 3 else ""
            parts.append(f"{len(places):,} {reason} ({', '.join(places[:3])}{more})")
        parts += [f"{len(ids):,} {reason}" for reason, ids in sorted(self.left_out.items())[:30]]
        noted = [f"{len(ids):,} {remark}" for remark, ids in self.noted.items()]
        used = f"; used: {', '.join(noted)}" if noted else ""
        return one_line(("; ".join(parts) or "nothing") + used)


def overlap(questions: Iterable[Question], others: Iterable[Question]) -> list[str]:
    """Return the ids of the `questions` that have the content of one of the `others`."""
    contents = {other.content for other in others}
    return [question.id for question in questions if question.content in contents]


def repeated(questions: Iterable[Question]) -> list[str]:
    """Return the ids of the questions that have the content of an earlier one."""
    seen: set[tuple[str, ...]] = set()
    again = []
    for question in questions:
        if question.content in seen:
            again.append(question.id)
        seen.add(question.content)
    return again


def questions_hash(questions: Sequence[Question]) -> str:
    """Return the SHA-256 (hexadecimal) of a set of questions: ids, texts and labels, in order."""
    return content_hash([astuple(question) for question in questions])


def check_limit(limit: float | None) -> float | None:
    """Return a number of first questions as an int, a fraction below 1 or None unchanged.

    Raises InputError for anything else, such as NaN or 2.5.
    """
    if limit is None or 0 < limit < 1:
        return limit
    if not (math.isfinite(limit) and limit >= 1 and limit == int(limit)):
        raise InputError(f"got limit={limit}; expected a number of questions, or a fraction of 1")
    return int(limit)


def first_questions(questions: list[Question], limit: float | None) -> list[Question]:
    """Return the first questions: `limit` of them, or below 1 this fraction."""
    limit = check_limit(limit)
    if limit is None:
        return questions
    return questions[: math.ceil(len(questions) * limit) if limit < 1 else int(limit)]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
