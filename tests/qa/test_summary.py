"""summary.py: the figures of a report, against numpy."""

import json

import numpy as np
import pytest

from biomedlm_jax.qa.presentation import markdown
from biomedlm_jax.qa.summary import summarise

PUBLISHED = {"BioMedLM": 74.4, "GPT | 4": 75.2}


def test_summary(questions, full_summary):
    items, summary = questions(), full_summary
    right = [one["gold"] == one["prediction"] for one in items]
    assert summary["n"] == 60
    assert summary["truncated"] == 1
    assert summary["accuracy"]["value"] == pytest.approx(summary["seeds"]["mean"])
    alone = summarise(items, name="pubmedqa")
    assert alone["accuracy"]["value"] == pytest.approx(np.mean(right))
    assert summary["chance"] == pytest.approx(1 / 3)
    assert summary["majority_class"] == pytest.approx(1 / 3)
    assert sum(one["n"] for one in summary["reliability"]) == 60
    assert summary["published_percent"] == PUBLISHED
    assert summary["seeds"]["n"] == 3
    assert summary["seeds"]["values"][0] == pytest.approx(np.mean(right))
    assert summary["seeds"]["mean"] == pytest.approx(np.mean(summary["seeds"]["values"]))
    other = np.mean([one["gold"] == one["prediction"] for one in questions(share=0.4, seed=9)])
    difference = summary["baseline"]["difference"]["value"]
    assert difference == pytest.approx(summary["seeds"]["mean"] - other)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summarise(items, name="medqa")["macro_f1"] is None
    with pytest.raises(ValueError, match="results differ in questions"):
        summarise(items, items[1:], name="medqa")


def test_the_figures_of_several_seeds_are_means(questions):
    seeds = [questions(seed=n, share=0.3 + 0.2 * n) for n in range(3)]
    seeds[1] = seeds[1][::-1]
    alone = [summarise(one, name="t", with_macro_f1=True) for one in seeds]
    summary = summarise(*seeds, name="t", with_macro_f1=True)
    for name in ("ece", "brier", "aurc"):
        values = [one[name] for one in alone]
        assert len({*values}) == 3
        assert summary[name] == pytest.approx(np.mean(values))
    values = [one["macro_f1"]["value"] for one in alone]
    assert summary["macro_f1"]["value"] == pytest.approx(np.mean(values))
    assert summary["macro_f1"]["low"] < min(np.mean(values), *values[1:])
    assert summary["macro_f1"]["high"] > np.mean(values)
    positions = np.mean([one["predicted_positions"] for one in alone], axis=0)
    assert summary["predicted_positions"] == pytest.approx(positions)
    assert summary["reliability"] == alone[0]["reliability"]


def test_the_number_of_the_subjects_stands_beside_their_mean(questions):
    items = [{**one, "subject": "law" if n < 20 else "bones"} for n, one in enumerate(questions())]
    summary = summarise(items, name="mmlu", official_subjects=57)
    assert "| mean of 2 of 57 subjects |" in markdown(summary)


def test_chance_of_mixed_numbers_of_options(questions):
    two = {**questions(1)[0], "id": "two", "options": ["a", "b"]}
    two |= {"scores": [1.0, 1.0], "probabilities": [0.5, 0.5], "prediction": 0}
    summary = summarise([two, questions(2)[1]], name="mixed")
    assert summary["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_accuracy_by_subject(questions):
    items = [{**one, "subject": "law" if n < 20 else "bones"} for n, one in enumerate(questions())]
    seeds = [items, [{**one, "prediction": one["prediction"]} for one in reversed(items)]]
    right = [one["gold"] == one["prediction"] for one in items]
    for given in ([items], seeds):
        summary = summarise(*given, name="mmlu")
        law, bones = summary["subjects"]["law"], summary["subjects"]["bones"]
        assert [*summary["subjects"]] == ["bones", "law"]
        assert (law["n"], bones["n"]) == (20, 40)
        assert law["value"] == pytest.approx(np.mean(right[:20]))
        assert bones["value"] == pytest.approx(np.mean(right[20:]))
        assert summary["subject_mean"] == pytest.approx((law["value"] + bones["value"]) / 2)
        assert law["low"] < law["value"] < law["high"]
    text = markdown(summary)
    assert "| mean of the subjects |" in text
    assert f"| law | 20: {100 * law['value']:.1f} % [" in text
    assert summarise(questions(), name="medqa")["subjects"] == {}


def test_options_that_are_never_predicted_have_a_share():
    item = {"id": "a", "gold": 0, "prediction": 1, "scores": [-2, -1, -3], "truncated": False}
    item |= {"probabilities": [0.2, 0.7, 0.1], "options": ["x", "y", "z"]}
    summary = summarise([item], name="t")
    assert summary["predicted_positions"] == [0, 1, 0]
    assert summary["gold_positions"] == [1, 0, 0]
