"""presentation.py: what the Markdown and the table of a summary state."""

import subprocess
import sys

import numpy as np
import pytest

from biomedlm_jax.qa.presentation import markdown, table
from biomedlm_jax.qa.summary import summarise


def test_markdown_of_a_full_summary(questions, full_summary):
    summary = full_summary
    text = markdown(summary)
    score = summary["accuracy"]
    value, low, high = (f"{100 * score[name]:.1f}" for name in ("value", "low", "high"))
    assert text.startswith("# pubmedqa: classifier\n")
    assert "| questions | 60 (1 truncated) |" in text
    assert f"| accuracy | {value} % [{low}, {high}] |" in text
    assert "All scores are means of the seeds" in text
    assert "## Risk and coverage of the first seed" in text
    alone = summarise(questions(), name="pubmedqa", with_macro_f1=True)
    assert "| macro-F1 |" in markdown(alone)
    assert "first seed" not in markdown(alone)
    assert "| published: BioMedLM | 74.4 % |" in text
    assert r"| published: GPT \| 4 | 75.2 % |" in text
    assert "on the test split" in text
    assert "mean ± s.d. of 3 seeds" in text
    assert "| difference to not pre-trained, in points |" in text
    assert "| exact permutation test of questions, two-sided |" in text
    one = summarise(questions(), name="pubmedqa", baseline=[questions(seed=9)])
    assert "McNemar's exact test" in markdown(one)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in rows} == {3}


def test_the_size_of_the_official_split_stands_beside_another_one(questions):
    for official, shown in ((1_273, True), (60, False), (None, False)):
        summary = summarise(questions(), name="medqa", official=official)
        assert summary["official_n"] == official
        assert ("The official split has 1,273 questions" in markdown(summary)) == shown
        assert ("official" in markdown(summary)) == shown


def test_groups_are_counted_and_resampled(questions):
    items, baseline = questions(groups=8), questions(share=0.4, seed=9)
    summary = summarise(items, name="small world", baseline=[baseline])
    alone = summarise(questions(), name="small world", baseline=[baseline])
    assert (summary["groups"], alone["groups"]) == (8, None)
    assert summary["accuracy"]["value"] == alone["accuracy"]["value"]
    assert summary["accuracy"] != alone["accuracy"]
    text = markdown(summary)
    assert "| questions | 60 in 8 groups (1 truncated) |" in text
    assert "resamples of the 8 groups of questions" in text
    assert "fewer than 20 groups" in text
    assert "| exact permutation test of groups, two-sided | p = 0." in text
    assert "| this model | 60 in 8 groups |" in table([summary])
    assert "group" not in markdown(alone)


def test_markdown_names_what_the_intervals_do_not_show(questions):
    guesses = summarise(questions(share=1 / 3, seed=1), name="medqa")
    assert "is not shown to differ from guessing" in markdown(guesses)
    perfect = summarise(questions(5, share=1), name="medqa")
    assert "has no uncertainty where all" in markdown(perfect)
    # Of classes 0, 1 and 2 the last is relabelled 0: two thirds are right, as always giving 0 is.
    uneven = [{**one, "gold": one["gold"] % 2} for one in questions(share=1)]
    text = markdown(summarise(uneven, name="medqa"))
    assert "not reliably above always giving the most common class" in text


def test_table_side_by_side(questions, full_summary):
    full_summary["baseline"] = None
    summaries = [full_summary, summarise(questions(9), name="pubmedqa", what="a|b")]
    lines = table(summaries).splitlines()
    assert lines[0] == "| what | n | accuracy [95 %] | macro-F1 [95 %] | ECE | Brier |"
    assert lines[2].startswith("| classifier | 60 | ")
    assert lines[3].startswith(r"| a\|b | 9 | ")
    summaries[1]["task"] = "medqa"
    assert "| medqa: a" in table(summaries)


def test_the_table_has_the_difference_to_the_baseline(questions):
    """By hand: 3 of 9 questions are right only here, none only there: p = 2 / 2^3."""
    items = [{**one, "prediction": one["gold"]} for one in questions(9, share=1)]
    other = [*questions(3, share=0), *items[3:]]
    with_one = summarise(items, name="medqa", baseline=[other])
    without = summarise(items, name="medqa", what="letter")
    lines = table([with_one, without]).splitlines()
    assert lines[0].endswith("| Brier | to the baseline [95 %] | p |")
    assert lines[1].count("--") == 8
    one = with_one["baseline"]["difference"]
    ends = f"[{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
    assert lines[2].endswith(f"| +33.3 {ends} | p = 0.250 |")
    assert lines[3].endswith("| - | - |")


def test_a_temperature_that_is_no_fit_is_marked(questions):
    figures = {"name": "dev", "temperature": 100.0, "threshold": None, "risk": 0.2}
    figures |= {"ece": 0.1, "brier": 0.1, "coverage": 0.0, "accuracy_of_given": None}
    for at_limit in (True, False):
        summary = summarise(questions(), name="t", calibrated={**figures, "at_limit": at_limit})
        assert ("100.000 (a limit of the search: no fit) |" in markdown(summary)) == at_limit


def test_neither_jax_nor_matplotlib_is_imported():
    code = (
        "import sys, biomedlm_jax.qa.report; print({'jax', 'matplotlib'} & {name for name in "
        "sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_risk_coverage_curve_is_printed(questions):
    items = questions()
    summary = summarise(items, name="medqa")
    last = summary["risk_coverage"][-1]
    wrong = np.mean([one["gold"] != one["prediction"] for one in items])
    assert (last["coverage"], last["risk"]) == (1, pytest.approx(wrong))
    assert f"| 100 % answered, {100 * wrong:.1f} % of them wrong |" in markdown(summary)
