"""The one record of a question, and the account of what a reader left out."""

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


@dataclass
class Skipped:
    """What a reader left out, and why; pass one to `read_questions` and print it afterwards."""

    bad: int = 0  # rows that could not be used, under on_error="skip"
    left_out: Counter[str] = field(default_factory=Counter)  # good rows outside the task
    error: str = ""  # the message of the first bad row

    def __str__(self) -> str:
        """One line, "nothing" if no row was left out."""
        parts = [f"{n:,} {reason}" for reason, n in sorted(self.left_out.items())[:30]]
        if self.bad:
            parts.insert(0, f"{counted(self.bad, 'bad row')}, the first: {self.error}")
        return "; ".join(parts) or "nothing"


def counted(n: int, noun: str) -> str:
    """Return the number with its noun: "1 question", "1,273 questions"."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
