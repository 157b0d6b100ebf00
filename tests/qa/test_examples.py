"""examples.py: every form says the same question, and each kind of bad row has its message."""

import pytest

from biomedlm_jax.qa.examples import Example, Skipped, check_rows
from biomedlm_jax.qa.readers import Row

DICT = {"question": "q?", "options": {"A": "x", "B": "y"}, "answer_idx": "B"}
ENDINGS = {"sent1": "q?", "sent2": "", "ending0": "x", "ending1": "y", "label": 1}
ABCD = {"question": "q?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 2}
PAIR = {"sentence1": "q?", "sentence2": "c", "label": "no"}
ARTICLE = {"QUESTION": "q?", "CONTEXTS": ["c", "d"], "final_decision": "maybe", "YEAR": "2011"}
BIOASQ = {
    "id": "5",
    "body": "is\nit?",
    "type": "yesno",
    "exact_answer": "Yes",
    "documents": [],
    "snippets": [{"text": "one\ntwo"}, {"text": "three"}],
}
CLASSES = ("maybe", "no", "yes")


def raise_(what):
    raise ValueError(what)


def check(*records, kind="choice", refuse=raise_, skipped=None, first=1):
    rows = [Row(f"f:{n}", f"row {n}", fields, first) for n, fields in enumerate(records, 1)]
    return check_rows(rows, kind, CLASSES, refuse, skipped or Skipped())


@pytest.mark.parametrize(
    "record",
    [
        DICT,
        {**DICT, "answer": "y"},
        {**DICT, "answer": "B", "explanation": None, "meta": {"any": 1}},
        {"question": "q?", "options": {"B": "y", "A": "x"}, "answer": "y"},
        {"question": "q?", "options": ["x", "y"], "label": 1},
        {"question": "q?", "options": ["x", "y"], "answer_idx": "B", "context": None},
        {"question": "q?", "options": ["x", "y"], "answer": "B"},
        ENDINGS,
    ],
    ids=range(8),
)
def test_the_forms_of_a_choice_say_the_same(record):
    assert check(record) == [Example("row 1", "q?", ("x", "y"), 1)]
    assert check({**record, "id": 7, "context": "c"}) == [Example("7", "q?", ("x", "y"), 1, "c")]


def test_medmcqa_counts_from_1_mirrors_from_0_and_hide_answers_by_minus_1():
    example = Example("row 1", "q?", ("w", "x", "y", "z"), 1)
    assert check({**ABCD, "choice_type": "multi", "exp": "e", "subject_name": "s"}) == [example]
    assert check({**ABCD, "cop": 1}, first=0) == [example]
    assert [e.label for e in check({**ABCD, "cop": -1}, {**ABCD, "cop": None})] == [None, None]


def test_the_forms_of_a_classification():
    found = check(PAIR, ARTICLE, BIOASQ, kind="classification")
    assert found == [
        Example("row 1", "q?", CLASSES, 1, "c"),
        Example("row 2", "q?", CLASSES, 0, "c\nd"),
        Example("5", "is it?", CLASSES, 2, "one two three"),  # as BLURB's TSV has it
    ]


def test_other_kinds_of_bioasq_questions_are_left_out_and_counted():
    skipped = Skipped()
    others = [{**BIOASQ, "type": kind} for kind in ("factoid", "list", "list")]
    assert len(check(*others, BIOASQ, kind="classification", skipped=skipped)) == 1
    assert str(skipped) == "1 factoid questions; 2 list questions"


def test_texts_stay_as_they_are_and_signs_make_a_difference():
    options = ["↑ renin", "↓ renin", " ↑ renin.", "Renin", "🧬\u200b \U0010ffff"]
    (example,) = check({"question": " q \n", "options": options, "answer": "↑ renin."})
    assert (example.question, example.options, example.label) == (" q \n", tuple(options), 2)


def test_numbers_of_options_may_differ_within_a_file():
    records = [{"question": "q", "options": list("xyzuvw")[:n], "label": n - 1} for n in (2, 5, 3)]
    assert [(len(e.options), e.label) for e in check(*records)] == [(2, 1), (5, 4), (3, 2)]


def test_a_shared_beginning_belongs_to_every_option():
    (example,) = check({**ENDINGS, "sent2": "It is"})
    assert example.options == ("It is x", "It is y")


def test_an_option_that_is_the_letter_of_another_one():
    blood = {"question": "group?", "options": {"A": "B", "B": "A", "C": "O"}}
    assert check({**blood, "answer_idx": "B", "answer": "A"})[0].label == 1
    assert check({**blood, "label": 0, "answer": "A"})[0].label == 0
    assert check({**blood, "answer": "C"})[0].label == 2
    with pytest.raises(ValueError, match=r"got \{'answer': 'A'\}, which names several of 'B', 'A'"):
        check({**blood, "answer": "A"})


BAD = [
    ({**DICT, "label": 2}, r"got label 2; it is a whole number from 0 to 1"),
    ({**DICT, "label": True}, r"got label True; it is a whole number"),
    ({**DICT, "label": -1}, r"got label -1"),
    ({**DICT, "answer_idx": "C"}, r"got answer_idx 'C'; it is A to B"),
    ({**DICT, "answer_idx": "AB"}, r"got answer_idx 'AB'"),
    ({**DICT, "answer_idx": 1}, r"got answer_idx 1"),
    ({**DICT, "answer": "z"}, r"got the answer 'z', which is none of 'x', 'y'"),
    ({**DICT, "answer": "x"}, r"got \{'answer_idx': 'B', 'answer': 'x'\}, which names several"),
    ({**DICT, "label": 0}, r"got \{'label': 0, 'answer_idx': 'B'\}, which names several"),
    ({**DICT, "question": " \n"}, r"got an empty question"),
    ({**DICT, "question": None}, r"got NoneType for question; it is a text"),
    ({**DICT, "question": "a\0b"}, r"got a NUL character in question at 1"),
    ({**DICT, "question": "\ud83e"}, r"surrogates not allowed"),
    ({**DICT, "options": {"A": "x", "B": " "}}, r"got an empty option B"),
    ({**DICT, "options": {"A": "x", "B": "y\0"}}, r"got a NUL character in option B"),
    ({**DICT, "options": {"A": "x", "B": 3}}, r"got int for option B; it is a text"),
    ({**DICT, "options": {"A": "y", "B": "y "}}, r"got the option 'y' twice"),
    ({**DICT, "options": {"A": "x"}}, r"got 1 option; a question has at least two"),
    ({**DICT, "options": []}, r"got 0 option"),
    ({**DICT, "options": {"A": "x", "C": "y"}}, r"got options A, C; they are A, B, C and so on"),
    ({**DICT, "options": "x y"}, r"got options 'x y'; it is a list or an object of letters"),
    ({**DICT, "id": ""}, r"got an empty id"),
    ({**DICT, "id": 1.5}, r"got float for id"),
    ({**DICT, "lable": 1}, r"got the unknown field 'lable'; beside question, options a row may"),
    ({"options": ["x", "y"]}, r"got the fields options; a row needs question, options; or sent1"),
    ({"query": "q?"}, r"got the fields query; a row needs question, options; or sent1, ending0"),
    ({**ENDINGS, "ending3": "z"}, r"got no ending2 but"),
    ({**ENDINGS, "label": 2}, r"got label 2; it is a whole number from 0 to 1"),
    ({**ENDINGS, "label": "1"}, r"got label '1'"),
    ({**ABCD, "cop": 5}, r"got cop 5; it is a whole number from 1 to 4"),
    ({**ABCD, "cop": 0}, r"got cop 0; it is a whole number from 1 to 4"),
    (PAIR, r"got a row of classification \(sentence1, sentence2, label\); choice needs question"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=range(len(BAD)))
def test_a_bad_choice_is_named_and_may_be_skipped(bad, message):
    good = [{**DICT, "id": f"good {n}"} for n in range(2)]
    with pytest.raises(ValueError, match="^f:2: .*" + message) as error:
        check(good[0], bad, good[1])
    assert "\n" not in str(error.value)
    refused = []
    assert [e.id for e in check(good[0], bad, good[1], refuse=refused.append)] == [
        "good 0",
        "good 1",
    ]
    assert refused == [str(error.value)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({**PAIR, "label": "perhaps"}, r"got the label 'perhaps'; it is one of maybe, no, yes"),
        ({**PAIR, "label": ""}, r"got an empty label"),
        ({**PAIR, "sentence1": ""}, r"got an empty question"),
        ({**PAIR, "sentence2": ["c"]}, r"got list for context"),
        ({**PAIR, "sentence3": "c"}, r"got the unknown field 'sentence3'"),
        ({**ARTICLE, "CONTEXTS": "c"}, r"got CONTEXTS of type str; it is a list"),
        ({**ARTICLE, "CONTEXTS": [None]}, r"got NoneType for CONTEXTS"),
        ({"QUESTION": "q"}, r"got the fields QUESTION; a row needs"),
        ({**BIOASQ, "snippets": ["text"]}, r"got snippets that are no objects"),
        (DICT, r"got a row of choice \(question, options, answer_idx\); classification needs"),
    ],
    ids=range(10),
)
def test_a_bad_classification_is_named(bad, message):
    with pytest.raises(ValueError, match="^f:2: .*" + message):
        check({**PAIR, "id": "good"}, bad, kind="classification")


def test_ids_are_unique_within_a_file():
    with pytest.raises(ValueError, match=r"^f:3: got the id 'a' again, after f:1$"):
        check({**DICT, "id": "a"}, {**DICT, "id": "b"}, {**DICT, "id": "a"})


def test_a_file_has_answers_or_has_none():
    asked = {"question": "q?", "options": ["x", "y"]}
    assert [e.label for e in check(asked, {**asked, "answer": None})] == [None, None]
    with pytest.raises(ValueError, match="f:2: it has no answer, but rows before it have"):
        check(DICT, asked)
    with pytest.raises(ValueError, match="f:2: it has an answer, but rows before it have none"):
        check(asked, DICT)


def test_what_was_skipped_is_one_line():
    assert str(Skipped()) == "nothing"
    skipped = Skipped(bad=1_200, examples=["f:2: got"], left_out={"list questions": 3})
    assert str(skipped) == "1,200 bad rows, the first: f:2: got; 3 list questions"
