"""run_page.py: the curves, marks and tables of a run's page."""

import json
import math

import pytest
from lxml import html

from biomedlm_jax.files import write_json
from biomedlm_jax.interop.inspection import describe, inspect_run
from biomedlm_jax.interop.run_page import _marks, _points, run_page

NAN = float("nan")
FIGURES = {"learning_rate": 1e-3, "grad_norm": 0.5, "tokens_per_second": 1e4, "mfu": 0.4}
SECONDS = {"start": 10.0, "step": 40.0, "data": 1.0, "save": 2.0, "evaluate": 3.0}
START = {"event": "start", "processes": 1, "devices": 8, "changed": {}}
EVENTS = [
    {**START, "time": 0.0, "step": 0, "versions": {"jax": "0.10"}},
    {"time": 50.0, "event": "save", "step": 8, "seconds": SECONDS},
    {"time": 60.0, "event": "skip", "step": 9, "reason": "not finite", "loss": "nan"},
    {"time": 61.0, "event": "spike", "step": 10, "reason": "above <1>", "loss": "9"},
    {**START, "time": 100.0, "step": 8, "reached": 11, "changed": {"data.path": [None, "<x>"]}},
    {"time": 160.0, "event": "stop", "step": 12, "seconds": SECONDS},
]


def make_run(path, lines=(), events=(), **record):
    write_json(path / "run.json", {"recipe": "pretrain", "training": {"steps": 20}, **record})
    for name, values in (("metrics", lines), ("events", events)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in values))
    return path


def page_of(run):
    return html.fromstring(run_page(run, inspect_run(run)))


def rows(page, heading):
    (section,) = [one for one in page.iterfind(".//section") if one.findtext("h2") == heading]
    return [[cell.text_content() for cell in row] for row in section.iterfind(".//tbody/tr")]


def test_a_run_with_all_that_can_happen(tmp_path):
    lines = [{"step": step, "loss": 3.0 / (step + 1), **FIGURES} for step in range(1, 13)]
    lines.insert(8, {"step": 8, "train_loss": 1.0, "validation_loss": 1.5, "bits_per_byte": 0.9})
    page = page_of(make_run(tmp_path / "run", lines, EVENTS))
    assert rows(page, "Evaluations") == [["8", "1", "1.5", "0.9"]]
    starts = rows(page, "Starts and restarts")
    assert starts[1] == ["1970-01-01 00:01:40", "8", "3", "1", "8", "data.path: None -> '<x>'"]
    assert rows(page, "Skipped updates and spikes") == [
        ["9", "skip", "nan", "-", "not finite"],
        ["10", "spike", "9", "-", "above <1>"],
    ]
    assert rows(page, "Goodput")[1] == ["step", "80", "50.0 %"]
    caption = page.findtext(".//figcaption")
    assert "restarts (grey, dashed): 1, skipped updates (red): 1, spikes" in caption
    facts = dict(zip(page.xpath("//dt/text()"), page.xpath("//dd/text()"), strict=True))
    assert (facts["step"], facts["versions"]) == ("12 of 20", "jax 0.10")
    assert (facts["checkpoints"], facts["locked by"]) == ("none", "none")
    assert not page.xpath("//x | //script")


def test_page_and_terminal_name_the_same_facts(tmp_path):
    run = make_run(tmp_path / "run", [{"step": 4, "loss": NAN}], EVENTS)
    (run / "checkpoints" / "4").mkdir(parents=True)
    write_json(run / "lock.json", {"pid": 7, "host": "node<3>"})
    facts = inspect_run(run, verify=True)
    page = html.fromstring(run_page(run, facts))
    shown = [*zip(page.xpath("//dt/text()"), page.xpath("//dd/text()"), strict=True)]
    shown += rows(page, "Files, compared with their hashes")
    lines = describe(facts)
    assert lines[: len(shown)] == [f"{name}: {value}" for name, value in shown]
    assert ("locked by", "process 7 on node<3>") in shown
    assert ("checkpoints", "4 (never finished)") in shown
    assert all(
        line.startswith(("start ", "skip ", "spike ", "goodput ")) for line in lines[len(shown) :]
    )
    assert lines[-1] == page.xpath("//section[h2='Goodput']/p/text()")[0]


def test_what_is_marked_is_where_it_happened():
    assert [steps for _, _, steps, _ in _marks(EVENTS)] == [[8], [9], [10]]


def test_a_value_that_is_not_finite_leaves_a_gap():
    lines = [{"step": n, "loss": x} for n, x in enumerate((1.0, NAN, math.inf, "bad", 2.0))]
    steps, values = _points(lines, "loss")
    assert steps == [0, 1, 2, 3, 4]
    assert [n for n, x in enumerate(values) if math.isfinite(x)] == [0, 4]


@pytest.mark.parametrize(
    ("lines", "events", "figures"),
    [
        ([], [], 0),
        ([{"step": 1, "loss": 2.0}], [{"time": 0.0, "event": "start"}], 1),
        ([{"step": 1, "loss": NAN}], [], 0),
        ([{"step": 1, "loss": NAN, "learning_rate": 1e-3}], [{"time": 1, "event": "odd"}], 1),
        ([{"step": 1, "loss": 1.0}, {"step": 1, "dev_loss": NAN, "dev_accuracy": 0.5}], [], 1),
    ],
    ids=["begun", "one line", "nan only", "nan and rate", "fine-tuning"],
)
def test_runs_that_lack_something(tmp_path, lines, events, figures):
    page = page_of(make_run(tmp_path / "run", lines, events, recipe="questions", training={}))
    assert len(page.findall(".//img")) == figures


def test_the_middle_of_a_long_table_is_left_out(tmp_path):
    skips = [{**EVENTS[2], "step": step} for step in range(1, 501)]
    page = page_of(make_run(tmp_path / "run", [{"step": 1, "loss": 1.0}], skips))
    steps = [int(row[0]) for row in rows(page, "Skipped updates and spikes")]
    assert steps == [*range(1, 101), *range(401, 501)]
    assert "The first and the last 100 of 500 rows" in page.text_content()


def test_the_same_run_has_the_same_page(tmp_path):
    run = make_run(tmp_path / "run", [{"step": 1, "loss": 1.0}], EVENTS)
    assert run_page(run, inspect_run(run)) == run_page(run, inspect_run(run))
