"""questions.py: counts and the account of what was skipped."""

import dataclasses

import pytest

from biomedlm_jax.qa.questions import (
    Question,
    Skipped,
    check_limit,
    first_questions,
    overlap,
    questions_hash,
    repeated,
)

ONE = Question("a", "Which  hormone?", ("Renin", "ADH"), 1)
SAME = Question("b", "which hormone? ", ("adh", "renin"), 0)


def test_what_was_skipped_is_one_line():
    assert str(Skipped()) == "nothing"
    skipped = Skipped({"list questions": ["a", "b", "c"]})
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


def test_a_limit_is_a_number_of_questions_or_a_fraction():
    assert [check_limit(one) for one in (None, 0.5, 1.0, 7)] == [None, 0.5, 1, 7]
    for bad in (0, -1, 1.5, 2.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"got limit={bad}; expected a number of questions"):
            check_limit(bad)
    for limit, n in ((None, 5), (3, 3), (9, 5), (0.5, 3)):
        assert first_questions([ONE] * 5, limit) == [ONE] * n


def test_the_account_is_a_table_of_reasons_for_the_report():
    skipped = Skipped()
    skipped.leave_out("list questions", "7")
    skipped.add("deep/f:2: empty id", "deep/f:2: empty id; fix it")
    skipped.note("with two equal options", ["a", "b"])
    skipped.note("of no question", [])
    assert skipped.tables() == {
        "places": {"empty id": ["f:2"]},
        "left_out": {"list questions": ["7"]},
        "noted": {"with two equal options": ["a", "b"]},
    }
    assert str(skipped).endswith("; 1 list questions; used: 2 with two equal options")


def test_questions_are_equal_by_their_content():
    other = dataclasses.replace(SAME, id="c", context="After a meal.")
    assert overlap([ONE, other], [SAME]) == ["a"]
    assert repeated([ONE, other, SAME]) == ["b"]


def test_the_hash_of_a_set_is_of_everything_in_it():
    sets = [[ONE], [SAME], [ONE, SAME], [SAME, ONE], [dataclasses.replace(ONE, label=0)]]
    assert len({questions_hash(one) for one in sets}) == len(sets)
    assert questions_hash([ONE]) == questions_hash([dataclasses.replace(ONE)])
