import importlib.metadata
import re

import pytest

from biomedlm_jax.benchmarks.rounds import (
    alternate,
    benchmark_header,
    print_result,
    summarise_timings,
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


def test_no_round_is_refused():
    with pytest.raises(ValueError, match="rounds=0"):
        alternate({"a": lambda: 0}, rounds=0)


def test_the_result_names_model_machine_and_versions(capsys):
    config = GPT2Config(vocab_size=99, context_length=8, layers=1, width=32, heads=2)
    result = benchmark_header("length 8", ["jax"], config=config)
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
