"""html_report.py: what the pages of reports show."""

import json

import pytest
from lxml import html

from biomedlm_jax.html_page import Listing
from biomedlm_jax.qa.html_report import _worst, overview_page, report_page, versus_page
from biomedlm_jax.qa.questions import Question
from biomedlm_jax.qa.summary import summarise

PNG = b"\x89PNG\r\n\x1a\n"


def tables(page, section):
    """The cells of the table of the section whose heading begins so."""
    (there,) = [one for one in page.iterfind(".//section") if section in one.findtext("h2")]
    rows = there.iterfind(".//tr")
    return [[cell.text_content() for cell in row] for row in rows]


def through_json(summary):
    return json.loads(json.dumps(summary))


def test_a_page_has_what_the_summary_has(full_summary):
    page = html.fromstring(report_page(through_json(full_summary), PNG))
    headings = [one.text for one in page.iterfind(".//h2")]
    assert headings == [
        "Result",
        "Calibration of the first seed",
        "Confusion of the first seed",
        "Most confident wrong answers of the first seed",
        "Left out, cut or indistinct",
    ]
    figures = dict(tables(page, "Result"))
    assert figures["published: GPT | 4"] == "75.2 %"
    assert figures["calibration error (ECE)"] == f"{full_summary['ece']:.3f}"
    assert "difference to not pre-trained, in points" in figures
    assert page.find(".//img") is not None
    assert not any("| " in one.text for one in page.iterfind(".//p"))


def test_the_confusion_counts_every_answer(questions):
    items = questions(90)
    page = html.fromstring(report_page(summarise(items, name="t", with_macro_f1=True), PNG))
    head, *rows = tables(page, "Confusion")
    for gold, row in enumerate(rows):
        of_gold = [one["prediction"] for one in items if one["gold"] == gold]
        assert row[1:4] == [str(of_gold.count(answer)) for answer in range(3)]
        assert row[4] == f"{100 * of_gold.count(gold) / len(of_gold):.1f} %"
    assert head[1:4] == ["yes", "no\u2028", r"β \ud800 \0"]


def test_the_worst_answers_are_the_most_confident_wrong_ones(questions):
    items = questions(60)
    texts = [Question(one["id"], f"Is <b>{one['id']}</b>?", ("a", "b", "c"), 0) for one in items]
    summary = through_json(summarise(items, name="t", questions=texts))
    wrong = [one for one in items if one["gold"] != one["prediction"]]
    wrong.sort(key=lambda one: -one["probabilities"][one["prediction"]])
    assert [one["id"] for one in summary["worst"]] == [one["id"] for one in wrong[:20]]
    page = html.fromstring(report_page(summary, PNG))
    assert not page.xpath("//b")
    first = page.findtext(".//pre").split("\n")
    assert first[0] == f"Is <b>{wrong[0]['id']}</b>?"
    assert first[2 + wrong[0]["prediction"]].endswith("<- answer")
    assert first[2 + wrong[0]["gold"]].endswith("<- gold")
    # Without probabilities: by the score above that of the gold option, computed here by hand.
    items = [{**one, "probabilities": None} for one in items]
    listed = summarise(items, name="t")["worst"]
    margin = max(one["scores"][one["prediction"]] - one["scores"][one["gold"]] for one in wrong)
    assert listed[0]["confidence"] == pytest.approx(margin)
    parts = _worst(listed)
    assert isinstance(parts[1], Listing)
    assert "probability" not in parts[1].text


def test_predictions_without_gold_labels_have_a_page(questions):
    items = [{**one, "gold": None} for one in questions(5)]
    page = html.fromstring(report_page(through_json(summarise(items, name="t")), None))
    assert [one.text for one in page.iterfind(".//h2")] == ["Result"]
    assert "without a score" in page.text_content()


def test_subjects_groups_and_what_was_skipped(questions):
    items = questions(60)
    for number, item in enumerate(items):
        item |= {"subject": f"<s{number % 2}>", "group": f"g{number // 6}"}
    summary = summarise(
        items,
        name="t",
        skipped={"left_out": {"no & answer": ["x1", "x2"]}, "places": {}},
        provenance={
            "models": [{"path": "run/<m>", "weights": "w" * 64}],
            "questions": {"path": "d", "hash": "h", "limit": None},
            "command": "biomedlm evaluate",
        },
    )
    page = html.fromstring(report_page(through_json(summary), PNG))
    assert [row[:2] for row in tables(page, "By subject")[1:]] == [["<s0>", "30"], ["<s1>", "30"]]
    assert ["left out: no & answer", "2: x1, x2"] in tables(page, "Left out")
    facts = dict(zip(page.xpath("//dt/text()"), page.xpath("//dd/text()"), strict=True))
    assert (facts["groups"], facts["model"], facts["data"]) == ("10", "run/<m>", "d: h")


def test_the_overview_names_the_folder_of_each_way(questions):
    summaries = {
        "letter": summarise(questions(), name="medqa", what="m, letter"),
        "option_per_token": summarise(questions(seed=1), name="medqa", what="m, option per token"),
    }
    page = html.fromstring(overview_page(through_json(summaries)))
    rows = tables(page, "Ways")
    assert [row[0] for row in rows] == ["what", "m, letter", "m, option per token"]
    links = [(e.text, e.get("href")) for e in page.iterfind(".//td/a")]
    assert links[1] == ("option_per_token", "option_per_token/report.html")


def test_a_model_and_its_base(comparison):
    page = html.fromstring(versus_page(through_json(comparison)))
    rows = tables(page, "Result")
    assert rows[1][:2] == ["base: b|ase", "letter"]
    assert rows[3][3] == "+5.0 [-5.0, +15.0], p < 0.001"
    assert ["option", "30.0 % [20.0, 40.0]", "60.0 % [50.0, 70.0], chosen"] in tables(page, "All")
    assert "**" not in page.text_content()
    # The result comes first, and both reports are one click away.
    assert page.findtext(".//dd") == "+5.0 [-5.0, +15.0], p < 0.001"
    links = {e.get("href"): e.text for e in page.iterfind(".//section//p/a")}
    assert links == {
        "base/report.html": "Report of the base: b|ase",
        "model/report.html": "Report of the model: child",
    }


def test_questions_with_different_answers_are_listed(comparison):
    page = html.fromstring(versus_page(through_json(comparison)))
    (section,) = page.xpath("//section[h2='Questions with different answers']")
    assert [one.text for one in section.iterfind("p")] == [
        "Only the model is right: 30 questions, the first 2 of them listed.",
        "Only the base is right: 0 questions.",
        "Both are wrong, with different answers: 0 questions.",
    ]
    line = "q1: Which <drug>? [gold: c; model: c; base: a & b]"
    assert section.findtext("details/summary") == line
    assert section.findtext("details/pre").splitlines() == [
        "Which <drug>?",
        "",
        "A. a & b <- base",
        "B. c <- gold, model",
    ]
    comparison["disagreements"]["only_model"] = {"n": 0, "listed": []}
    assert "different answers" not in versus_page(through_json(comparison))
