"""adapters.py: every form of a question gives the same record; bad rows are named."""

import dataclasses
import functools
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedlm_jax.qa.formats import FORMATS, to_questions
from biomedlm_jax.qa.questions import Question, Skipped


def refuse(problem):
    raise ValueError(problem)


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


@pytest.mark.parametrize(
    ("format", "record"),
    [
        ("questions", DICT),
        ("questions", {**DICT, "answer": "y"}),
        ("questions", {**DICT, "answer": "B", "explanation": None, "meta": {"any": 1}}),
        ("questions", {"question": "q?", "options": {"B": "y", "A": "x"}, "answer": "y"}),
        ("questions", {"question": "q?", "options": ["x", "y"], "label": 1}),
        (
            "questions",
            {"question": "q?", "options": ["x", "y"], "answer_idx": "B", "context": None},
        ),
        ("questions", {"question": "q?", "options": ["x", "y"], "answer": "B"}),
        ("endings", ENDINGS),
    ],
)
def test_the_ways_to_write_a_choice_are_equal(format, record, check):
    assert check(record, format=format) == [Question("f:1", "q?", ("x", "y"), 1)]
    full = {**record, "id": 7, "context": "c", "group": 3}
    assert check(full, format=format) == [Question("7", "q?", ("x", "y"), 1, "c", "3")]


def test_medmcqa_counts_from_1_mirrors_from_0_and_hide_answers_by_minus_1(check):
    medmcqa = functools.partial(check, format="medmcqa")
    question = Question("f:1", "q?", ("w", "x", "y", "z"), 1)
    assert medmcqa({**ABCD, "choice_type": "multi", "exp": "e"}) == [question]
    (with_subject,) = medmcqa({**ABCD, "subject_name": "Anatomy", "topic_name": "Bones"})
    assert with_subject == dataclasses.replace(question, subject="Anatomy")
    assert medmcqa({**ABCD, "cop": 1}, first=0) == [question]
    assert [q.label for q in medmcqa({**ABCD, "cop": -1}, {**ABCD, "cop": None})] == [None, None]


@pytest.mark.parametrize(
    ("format", "record", "question"),
    [
        ("sentences", PAIR, Question("f:1", "q?", CLASSES, 1, "c")),
        ("sentences", {**PAIR, "group": "g"}, Question("f:1", "q?", CLASSES, 1, "c", "g")),
        ("pubmedqa", ARTICLE, Question("f:1", "q?", CLASSES, 0, "c\nd")),
        # As BLURB's TSV has it.
        ("bioasq", BIOASQ, Question("5", "is it?", CLASSES, 2, "one two three")),
    ],
)
def test_classifications(format, record, question, check):
    assert check(record, format=format) == [question]


def test_texts_stay_as_they_are_and_signs_make_a_difference(check):
    options = ["↑ renin", "↓ renin", " ↑ renin.", "Renin", "🧬\u200b \U0010ffff"]
    (question,) = check({"question": " q \n", "options": options, "answer": "↑ renin."})
    assert (question.question, question.options, question.label) == (" q \n", tuple(options), 2)


def test_numbers_of_options_may_differ_within_a_file(check):
    records = [{"question": "q", "options": list("xyzuvw")[:n], "label": n - 1} for n in (2, 5, 3)]
    assert [(len(q.options), q.label) for q in check(*records)] == [(2, 1), (5, 4), (3, 2)]


def test_a_shared_beginning_belongs_to_every_option(check):
    (question,) = check({**ENDINGS, "sent2": "It is"}, format="endings")
    assert question.options == ("It is x", "It is y")


def test_an_option_that_is_the_letter_of_another_one(check):
    blood = {"question": "group?", "options": {"A": "B", "B": "A", "C": "O"}}
    assert check({**blood, "answer_idx": "B", "answer": "A"})[0].label == 1
    assert check({**blood, "label": 0, "answer": "A"})[0].label == 0
    assert check({**blood, "answer": "C"})[0].label == 2
    with pytest.raises(ValueError, match=r"\{'answer': 'A'\} names several of \['B', 'A'"):
        check({**blood, "answer": "A"})


