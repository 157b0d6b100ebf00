"""questions.py: counts and the account of what was skipped."""

from collections import Counter

import pytest

from biomedlm_jax.qa.questions import Question, Skipped, counted, majority


def test_what_was_skipped_is_one_line():
    assert str(Skipped()) == "nothing"
    skipped = Skipped(1_200, Counter({"list questions": 3}), ["f:2: empty id"])
    assert str(skipped) == "1,200 bad rows, the first: f:2: empty id; 3 list questions"
    assert str(Skipped(bad=1, errors=["f:1: bad"])) == "1 bad row, the first: f:1: bad"


def test_counted():
    assert [counted(n, "epoch") for n in (0, 1, 1273)] == ["0 epochs", "1 epoch", "1,273 epochs"]


def test_majority():
    labels = [0, 2, 2, 1]
    questions = [Question(str(n), "q", ("x", "y", "z"), label) for n, label in enumerate(labels)]
    assert majority(questions) == 50.0
    with pytest.raises(ValueError, match="expected labelled questions, got 1 of 1 without a label"):
        majority([Question("1", "q", ("x", "y"), None)])
    with pytest.raises(ValueError, match="got 0 of 0"):
        majority([])
