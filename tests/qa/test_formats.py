"""formats.py: rows become questions, and what a file shows of its own numbering."""

from pathlib import Path

import pytest

from biomedlm_jax.qa.formats import (
    answer_number,
    class_names,
    first_numbers,
    to_questions,
)
from biomedlm_jax.qa.question_rows import Row
from biomedlm_jax.qa.questions import Question, Skipped

DICT = {"question": "q?", "options": {"A": "x", "B": "y"}, "answer_idx": "B"}
ENDINGS = {"sent1": "q?", "sent2": "", "ending0": "x", "ending1": "y", "label": 1}
ABCD = {"question": "q?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 2}
PAIR = {"sentence1": "q?", "sentence2": "c", "label": "no"}
BIOASQ = {
    "id": "5",
    "body": "is\nit?",
    "type": "yesno",
    "exact_answer": "Yes",
    "documents": [],
    "snippets": [{"text": "one\ntwo"}, {"text": "three"}],
}
CLASSES = ("maybe", "no", "yes")


def refuse(problem):
    raise ValueError(problem)


def test_other_types_of_bioasq_questions_are_left_out_and_counted(check):
    skipped = Skipped()
    others = [{**BIOASQ, "type": kind} for kind in ("factoid", "list", "list")]
    assert len(check(*others, BIOASQ, format="bioasq", skipped=skipped)) == 1
    assert str(skipped) == "1 factoid questions; 2 list questions"


def test_ids_are_unique_within_a_file(check):
    with pytest.raises(ValueError, match=r"^f:3: the id 'a' occurs twice, first in f:1$"):
        check({**DICT, "id": "a"}, {**DICT, "id": "b"}, {**DICT, "id": "a"})


@pytest.mark.parametrize("field", ["label", "group"])
def test_all_rows_of_a_file_have_labels_and_groups_or_none_has(field, check):
    plain = {"question": "q?", "options": ["x", "y"]}
    having = {**plain, field: 1}
    assert [getattr(q, field) for q in check(plain, {**plain, field: None})] == [None, None]
    with pytest.raises(ValueError, match=f"f:2: has no {field}, unlike the rows before it"):
        check(having, plain)
    with pytest.raises(ValueError, match=f"f:2: has a {field}, unlike the rows before it"):
        check(plain, having)


def test_class_names_pass_over_bad_rows():
    records = [{**PAIR, "label": label} for label in ("b", 3, None, " a ")] + [{"label": "z"}]
    rows = [Row(Path("f"), n, record) for n, record in enumerate(records)]
    assert class_names(rows, "sentences", lambda problem: None) == {"b", "3", "a"}


def test_mmlu_cells_may_span_lines_and_quote(tmp_path, read):
    text = '"two\nlines, ""quoted""",1,2,3,"4, four",D\nnext,a,b,c,d, A\n'
    rows = read(tmp_path / "anatomy_test.csv", "mmlu", text)
    assert to_questions(rows, "mmlu", (), refuse, Skipped()) == [
        Question("anatomy_test.csv:1", 'two\nlines, "quoted"', ("1", "2", "3", "4, four"), 3),
        Question("anatomy_test.csv:3", "next", ("a", "b", "c", "d"), 0),
    ]


@pytest.mark.parametrize(
    ("records", "numbers"),
    [
        ([{**ABCD, "cop": n} for n in (1, 4, 2)], {1: 4}),
        ([{**ABCD, "cop": n} for n in (3, 0, 2)], {0: 0}),
        ([{**ABCD, "cop": n} for n in (0, 4)], {0: 0, 1: 4}),
        ([{**ABCD, "cop": n} for n in (1, 2, 3, -1, None)], {}),
        ([{"question": "q", "choices": ["x", "y"], "answer": n} for n in (1, 2)], {1: 2}),
        ([{"question": "q", "options": ["x", "y"], "answer": n} for n in ("y", 0)], {0: 0}),
        ([{**ENDINGS, "label": 1}], {}),
        ([{**ENDINGS, "label": 2}], {1: 2}),
    ],
)
def test_only_a_0_or_the_number_of_options_shows_where_a_file_begins_to_count(records, numbers):
    shown = first_numbers(Row(Path("f"), n, record) for n, record in enumerate(records))
    assert {first: answer_number(row) for first, row in shown.items()} == numbers


TWINS = {"question": "q?", "options": ["x", "y", "x "], "answer_idx": "C"}


def test_equal_options_are_kept_and_noted_or_left_out(check):
    skipped = Skipped()
    kept = check(DICT, {**TWINS, "id": "t"}, skipped=skipped)
    assert [(q.id, q.label) for q in kept] == [("f:1", 1), ("t", 2)]  # as lm-eval scores it
    assert skipped.noted == {"with two equal options": ["t"]}
    skipped = Skipped()
    assert len(check(DICT, {**TWINS, "id": "t"}, skipped=skipped, twins="skip")) == 1
    assert skipped.left_out == {"with two equal options": ["t"]}


def test_questions_of_the_same_content_are_noted(check):
    again = {"id": "z", "question": " Q? ", "options": {"A": "y", "B": "x"}, "answer_idx": "A"}
    skipped = Skipped()
    assert len(check(DICT, again, {**again, "context": "c", "id": "w"}, skipped=skipped)) == 3
    assert skipped.noted == {"of the content of an earlier one": ["z"]}