BAD_CHOICES = [
    ({**DICT, "label": 2}, r"expected label as a whole number from 0 to 1, got 2"),
    ({**DICT, "label": True}, r"expected label as a whole number from 0 to 1, got True"),
    ({**DICT, "label": -1}, r"got -1"),
    ({**DICT, "answer_idx": "C"}, r"expected answer_idx A to B, got 'C'"),
    ({**DICT, "answer_idx": "AB"}, r"got 'AB'"),
    ({**DICT, "answer_idx": 1}, r"expected answer_idx A to B, got 1"),
    ({**DICT, "answer": "z"}, r"expected an answer among \['x', 'y'\], got 'z'"),
    ({**DICT, "answer": "x"}, r"\{'answer_idx': 'B', 'answer': 'x'\} names several"),
    ({**DICT, "label": 0}, r"\{'label': 0, 'answer_idx': 'B'\} names several"),
    ({**DICT, "question": " \n"}, r"empty question"),
    ({**DICT, "question": None}, r"expected text for question, got NoneType"),
    ({**DICT, "question": "a\0b"}, r"NUL character in question at 1"),
    ({**DICT, "question": "\ud83e"}, r"surrogates not allowed"),
    ({**DICT, "options": {"A": "x", "B": " "}}, r"empty option B"),
    ({**DICT, "options": {"A": "x", "B": "y\0"}}, r"NUL character in option B"),
    ({**DICT, "options": {"A": "x", "B": 3}}, r"expected text for option B, got int"),
    ({**DICT, "answer": True}, r"expected text for answer, got bool"),
    ({**DICT, "answer": ["y"]}, r"expected text for answer, got list"),
    ({**DICT, "answer": 2}, r"expected answer as a whole number from 0 to 1, got 2"),
    ({**DICT, "answer": 0}, r"\{'answer_idx': 'B', 'answer': 0\} names several"),
    (
        {"question": "q?", "options": ["y", "y "], "answer": "y"},
        r"\{'answer': 'y'\} names several of \['y', 'y '\]; fix: give a label",
    ),
    ({**DICT, "options": {"A": "x"}}, r"expected at least two options, got 1"),
    ({**DICT, "options": []}, r"expected at least two options, got 0"),
    ({**DICT, "options": {"A": "x", "C": "y"}}, r"expected options A, B, C and so on, got A, C"),
    ({**DICT, "options": "x y"}, r"expected options as a list or an object of letters, got 'x y'"),
    ({**DICT, "id": ""}, r"empty id"),
    ({**DICT, "id": 1.5}, r"expected text for id, got float"),
    ({**DICT, "group": " "}, r"empty group"),
    ({**DICT, "group": ["a"]}, r"expected text for group, got list"),
    ({**DICT, "lable": 1}, r"unknown field 'lable'; expected question, options, answer_idx"),
    ({"options": ["x", "y"]}, r"format questions needs the fields question, got options; fix"),
    ({"query": "q?"}, r"format questions needs the fields question, options, got query; fix"),
    (PAIR, r"needs the fields question, options, got sentence1.*; fix: --format=sentences "),
    (ENDINGS, r"got sent1, sent2.*; fix: --format=endings "),
    (ABCD, r"got question, opa.*; fix: --format=medmcqa "),
]


@pytest.mark.parametrize(("bad", "message"), BAD_CHOICES, ids=range(len(BAD_CHOICES)))
def test_a_bad_choice_is_named_and_may_be_skipped(bad, message, check):
    good = [{**DICT, "id": f"good {n}"} for n in range(2)]
    with pytest.raises(ValueError, match="^f:2: .*" + message) as error:
        check(good[0], bad, good[1])
    assert "\n" not in str(error.value)
    refused = []
    kept = check(good[0], bad, good[1], refuse=refused.append)
    assert [question.id for question in kept] == ["good 0", "good 1"]
    assert refused == [str(error.value)]


