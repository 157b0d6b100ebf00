"""report.py: the summary, its Markdown and the files of a report."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from biomedlm_jax.qa import report

PUBLISHED = {"BioMedLM": 74.4, "GPT | 4": 75.2}


def questions(n=60, *, share=0.6, seed=0, groups=0):
    rng = np.random.default_rng(seed)
    items = []
    for index in range(n):
        gold, options = index % 3, 3
        prediction = gold if rng.random() < share else (gold + 1) % 3
        scores = rng.normal(size=options)
        scores[prediction] = scores.max() + 0.5
        probabilities = np.exp(scores) / np.exp(scores).sum()
        items.append(
            {
                "id": f"q{index}",
                "gold": gold,
                "prediction": prediction,
                "scores": scores.tolist(),
                "probabilities": probabilities.tolist(),
                "options": ["yes", "no\u2028", "β \ud800 \0"],
                "truncated": index == 7,
                "group": f"family {index % groups}" if groups else None,
            }
        )
    return items


def full_summary():
    return report.summarise(
        questions(),
        name="pubmedqa",
        what="classifier",
        published=PUBLISHED,
        published_split="test",
        with_macro_f1=True,
        baseline=questions(share=0.4, seed=9),
        baseline_name="not pre-trained",
        seeds=[questions(), questions(seed=1), questions(seed=2)],
    )


def test_items_round_trip(tmp_path):
    items = questions()
    report.write_items(tmp_path / "items.jsonl", items)
    assert report.read_items(tmp_path / "items.jsonl") == items
    assert report.read_items(tmp_path) == items
    first = {**items[0], "scores": np.float32(items[0]["scores"]), "gold": np.int32(0)}
    report.write_items(tmp_path / "items.jsonl", [first])
    assert report.read_items(tmp_path)[0]["gold"] == 0


def test_bad_lines_name_file_and_line(tmp_path):
    file = tmp_path / "items.jsonl"
    good = json.dumps(questions(1)[0])
    for bad in ('{"id": ', '{"id": "a"}', "[1]", "1", good.replace('"prediction": ', '"gold": ')):
        file.write_text(f"{good}\n{bad}\n")
        with pytest.raises(ValueError, match=r"items\.jsonl:2: "):
            report.read_items(tmp_path)
    file.write_text("")
    with pytest.raises(ValueError, match="holds no questions"):
        report.read_items(file)
    with pytest.raises(FileNotFoundError):
        report.read_items(tmp_path / "absent.jsonl")


def test_summary():
    items, summary = questions(), full_summary()
    right = [one["gold"] == one["prediction"] for one in items]
    assert summary["n"] == 60
    assert summary["truncated"] == 1
    assert summary["accuracy"]["value"] == pytest.approx(summary["seeds"]["mean"])
    alone = report.summarise(items, name="pubmedqa")
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
    assert report.summarise(items, name="medqa")["macro_f1"] is None
    with pytest.raises(ValueError, match="results differ in questions"):
        report.summarise(items, name="medqa", seeds=[items, items[1:]])


def test_chance_of_mixed_numbers_of_options():
    two = {**questions(1)[0], "id": "two", "options": ["a", "b"]}
    two |= {"scores": [1.0, 1.0], "probabilities": [0.5, 0.5], "prediction": 0}
    summary = report.summarise([two, questions(2)[1]], name="mixed")
    assert summary["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_markdown_of_a_full_summary():
    summary = full_summary()
    text = report.markdown(summary)
    score = summary["accuracy"]
    value, low, high = (f"{100 * score[name]:.1f}" for name in ("value", "low", "high"))
    assert text.startswith("# pubmedqa: classifier\n")
    assert "| questions | 60 (1 truncated) |" in text
    assert f"| accuracy | {value} % [{low}, {high}] |" in text
    assert "| macro-F1 (first seed) |" in text
    alone = report.summarise(questions(), name="pubmedqa", with_macro_f1=True)
    assert "| macro-F1 |" in report.markdown(alone)
    assert "| published: BioMedLM | 74.4 % |" in text
    assert r"| published: GPT \| 4 | 75.2 % |" in text
    assert "on the test split" in text
    assert "mean ± s.d. of 3 seeds" in text
    assert "| difference to not pre-trained, in points |" in text
    assert "| exact permutation test of questions, two-sided |" in text
    one = report.summarise(questions(), name="pubmedqa", baseline=questions(seed=9))
    assert "McNemar's exact test" in report.markdown(one)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in rows} == {3}


def test_the_size_of_the_official_split_stands_beside_another_one():
    for official, shown in ((1_273, True), (60, False), (None, False)):
        summary = report.summarise(questions(), name="medqa", official=official)
        assert summary["official_n"] == official
        assert ("The official split has 1,273 questions" in report.markdown(summary)) == shown
        assert ("official" in report.markdown(summary)) == shown


def test_groups_are_counted_and_resampled():
    items, baseline = questions(groups=8), questions(share=0.4, seed=9)
    summary = report.summarise(items, name="small world", baseline=baseline)
    alone = report.summarise(questions(), name="small world", baseline=baseline)
    assert (summary["groups"], alone["groups"]) == (8, None)
    assert summary["accuracy"]["value"] == alone["accuracy"]["value"]
    assert summary["accuracy"] != alone["accuracy"]
    text = report.markdown(summary)
    assert "| questions | 60 in 8 groups (1 truncated) |" in text
    assert "resamples of the 8 groups of questions" in text
    assert "fewer than 20 groups" in text
    assert "| exact permutation test of groups, two-sided | p = 0." in text
    assert "| this model | 60 in 8 groups |" in report.table([summary])
    assert "group" not in report.markdown(alone)


def test_markdown_names_what_the_intervals_do_not_show():
    guesses = report.summarise(questions(share=1 / 3, seed=1), name="medqa")
    assert "does not differ from guessing" in report.markdown(guesses)
    perfect = report.summarise(questions(5, share=1), name="medqa")
    assert "has no uncertainty where all" in report.markdown(perfect)
    # Of classes 0, 1 and 2 the last is relabelled 0: two thirds are right, as always giving 0 is.
    uneven = [{**one, "gold": one["gold"] % 2} for one in questions(share=1)]
    text = report.markdown(report.summarise(uneven, name="medqa"))
    assert "not reliably above always giving the most common class" in text


def test_table_side_by_side():
    summaries = [full_summary(), report.summarise(questions(9), name="pubmedqa", what="a|b")]
    lines = report.table(summaries).splitlines()
    assert lines[0] == "| what | n | accuracy [95 %] | macro-F1 [95 %] | ECE | Brier |"
    assert lines[2].startswith("| classifier | 60 | ")
    assert lines[3].startswith(r"| a\|b | 9 | ")
    summaries[1]["task"] = "medqa"
    assert "| medqa: a" in report.table(summaries)


def test_report_directory(tmp_path):
    path, items, summary = tmp_path / "deep" / "report", questions(), full_summary()
    report.write_reports(path, {"": (summary, items)})
    assert {one.name for one in path.iterdir()} == set(report.FILES)
    assert [one.name for one in path.parent.iterdir()] == ["report"]
    assert report.read_items(path) == items
    assert json.loads((path / "report.json").read_text(encoding="utf-8")) == summary
    assert (path / "report.md").read_text(encoding="utf-8") == report.markdown(summary)
    assert (path / "reliability.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        report.write_reports(path, {"": (summary, items)})
    report.write_reports(path, {"": (summary, items[:3])}, overwrite=True)
    assert len(report.read_items(path)) == 3
    broken = {**summary, "ece": math.nan}
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write_reports(path, {"": (broken, items)}, overwrite=True)
    assert len(report.read_items(path)) == 3
    assert [one.name for one in path.parent.iterdir()] == ["report"]


def test_several_reports_and_a_baseline_among_them(tmp_path):
    path, summary = tmp_path / "report", full_summary()
    reports = {"letter": (summary, questions()), "option per token": (summary, questions(3))}
    report.write_reports(path, reports)
    assert report.is_report(path)
    assert len(report.read_items(path / "letter")) == 60
    assert len(report.read_items(path, way="option per token")) == 3
    for way in ("", "classifier"):
        with pytest.raises(
            ValueError, match=r"holds 2 reports; fix: name .*letter or .*per_token$"
        ):
            report.read_items(path, way=way)
    assert len(report.read_items(path / "letter", way="option per token")) == 60
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no such file: .*empty/items\.jsonl"):
        report.read_items(tmp_path / "empty")


def test_nothing_else_is_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds something else, which is never overwritten"):
        report.write_reports(tmp_path, {"": (full_summary(), questions())}, overwrite=True)
    assert not report.is_report(tmp_path)
    with pytest.raises(NotADirectoryError, match="is a file; name a directory"):
        report.write_reports(tmp_path / "config.json", {"": (full_summary(), questions())})


def test_neither_jax_nor_matplotlib_is_imported():
    code = (
        "import sys, biomedlm_jax.qa.report; print({'jax', 'matplotlib'} & {name for name in "
        "sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_scores_that_are_no_probabilities_are_not_called_so(tmp_path):
    """Per-character scores have no ECE, no Brier score and no reliability plot."""
    items = [{**one, "probabilities": None} for one in questions()]
    summary = report.summarise(items, name="medqa", what="option per character")
    alike = report.summarise(questions(), name="medqa")
    assert summary["accuracy"] == alike["accuracy"]
    assert (summary["ece"], summary["brier"], summary["reliability"]) == (None, None, None)
    text = report.markdown(summary)
    assert "no log-probabilities: there is no ECE and no Brier score" in text
    assert "| calibration error" not in text
    assert report.table([summary]).splitlines()[-1].endswith("| - | - | - |")
    report.write_reports(tmp_path / "report", {"": (summary, items)})
    assert report.read_items(tmp_path / "report") == items
    assert {one.name for one in (tmp_path / "report").iterdir()} == {*report.FILES} - {report.PLOT}
    report.write_reports(tmp_path / "report", {"": (alike, questions())}, overwrite=True)


def test_every_seed_is_kept(tmp_path):
    seeds = [questions(seed=n) for n in range(12)]
    summary = report.summarise(seeds[0], name="medqa", seeds=seeds)
    report.write_reports(tmp_path / "report", {"": (summary, *seeds)})
    assert report.read_seeds(tmp_path / "report") == seeds
    assert report.read_items(tmp_path / "report") == seeds[0]
    assert report.is_report(tmp_path / "report")
    assert "resamples of the questions and 12 seeds" in report.markdown(summary)
    file = tmp_path / "report" / report.ITEMS
    assert report.read_seeds(file) == seeds[:1]


def test_accuracy_by_subject():
    items = [{**one, "subject": "law" if n < 20 else "bones"} for n, one in enumerate(questions())]
    seeds = [items, [{**one, "prediction": one["prediction"]} for one in reversed(items)]]
    right = [one["gold"] == one["prediction"] for one in items]
    for given in (None, seeds):
        summary = report.summarise(items, name="mmlu", seeds=given)
        law, bones = summary["subjects"]["law"], summary["subjects"]["bones"]
        assert [*summary["subjects"]] == ["bones", "law"]
        assert (law["n"], bones["n"]) == (20, 40)
        assert law["value"] == pytest.approx(np.mean(right[:20]))
        assert bones["value"] == pytest.approx(np.mean(right[20:]))
        assert summary["subject_mean"] == pytest.approx((law["value"] + bones["value"]) / 2)
        assert law["low"] < law["value"] < law["high"]
    text = report.markdown(summary)
    assert "| mean of the subjects |" in text
    assert f"| law | 20: {100 * law['value']:.1f} % [" in text
    assert report.summarise(questions(), name="medqa")["subjects"] == {}


def test_the_risk_coverage_curve_is_printed():
    items = questions()
    summary = report.summarise(items, name="medqa")
    last = summary["risk_coverage"][-1]
    wrong = np.mean([one["gold"] != one["prediction"] for one in items])
    assert (last["coverage"], last["risk"]) == (1, pytest.approx(wrong))
    assert f"| 100 % answered, {100 * wrong:.1f} % of them wrong |" in report.markdown(summary)
