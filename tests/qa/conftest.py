"""Answered questions, and rows and files of questions."""

from pathlib import Path

import numpy as np
import pytest

from biomedlm_jax.qa.formats import FORMATS, to_questions
from biomedlm_jax.qa.question_rows import Row
from biomedlm_jax.qa.questions import Skipped
from biomedlm_jax.qa.summary import summarise

CLASSES = ("maybe", "no", "yes")


def answered(n=60, *, share=0.6, seed=0, groups=0):
    rng = np.random.default_rng(seed)
    items = []
    for index in range(n):
        gold, options = index % 3, 3
        prediction = gold if rng.random() < share else (gold + 1) % 3
        scores = rng.normal(size=options)
        scores[prediction] = scores.max() + 0.5
        probabilities = np.exp(scores) / np.exp(scores).sum()
        items.append(
            {
                "id": f"q{index}",
                "gold": gold,
                "prediction": prediction,
                "scores": scores.tolist(),
                "probabilities": probabilities.tolist(),
                "options": ["yes", "no\u2028", "β \ud800 \0"],
                "truncated": index == 7,
                "group": f"family {index % groups}" if groups else None,
            }
        )
    return items


@pytest.fixture
def questions():
    """questions(n, share=of right answers, seed=, groups=) returns n answered questions."""
    return answered


@pytest.fixture
def full_summary():
    """The summary of three seeds with all that a summary may have."""
    return summarise(
        *(answered(seed=n) for n in range(3)),
        name="pubmedqa",
        what="classifier",
        published={"BioMedLM": 74.4, "GPT | 4": 75.2},
        published_split="test",
        with_macro_f1=True,
        baseline=[answered(share=0.4, seed=9)],
        baseline_name="not pre-trained",
    )


def refuse(problem):
    raise ValueError(problem)


@pytest.fixture
def check():
    """check(*fields, format=...) returns the questions of rows with these fields."""

    def parse(*fields, format="questions", refuse=refuse, skipped=None, first=None, **options):
        first = int(format == "medmcqa") if first is None else first
        rows = [Row(Path("f"), n, one, first) for n, one in enumerate(fields, 1)]
        return to_questions(rows, format, CLASSES, refuse, skipped or Skipped(), **options)

    return parse


@pytest.fixture
def read():
    """read(path, format, content) writes the file, and returns its rows."""

    def rows(path, format, content, refuse=refuse):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(FORMATS[format].read(path, refuse))

    return rows
