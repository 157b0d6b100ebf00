"""questions.py: counts and the account of what was skipped."""

from collections import Counter

from biomedlm_jax.qa.questions import Skipped, counted


def test_what_was_skipped_is_one_line():
    assert str(Skipped()) == "nothing"
    skipped = Skipped(Counter({"list questions": 3}))
    skipped.add("deep/f:2: label 'a' is bad", "deep/f:2: label 'a' is bad; fix it")
    assert (
        str(skipped) == "1 bad row, the first: deep/f:2: label 'a' is bad; fix it; 3 list questions"
    )
    for line in range(3, 1_200):
        skipped.add(f"deep/f:{line}: label 'b' is bad", "not kept")
    skipped.add("f:9: empty id", "not kept")
    assert skipped.bad == 1_199
    assert str(skipped) == (
        "1,199 bad rows, the first: deep/f:2: label 'a' is bad; fix it; "
        "1,198 label '...' is bad (f:2, f:3, f:4, ...); 1 empty id (f:9); 3 list questions"
    )


def test_counted():
    assert [counted(n, "epoch") for n in (0, 1, 1273)] == ["0 epochs", "1 epoch", "1,273 epochs"]
