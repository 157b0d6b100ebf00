"""report.py: the files of a report, written and read."""

import json
import math

import numpy as np
import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.qa import report
from biomedlm_jax.qa.presentation import markdown, plot, table
from biomedlm_jax.qa.summary import summarise


def test_items_round_trip(tmp_path, questions):
    items = questions()
    report.write_items(tmp_path / "items.jsonl", items)
    assert report.read_items(tmp_path / "items.jsonl") == items
    assert report.read_items(tmp_path) == items
    first = {**items[0], "scores": np.float32(items[0]["scores"]), "gold": np.int32(0)}
    report.write_items(tmp_path / "items.jsonl", [first])
    assert report.read_items(tmp_path)[0]["gold"] == 0


def test_bad_lines_name_file_and_line(tmp_path, questions):
    file = tmp_path / "items.jsonl"
    good = json.dumps(questions(1)[0])
    for bad in ('{"id": ', '{"id": "a"}', "[1]", "1", good.replace('"prediction": ', '"gold": ')):
        file.write_text(f"{good}\n{bad}\n")
        with pytest.raises(ValueError, match=r"items\.jsonl:2: "):
            report.read_items(tmp_path)
    file.write_text("")
    with pytest.raises(ValueError, match="holds no questions"):
        report.read_items(file)
    with pytest.raises(InputError):
        report.read_items(tmp_path / "absent.jsonl")


def test_report_directory(tmp_path, questions, full_summary, monkeypatch):
    monkeypatch.setattr(report, "plot", plot)  # other tests copy figures
    path, items, summary = tmp_path / "deep" / "report", questions(), full_summary
    report.write_reports(path, {"": (summary, items)})
    assert {one.name for one in path.iterdir()} == {*report.FILES, "SHA256SUMS"}
    assert [one.name for one in path.parent.iterdir()] == ["report"]
    assert report.read_items(path) == items
    assert json.loads((path / "report.json").read_text(encoding="utf-8")) == summary
    assert (path / "report.md").read_text(encoding="utf-8") == markdown(summary)
    assert (path / "reliability.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="pass --overwrite"):
        report.write_reports(path, {"": (summary, items)})
    report.write_reports(path, {"": (summary, items[:3])}, overwrite=True)
    assert len(report.read_items(path)) == 3
    broken = {**summary, "ece": math.nan}
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write_reports(path, {"": (broken, items)}, overwrite=True)
    assert len(report.read_items(path)) == 3
    assert [one.name for one in path.parent.iterdir()] == ["report"]


def test_several_reports_and_a_baseline_among_them(tmp_path, questions, full_summary):
    path, summary = tmp_path / "report", full_summary
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
    with pytest.raises(InputError, match=r"no such file: .*empty/items\.jsonl"):
        report.read_items(tmp_path / "empty")


def test_nothing_else_is_overwritten(tmp_path, questions, full_summary):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds something else, which is never overwritten"):
        report.write_reports(tmp_path, {"": (full_summary, questions())}, overwrite=True)
    assert not report.is_report(tmp_path)
    with pytest.raises(InputError, match="is a file; name a directory"):
        report.write_reports(tmp_path / "config.json", {"": (full_summary, questions())})


def test_scores_that_are_no_probabilities_are_not_called_so(tmp_path, questions):
    """Per-character scores have no ECE, no Brier score and no reliability plot."""
    items = [{**one, "probabilities": None} for one in questions()]
    summary = summarise(items, name="medqa", what="option per character")
    alike = summarise(questions(), name="medqa")
    assert summary["accuracy"] == alike["accuracy"]
    assert (summary["ece"], summary["brier"], summary["reliability"]) == (None, None, None)
    text = markdown(summary)
    assert "no log-probabilities: there is no ECE and no Brier score" in text
    assert "| calibration error" not in text
    assert table([summary]).splitlines()[-1].endswith("| - | - | - |")
    report.write_reports(tmp_path / "report", {"": (summary, items)})
    assert report.read_items(tmp_path / "report") == items
    assert {one.name for one in (tmp_path / "report").iterdir()} == {
        *report.FILES,
        "SHA256SUMS",
    } - {report.PLOT}
    report.write_reports(tmp_path / "report", {"": (alike, questions())}, overwrite=True)


def test_every_seed_is_kept(tmp_path, questions):
    seeds = [questions(seed=n) for n in range(12)]
    summary = summarise(*seeds, name="medqa")
    report.write_reports(tmp_path / "report", {"": (summary, *seeds)})
    assert report.read_seeds(tmp_path / "report") == seeds
    assert report.read_items(tmp_path / "report") == seeds[0]
    assert report.is_report(tmp_path / "report")
    assert "resamples of the questions and 12 seeds" in markdown(summary)
    file = tmp_path / "report" / report.ITEMS
    assert report.read_seeds(file) == seeds[:1]
