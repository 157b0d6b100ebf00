"""The one record of a question, and the account of what a reader left out."""

from collections import Counter
from collections.abc import Sequence
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
    errors: list[str] = field(default_factory=list)  # the messages of the first five bad rows

    def __str__(self) -> str:
        """One line, "nothing" if no row was left out."""
        parts = [f"{n:,} {reason}" for reason, n in sorted(self.left_out.items())[:30]]
        if self.bad:
            first = next(iter(self.errors), "")
            parts.insert(0, f"{counted(self.bad, 'bad row')}, the first: {first}")
        return "; ".join(parts) or "nothing"


def counted(n: int, noun: str) -> str:
    """Return the number with its noun: "1 question", "1,273 questions"."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def majority(questions: Sequence[Question]) -> float:
    """Return the accuracy of always giving the most common answer, in percent.

    Raises:
      ValueError: no questions, or questions without a label.
    """
    labels = Counter(question.label for question in questions)
    if not questions or None in labels:
        raise ValueError(
            f"expected labelled questions, got {labels[None]} of {len(questions)} without a label"
        )
    return 100 * max(labels.values()) / len(questions)
