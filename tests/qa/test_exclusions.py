"""exclusions.py: which lists are read, and the two scores."""

import dataclasses
import json
import re

import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.qa import statistics
from biomedlm_jax.qa.exclusions import read_exclusions, set_hash, write_exclusions
from biomedlm_jax.qa.presentation import markdown, table
from biomedlm_jax.qa.questions import Question
from biomedlm_jax.qa.summary import summarise

QUESTIONS = [Question(f"q{n}", f"Which {n}?", ("yes", "no"), n % 2) for n in range(60)]
ABOUT = {"task": "medqa", "split": "test"}


@pytest.fixture
def written(tmp_path):
    def write(ids, of=QUESTIONS):
        write_exclusions(tmp_path / "list.json", of, ids, rule="seen", about=ABOUT)
        return tmp_path / "list.json"

    return write


def test_a_list_is_of_questions_and_not_of_their_order_or_labels(written):
    other = [dataclasses.replace(one, label=None) for one in reversed(QUESTIONS)]
    list_of = read_exclusions(written(["q3", "q4"]), other)
    assert (list_of.ids, list_of.rule) == ({"q3", "q4"}, "seen")
    assert set_hash(other) == set_hash(QUESTIONS)
    for changed in (
        QUESTIONS[1:],
        [dataclasses.replace(QUESTIONS[0], context="x"), *QUESTIONS[1:]],
        [dataclasses.replace(QUESTIONS[0], options=("no", "yes")), *QUESTIONS[1:]],
        [dataclasses.replace(QUESTIONS[0], id="new"), *QUESTIONS[1:]],
    ):
        got = f"is of other questions (medqa, test, 60 questions), not of these {len(changed)}"
        with pytest.raises(InputError, match=re.escape(got)):
            read_exclusions(written(["q3"]), changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["q3", "q99"]}, "has 1 id of no question, as 'q99'"),
        ({"ids": [3]}, "expected ids to be a list of strings"),
        ({"version": 2}, "is no exclusion list of version 1"),
        ({"questions": "all"}, "is no exclusion list of version 1"),
    ],
)
def test_a_changed_list_is_refused(written, change, message):
    path = written(["q3"])
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        read_exclusions(path, QUESTIONS)
    with pytest.raises(InputError, match="no such file"):
        read_exclusions(path.with_name("nowhere"), QUESTIONS)


def test_both_scores_have_intervals(written, questions):
    ids = [f"q{n}" for n in range(0, 60, 4)]
    exclusions = read_exclusions(written(ids), QUESTIONS)
    seeds = [questions(seed=0), questions(seed=1, share=0.9)[::-1]]
    summary = summarise(*seeds, name="medqa", exclusions=exclusions, with_macro_f1=True)
    one = summary["without_excluded"]
    assert (one["excluded"], one["kept"], one["ids"]) == (15, 45, ids)
    for name, inside in (("accuracy", False), ("accuracy_of_excluded", True)):
        part = [[q for q in items if (q["id"] in ids) == inside] for items in seeds]
        right = [[q["gold"] == q["prediction"] for q in items] for items in part]
        assert one[name]["value"] == pytest.approx(sum(map(sum, right)) / sum(map(len, right)))
        assert one[name]["low"] < one[name]["value"] < one[name]["high"]
        alone = summarise(*part, name="medqa", with_macro_f1=True)
        assert one[name] == alone["accuracy"]
        assert inside or one["macro_f1"] == alone["macro_f1"]
    assert summary["accuracy"] == statistics.accuracy(*map(statistics.columns, seeds))._asdict()
    text = markdown(summary)
    for row in ("| excluded questions | 15, by ", "| accuracy of the 45 other questions |"):
        assert row in text
    assert "- Excluded: seen." in text
    plain = summarise(*seeds, name="medqa")
    assert "| without the excluded [95 %] | their n |" in table([summary, plain])
    assert "xclud" not in markdown(plain) + table([plain])


def test_all_or_none_excluded(written, questions):
    every = [one.id for one in QUESTIONS]
    for ids, kept in ((every, 0), ([], 60)):
        exclusions = read_exclusions(written(ids), QUESTIONS)
        summary = summarise(questions(), name="medqa", exclusions=exclusions)
        one = summary["without_excluded"]
        assert (one["kept"], one["accuracy"] is None) == (kept, not kept)
        assert one["accuracy_of_excluded" if not kept else "accuracy"] == summary["accuracy"]
        assert ("Every question is excluded" in markdown(summary)) == (not kept)
        assert table([summary]).count("\n") == 3
