import json

import pytest

from biomedlm_jax.benchmarks.bench_all import is_comparison, measure_all
from biomedlm_jax.benchmarks.rounds import alternate, summarise_timings
from biomedlm_jax.errors import InputError


def measure() -> dict:
    timings = alternate({"biomedlm_jax": lambda: sum(range(99)), "peer": lambda: 0}, rounds=2)
    table = summarise_timings(timings, "mb", 8.0)
    return {"work": "w", "machine": "m", "versions": {"jax": "1"}, "tables": {"convert": table}}


def interrupt() -> dict:
    alternate({"biomedlm_jax": lambda: 0}, rounds=1)
    raise KeyboardInterrupt


def fail() -> dict:
    raise InputError("expected memory, got none")


def read(out) -> tuple[dict, list[dict]]:
    lines = (out / "rounds.jsonl").read_text().splitlines()
    return json.loads((out / "bench.json").read_text()), list(map(json.loads, lines))


def test_all_files_are_written_and_a_failure_is_a_line(tmp_path):
    out = tmp_path / "out"
    report = measure_all({"convert": measure, "load": fail}, out, command="biomedlm bench all")
    stored, rounds = read(out)
    assert stored == report
    assert stored["complete"]
    assert stored["results"]["load"]["errors"] == ["expected memory, got none"]
    assert [(r["kind"], r["round"], r["side"]) for r in rounds] == [
        ("convert", number, side) for number in (0, 1, 2) for side in ("biomedlm_jax", "peer")
    ]
    assert {path.name for path in out.iterdir()} == {
        *("bench.json", "bench.md", "index.html", "rounds.jsonl", "speed.png")
    }
    for name in ("index.html", "bench.md"):
        text = (out / name).read_text()
        assert "error: Loading: expected memory, got none" in text
        assert "biomedlm bench all" in text


def test_a_crash_of_one_leaves_the_others(tmp_path, capsys):
    def crash():
        raise RuntimeError("the peer has no kernel")

    report = measure_all({"train": crash, "convert": measure}, tmp_path / "out")
    assert report["results"]["train"] == {
        "errors": ["RuntimeError: the peer has no kernel"],
        **{key: report["results"]["train"][key] for key in ("load_before", "load_after")},
    }
    assert "tables" in report["results"]["convert"]
    assert "Traceback" in capsys.readouterr().err
    page = (tmp_path / "out" / "index.html").read_text()
    assert "error: Training step: RuntimeError: the peer has no kernel" in page


def test_ctrl_c_keeps_what_has_ended(tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as error:
        measure_all({"convert": measure, "load": interrupt, "train": fail}, out)
    assert error.value.saved
    stored, rounds = read(out)
    assert not stored["complete"]
    assert list(stored["results"]) == ["convert"]
    assert rounds[-1]["kind"] == "load"
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"interrupted after convert; {out} keeps index.html, bench.md, bench.json, rounds.jsonl; "
        "--overwrite starts anew"
    )
    assert "interrupted; the finished parts follow" in (out / "index.html").read_text()


def test_only_a_comparison_is_overwritten(tmp_path):
    out = tmp_path / "out"
    measure_all({"convert": measure}, out)
    assert is_comparison(out)
    with pytest.raises(ValueError, match="pass --overwrite"):
        measure_all({"convert": measure}, out)
    (out / "step.png").touch()  # of an earlier comparison
    measure_all({}, out, overwrite=True)
    assert json.loads((out / "bench.json").read_text())["results"] == {}
    assert not (out / "step.png").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="holds something else"):
        measure_all({"convert": measure}, tmp_path / "other", overwrite=True)
