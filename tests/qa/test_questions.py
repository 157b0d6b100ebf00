"""questions.py: counts and the account of what was skipped."""

from collections import Counter

from biomedlm_jax.qa.questions import Skipped, counted


def test_what_was_skipped_is_one_line():
    assert str(Skipped()) == "nothing"
    skipped = Skipped(1_200, Counter({"list questions": 3}), "f:2: empty id")
    assert str(skipped) == "1,200 bad rows, the first: f:2: empty id; 3 list questions"
    assert str(Skipped(bad=1, error="f:1: bad")) == "1 bad row, the first: f:1: bad"


def test_counted():
    assert [counted(n, "epoch") for n in (0, 1, 1273)] == ["0 epochs", "1 epoch", "1,273 epochs"]
