"""versus_table.py: what the Markdown of a comparison states."""

import copy

import pytest

from biomedlm_jax.qa.versus_table import versus_markdown


def interval(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


@pytest.fixture
def result(comparison):
    return comparison


def test_one_table_has_both_models_and_the_difference(result):
    lines = versus_markdown(result).splitlines()
    assert lines[0] == "# medqa, test: a model against its base"
    assert lines[2:7] == [
        "|  | setting, chosen on dev | accuracy on dev [95 %] | accuracy on test [95 %] |",
        "| :-- | :-- | --: | --: |",
        r"| base: b\|ase | letter | 40.0 % [30.0, 50.0] | 50.0 % [40.0, 60.0] |",
        "| model: child | option | 60.0 % [50.0, 70.0] | 50.0 % [40.0, 60.0] |",
        "| model minus base, in points |  |  | **+5.0 [-5.0, +15.0]**, p < 0.001 |",
    ]


def test_it_states_how_settings_were_chosen_and_lists_all_on_dev(result):
    text = versus_markdown(result)
    for part in (
        "its result is the one answer to test with that.",
        "As accurate for the model on dev: letter, chat template.",
        "1 question of dev also scored, or shots, did not choose.",
        "The base has no chat template, so it has fewer settings.",
        "9 only the model answers right, 7 only the base.",
        "McNemar's exact test, two-sided: p < 0.001",
        "The model has no training record",
        "## All settings on dev (20 questions)",
        "| letter | **40.0 % [30.0, 50.0], chosen** | 30.0 % [20.0, 40.0] |",
        "| option | 30.0 % [20.0, 40.0] | **60.0 % [50.0, 70.0], chosen** |",
        "| letter, chat template | - | 60.0 % [50.0, 70.0] |",
        "| questions of dev | d: h-dev |",
    ):
        assert part in text
    assert "not chosen" not in text


def test_other_settings_on_the_scored_split_are_no_results(result):
    result["models"]["model"]["not_chosen"] = {"letter": interval(0.7)}
    text = versus_markdown(result)
    part = text.partition("## The other settings on test: not chosen\n")[2]
    assert "Not chosen, and no result" in part
    assert "| letter | - | 70.0 % [60.0, 80.0] |" in part
    assert "70.0 %" not in text.partition("## The other settings")[0].partition("## All")[0]


def test_what_a_reader_must_know_of_other_cases(result):
    other = copy.deepcopy(result)
    other |= {"chosen_on": None, "not_chosen_because": "x has no dev split", "groups": 9}
    other |= {"base_in_record": False}
    other["provenance"]["questions"]["limit"] = 40
    for of in other["models"].values():
        of |= {"dev": {}, "tied": [], "setting": "letter", "macro_f1": interval(0.3)}
        of |= {"truncated": 2, "trained_on": True, "chose_checkpoint": True}
    text = versus_markdown(other)
    for part in (
        "| setting, not chosen | accuracy on test [95 %] | macro-F1 [95 %] |",
        "The settings were not chosen: x has no dev split. The first of the list was used.",
        "resamples of the 9 groups of questions",
        "With fewer than 20 groups",
        "Only the first 40 of 40 were scored.",
        "Cut to fit the base: 2 questions.",
        "The model was trained on test: its accuracy is none of new questions.",
        "test chose the checkpoint of the base: it is biased upwards.",
        "The model's training record does not have the weights of the base.",
    ):
        assert part in text
    assert "All settings on" not in text
