import copy

import pytest
from lxml import html

from biomedlm_jax.benchmarks import speed_page

CALLS = {"quartile_seconds": [0.9, 1.2], "fastest_seconds": 0.8, "first_seconds": 3.0}
CALLS |= {"compile_seconds": 2.0, "seconds": [1.0, 1.1]}
TRAIN = {
    "biomedlm_jax": {"median_seconds": 1.0, **CALLS, "tokens_per_second": 2048.0, "ratio": 1.0},
    "torch sdpa": {"median_seconds": 1.5, **CALLS, "tokens_per_second": 1365.0, "ratio": 1.5},
    "torch eager": {"median_seconds": 2.0, **CALLS, "tokens_per_second": 1024.0, "ratio": 2.0},
}
PARTS = {"biomedlm_jax": {"forward_seconds": 0.2, "backward_seconds": 0.5, "update_seconds": 0.3}}
SHARES = {"biomedlm_jax": {"gflops_per_second": 140.0, "share_6N": 0.631, "share_b": 0.7}}
MEMORY = {"biomedlm_jax": {"after_imports_gb": 0.4, "peak_gb": 1.25}}
REPORT = {
    "started": "2026-11-28T12:00:00+00:00",
    "command": "biomedlm bench train --out=<x>",
    "complete": True,
    "seconds": 90.0,
    "cores": 2,
    "load_before": 0.5,
    "load_after": None,
    "results": {
        "train": {
            "work": "1,000 parameters",
            "machine": "AMD, 2 cores, load 3.2, cpu",
            "versions": {"jax": "0.10.2", "torch": "2.13.0"},
            "notes": ["no peak known for cpu; measured", "energy: no counters"],
            "errors": [],
            "tables": {
                "train": TRAIN,
                "parts of a step": PARTS,
                "utilisation of FLOPs": SHARES,
                "peak memory": MEMORY,
            },
            "load_before": 0.5,
            "load_after": 2.0,
        }
    },
}


@pytest.fixture
def page(tmp_path, monkeypatch):
    def write(report, *, plots=False):
        if not plots:  # they take most of the time
            monkeypatch.setattr(speed_page, "plots", lambda results: ())
        speed_page.write_page(report, tmp_path)
        return html.fromstring((tmp_path / "index.html").read_text())

    return write


def rows(table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.xpath(".//tr")]


def test_the_page_has_every_figure(page, tmp_path):
    root = page(REPORT, plots=True)
    facts = dict(zip(root.xpath("//dt/text()"), root.xpath("//dd/text()"), strict=True))
    assert facts["machine"] == "AMD, 2 cores, cpu"
    assert facts["load average before and after"] == "0.5 and -"
    assert facts["versions"] == "jax 0.10.2, torch 2.13.0"
    assert facts["command"] == REPORT["command"]
    summary, train, parts, shares, memory, published, planned = root.xpath("//table")
    figures = ["train", "tokens", "2,048", "torch sdpa", "1,365", "1.50"]
    assert rows(summary)[1] == figures
    head, ours, *_ = rows(train)
    assert head[:5] == ["side", "median, s", "quartiles, s", "compile, s", "tokens/s"]
    assert ours[:5] == ["biomedlm_jax", "1", "0.9 to 1.2", "2", "2,048"]
    assert rows(parts)[0][1:] == ["forward, s", "backward, s", "update, s"]
    assert rows(shares)[1][1:] == ["140", "63.1 %", "70.0 %"]
    assert rows(shares)[0][2] == "share, 6N"  # not MFU: of a measured peak
    assert rows(memory)[1] == ["biomedlm_jax", "0.4", "1.25"]
    assert "not measured here" in root.xpath("string(//body)")
    assert [row[2:4] for row in rows(published)[1:3]] == [["4,340", "23.1 %"], ["27,046", "46.2 %"]]
    assert rows(planned)[1][3] == "0.391"
    assert len(root.xpath("//img")) == 4
    text = (tmp_path / "bench.md").read_text()
    for name in ("speed", "step", "utilisation", "memory"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
        assert f"({name}.png)" in text
    assert "| torch sdpa | 1.5 | 0.9 to 1.2 |" in text


def test_errors_are_in_the_summary_and_in_their_section(page):
    report = copy.deepcopy(REPORT)
    report["results"]["train"]["errors"] = ["torch sdpa: losses differ by 0.2"]
    line = "torch sdpa: losses differ by 0.2"
    texts = page(report).xpath("//p/text()")
    assert f"error: Training step: {line}" in texts
    assert f"error: {line}" in texts
    assert not any("agree" in text for text in texts)


@pytest.mark.parametrize(("load", "busy"), [(2.4, False), (3.7, True), (None, False)])
def test_a_load_above_the_cores_is_told(page, load, busy):
    report = copy.deepcopy(REPORT)
    report["results"]["train"]["load_after"] = load
    texts = page(report).xpath("//p/text()")
    assert any("the load average rose to 3.7 on 2 cores" in text for text in texts) == busy


def test_without_a_peer_there_is_no_ratio(page):
    report = copy.deepcopy(REPORT)
    sides = report["results"]["train"]["tables"]["train"]
    del sides["torch sdpa"], sides["torch eager"]
    summary = page(report).xpath("//table")[0]
    assert rows(summary)[1] == ["train", "tokens", "2,048", "none", "-", "-"]
    assert "agree" not in page(report).xpath("string(//body)")