@pytest.mark.parametrize(
    ("format", "bad", "message"),
    [
        ("endings", {**ENDINGS, "ending3": "z"}, r"expected endings counted from 0: no ending2"),
        (
            "endings",
            {**ENDINGS, "label": 2},
            r"expected label as a whole number from 0 to 1, got 2",
        ),
        ("endings", {**ENDINGS, "label": "1"}, r"got '1'"),
        ("medmcqa", {**ABCD, "cop": 5}, r"expected cop as a whole number from 1 to 4, got 5"),
        ("medmcqa", {**ABCD, "cop": 0}, r"expected cop as a whole number from 1 to 4, got 0"),
        ("sentences", {**PAIR, "label": "perhaps"}, r"expected a label among maybe, no, yes, got "),
        ("sentences", {**PAIR, "label": ""}, r"empty label"),
        ("sentences", {**PAIR, "sentence1": ""}, r"empty question"),
        ("sentences", {**PAIR, "sentence2": ["c"]}, r"expected text for context, got list"),
        ("sentences", {**PAIR, "sentence3": "c"}, r"unknown field 'sentence3'"),
        ("sentences", DICT, r"needs the fields sentence1, got .*; fix: --format=questions "),
        (
            "pubmedqa",
            {**ARTICLE, "CONTEXTS": "c"},
            r"expected CONTEXTS as a list of texts, got str",
        ),
        ("pubmedqa", {**ARTICLE, "CONTEXTS": [None]}, r"expected text for CONTEXTS, got NoneType"),
        ("pubmedqa", {"QUESTION": "q"}, r"needs the fields CONTEXTS, got QUESTION"),
        ("bioasq", {**BIOASQ, "snippets": ["text"]}, r"expected snippets as objects"),
    ],
)
def test_a_bad_row_of_another_format_is_named(format, bad, message, check):
    with pytest.raises(ValueError, match="^f:1: .*" + message):
        check(bad, format=format)


OPTIONS = ["ACTH", "Renin", "Insulin", "ADH"]


ABSTRACT = ["Background text.", "Results text."]


PUBMED = {"QUESTION": "Does it?", "CONTEXTS": ABSTRACT, "LABELS": ["B", "R"], "YEAR": "2014"}


ANY = {"question": "Which?"}


FORMS = {
    "the zip of MedMCQA": ("medmcqa", 1, {**ABCD, "id": "i", "exp": None, "choice_type": "multi"}),
    "MedMCQA on Hugging Face": ("medmcqa", 0, {**ABCD, "topic_name": None, "subject_name": "A"}),
    "MedQA, 4 options": (
        "questions",
        0,
        {**ANY, "options": dict(zip("ABCD", OPTIONS, strict=True)), "meta_info": "step1"},
    ),
    "MedQA, 5 options": (
        "questions",
        0,
        {**ANY, "options": dict(zip("ABCDE", [*OPTIONS, "GH"], strict=True)), "meta_info": "s"},
    ),
    "choices and an integer": ("choices", 0, {**ANY, "choices": OPTIONS, "subject": "anatomy"}),
    "options and an integer": ("questions", 0, {**ANY, "options": OPTIONS}),
    "bigbio": (
        "bigbio",
        0,
        {"id": "0", "document_id": "0", "type": "multiple_choice", **ANY, "choices": OPTIONS}
        | {"question_id": "0", "context": ""},
    ),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.xz", ".parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_the_labels_of_every_form_are_the_truth(tmp_path, form, suffix):
    """Every position of the right option, in every container."""
    format, first, record = FORMS[form]
    texts = [record[name] for name in ("opa", "opb", "opc", "opd") if name in record]
    given = texts or record.get("choices") or record["options"]
    texts = [*given.values()] if isinstance(given, dict) else given
    records = []
    for n, text in enumerate(texts):
        answer = {
            "medmcqa": {"cop": n + first},
            "choices": {"answer": n},
            "bigbio": {"answer": [text]},
            "questions": {"answer": n},
        }[format]
        if form.startswith("MedQA"):
            answer = {"answer": text, "answer_idx": "ABCDE"[n]}
        records.append({**record, "id": f"q{n}", **answer})
    path = tmp_path / f"train{suffix}"
    save(path, records)
    rows = [row._replace(first=first) for row in FORMATS[format].read(path, refuse)]
    questions = to_questions(rows, format, (), refuse, Skipped())
    assert [q.options[q.label] for q in questions] == [*texts]
    assert [q.options for q in questions] == [tuple(texts)] * len(texts)
    assert [q.id for q in questions] == [f"q{n}" for n in range(len(texts))]


def save(path, records):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1))
    elif path.suffix == ".xz":
        path.write_bytes(lzma.compress(lines.encode()))
    else:
        path.write_text(lines)


