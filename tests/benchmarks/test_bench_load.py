import pytest

from biomedlm_jax.benchmarks import bench_load
from biomedlm_jax.model.gpt2 import GPT2Config

CONFIG = GPT2Config(layers=1, width=16, heads=2, vocab_size=32, context_length=8)


@pytest.fixture
def here(monkeypatch, on_cpu):
    """Measure in this process instead of others."""
    order = []

    def alone(module, name, work):
        order.append(name)
        first = bench_load.make_side(name, **work)["first logits"]()
        timing = {"first": first, "first_seconds": first["load_seconds"] + 1.0}
        memory = {"after_imports": 1e9, "peak": 2e9}
        about = {"device_kind": "cpu"}
        return {"timings": {"first logits": timing}, "memory": memory, "about": about}

    monkeypatch.setattr(bench_load, "measure_alone", alone)
    return order


def test_processes_alternate_and_logits_agree(here):
    pytest.importorskip("torch")
    result = bench_load.measure(CONFIG, length=8, rounds=2)
    assert here == ["biomedlm_jax", "hf eager", "hf sdpa"] * 2
    table = result["tables"]["to the first logits"]
    for side in table.values():
        assert side["difference"] < 1e-5
        assert side["load_seconds"] > 0
        assert side["logits_seconds"] == pytest.approx(1.0)
    assert table["biomedlm_jax"]["ratio"] == 1
    assert result["tables"]["peak memory"]["hf sdpa"] == {"after_imports_gb": 1.0, "peak_gb": 2.0}
    assert result["errors"] == []


def test_other_logits_are_an_error(here, monkeypatch):
    pytest.importorskip("torch")
    ours = bench_load._ours

    def wrong(*arguments):
        answer = ours(*arguments)
        return {**answer, "logits": [value + 1 for value in answer["logits"]]}

    monkeypatch.setattr(bench_load, "_ours", wrong)
    result = bench_load.measure(CONFIG, length=8, rounds=1, peers=("hf sdpa",))
    assert result["errors"][0].startswith("hf sdpa: logits differ by 1, expected at most 0.001")
