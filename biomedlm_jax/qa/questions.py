"""The one record of a question, and the account of what a reader left out."""

import re
from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Question:
    """One question with its possible answers. Texts are kept as published, white space included."""

    id: str
    question: str
    options: tuple[str, ...]  # for classification the class names, sorted
    label: int | None  # index into options; None where the file has no answers
    context: str = ""  # the text that the question is about
    group: str | None = None  # questions of one group are dependent: statistics resample groups
    subject: str = ""  # of MMLU


@dataclass
class Skipped:
    """What a reader left out, and why; pass one to `read_questions` and print it afterwards."""

    left_out: Counter[str] = field(default_factory=Counter)  # good rows outside the task
    error: str = ""  # the message of the first bad row, under on_error="skip"
    places: dict[str, list[str]] = field(default_factory=dict)  # reason -> "file:line" of bad rows

    @property
    def bad(self) -> int:
        """Rows that could not be used."""
        return sum(map(len, self.places.values()))

    def add(self, problem: str, error: str) -> None:
        """Count a row with `problem`, "file:line: reason"; quoted values make no other reason."""
        self.error = self.error or error
        place, _, reason = re.sub(r"'[^']*'", "'...'", problem).partition(": ")
        self.places.setdefault(reason, []).append(place.rsplit("/", 1)[-1])

    def __str__(self) -> str:
        """One line, "nothing" if no row was left out."""
        parts = [f"{counted(self.bad, 'bad row')}, the first: {self.error}"] if self.bad else []
        for reason, places in self.places.items() if self.bad > 1 else ():
            more = ", ..." if len(places) > 3 else ""
            parts.append(f"{len(places):,} {reason} ({', '.join(places[:3])}{more})")
        parts += [f"{n:,} {reason}" for reason, n in sorted(self.left_out.items())[:30]]
        return "; ".join(parts) or "nothing"


def counted(n: int, noun: str) -> str:
    """Return the number with its noun: "1 question", "1,273 questions"."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