@pytest.mark.parametrize(
    ("format", "suffix", "record"),
    [
        ("pubmedqa", ".json", lambda n, a: (str(n), {**PUBMED, "final_decision": a})),
        ("pubmedqa_set", ".json.gz", lambda n, a: (str(n), {**PUBMED, "final_decision": a})),
        *(
            (
                "pubmedqa_rows",
                suffix,
                lambda n, a: (
                    {"pubid": n, "question": "Does it?", "long_answer": "It does."}
                    | {"context": {"contexts": ABSTRACT, "labels": ["B", "R"]}, "final_decision": a}
                ),
            )
            for suffix in (".jsonl", ".parquet")
        ),
        *(
            (
                "bigbio_classes",
                suffix,
                lambda n, a: (
                    {"id": str(n), "question": "Does it?", "answer": [a]}
                    | {"choices": ["yes", "no", "maybe"], "context": "\n".join(ABSTRACT)}
                ),
            )
            for suffix in (".jsonl", ".parquet")
        ),
    ],
)
def test_every_form_of_pubmedqa_is_the_same_question(tmp_path, format, suffix, record):
    answers = ["yes", "maybe", "no", "yes"]
    records = [record(n, answer) for n, answer in enumerate(answers)]
    path = tmp_path / f"a{suffix}"
    if format.endswith(("_rows", "_classes")):
        save(path, records)
    else:
        text = json.dumps(dict(records)).encode()
        path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    rows = FORMATS[format].read(path, refuse)
    assert to_questions(rows, format, CLASSES, refuse, Skipped()) == [
        Question(str(n), "Does it?", CLASSES, CLASSES.index(answer), "\n".join(ABSTRACT))
        for n, answer in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("format", "bad", "message"),
    [
        ("bigbio", {"answer": ["none"]}, r"expected an answer that is one of .*, got 'none'"),
        ("bigbio", {"answer": ["A"]}, r"expected an answer that is one of"),  # never a letter
        ("bigbio", {"answer": ["ACTH", "ADH"]}, r"expected answer as a list of one text"),
        ("bigbio", {"answer": "ACTH"}, r"expected answer as a list of one text, got 'ACTH'"),
        ("bigbio", {"choices": "ACTH", "answer": ["A"]}, r"expected the options as a list"),
        ("choices", {"choices": {"text": ["a"]}, "answer": 0}, r"expected options A, B, C and so"),
        ("choices", {"answer": 4}, r"expected answer as a whole number from 0 to 3, got 4"),
    ],
)
def test_a_bad_row_of_a_mirror_is_named(format, bad, message, check):
    with pytest.raises(ValueError, match="^f:1: .*" + message):
        check({**ANY, "choices": OPTIONS, **bad}, format=format)


def test_a_context_without_contexts_is_named(check):
    row = {"pubid": 1, "question": "q?", "context": "text"}
    with pytest.raises(ValueError, match=r"^f:1: expected a context with contexts, got 'text'"):
        check(row, format="pubmedqa_rows")
