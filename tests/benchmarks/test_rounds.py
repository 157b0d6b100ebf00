import importlib.metadata
import json
import re

import pytest

from biomedlm_jax.benchmarks.rounds import (
    Timing,
    alternate,
    available_peers,
    benchmark_header,
    compare_first,
    print_result,
    recorded,
    summarise_timings,
    unequal,
)
from biomedlm_jax.model.gpt2 import GPT2Config


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the sides advance."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.process_time", lambda: 2 * now[0])
    return now


def test_rounds_alternate_after_one_call_that_compiles(clock):
    order = []

    def side(name: str, seconds: float):
        def run() -> str:
            order.append(name)
            clock[0] += seconds * len(order)
            return f"{name}{len(order)}"

        return run

    timings = alternate({"a": side("a", 1.0), "b": side("b", 2.0)}, rounds=2, calls=2, warmup=1)
    assert "".join(order) == "aabb" + "aabb" * 2
    assert timings["a"].first == "a1"
    assert timings["a"].first_seconds == 1.0
    assert timings["a"].seconds == [5.0, 6.0, 9.0, 10.0]
    assert timings["b"].cpu_seconds == [4 * n for n in (7, 8, 11, 12)]
    table = summarise_timings(timings, "tokens", 15.0, "a")
    assert table["a"]["median_seconds"] == 7.5
    assert table["a"]["tokens_per_second"] == 2.0
    assert table["a"]["ratio"] == 1.0
    assert table["b"]["ratio"] == 19 / 7.5
    assert table["b"]["fastest_seconds"] == 14.0
    assert table["a"]["quartile_seconds"] == [5.75, 9.25]
    assert table["b"]["compile_seconds"] == 0


def test_rounds_are_recorded_as_they_end(tmp_path):
    file = tmp_path / "rounds.jsonl"
    with recorded(file, kind="train"):
        alternate({"a": lambda: 0}, rounds=1, calls=2, case="batch 1")
    alternate({"a": lambda: 0}, rounds=1)
    first, second = map(json.loads, file.read_text().splitlines())
    assert (first["kind"], first["case"], first["round"], first["side"]) == (
        *("train", "batch 1", 0, "a"),
    )
    assert (second["round"], len(second["seconds"])) == (1, 2)


def test_a_peer_that_fails_at_first_is_left_out():
    def fail():
        raise RuntimeError("no compiler\nhere")

    failures = {}
    sides = {"biomedlm_jax": lambda: 0, "compiled": fail, "eager": lambda: 0}
    timings = alternate(sides, rounds=1, failures=failures)
    assert list(timings) == ["biomedlm_jax", "eager"]
    assert failures == {"compiled": "RuntimeError: no compiler\\nhere"}
    with pytest.raises(RuntimeError):
        alternate({"biomedlm_jax": fail}, rounds=1, failures={})
    with pytest.raises(RuntimeError):
        alternate({"eager": fail}, rounds=1)


def test_energy_is_counted_around_each_call(clock):
    def side():
        clock[0] += 2

    timings = alternate({"a": side}, rounds=3, meter=lambda: 5 * clock[0])
    assert timings["a"].joules == [10.0] * 3
    assert summarise_timings(timings, "tokens", 1.0, "a")["a"]["joules"] == 10.0


@pytest.mark.parametrize(("difference", "lines"), [(0.1, 0), (0.3, 1), (float("nan"), 1)])
def test_a_side_that_computes_something_else_has_a_line(difference, lines):
    table = {"ours": {"difference": 0.0}, "peer": {"difference": difference}}
    assert len(unequal(table, "losses", 0.2)) == lines


def test_the_numbers_of_first_calls_are_compared():
    timings = {"ours": Timing([1.0, 2.0]), "peer": Timing([1.5, 1.75])}
    table = {"ours": {}, "peer": {}}
    compare_first(table, timings)
    assert [side["difference"] for side in table.values()] == [0, 0.5]
    with pytest.raises(ValueError, match="got 1 numbers of peer; expected 2"):
        compare_first(table, {**timings, "peer": Timing([1.0])})


def test_without_its_packages_no_peer_is_measured():
    notes = []
    assert available_peers(["torch sdpa"], notes, ("json", "no_such_package")) == ()
    assert notes == [
        "no_such_package not installed, biomedlm_jax is measured alone; fix: pip install "
        "'biomedlm-jax[hf]'"
    ]
    assert available_peers([], notes, ("no_such_package",)) == ()
    assert available_peers(["torch sdpa"], notes, ("json",)) == ("torch sdpa",)
    assert len(notes) == 1


def test_no_round_is_refused():
    with pytest.raises(ValueError, match="rounds=0"):
        alternate({"a": lambda: 0}, rounds=0)


def test_the_result_names_model_machine_and_versions(capsys):
    config = GPT2Config(vocab_size=99, context_length=8, layers=1, width=32, heads=2)
    result = benchmark_header("length 8", ["jax", "no_such_package"], config=config)
    assert benchmark_header("", [], config=config, about={"device_kind": "H200"})[
        "machine"
    ].endswith("H200")
    version = importlib.metadata.version("jax")
    assert re.fullmatch(r".+, \d+ cores, load \d+\.\d, cpu", result["machine"])
    assert result["versions"] == {"jax": version}
    side = {"tokens_per_second": 12345.6, "ratio": 1.0, "mfu": None, "seconds": [1.0]}
    print_result({**result, "notes": ["a note"], "tables": {"train": {"ours": side}}})
    lines = capsys.readouterr().out.splitlines()
    assert "parameters: 1 layers, width 32, vocabulary 99, float32, length 8" in lines[0]
    assert lines[1].endswith(f"cpu, jax {version}")
    assert lines[2] == "a note"
    assert lines[4].split() == ["train", "tokens", "per", "second", "ratio", "mfu"]
    assert lines[5].split() == ["ours", "12,346", "1", "-"]
