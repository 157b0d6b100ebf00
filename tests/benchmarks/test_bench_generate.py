"""All sides return the same tokens; the times depend on the machine."""

import pytest

from biomedlm_jax.benchmarks import bench_generate
from biomedlm_jax.benchmarks.rounds import print_result
from biomedlm_jax.model.gpt2 import GPT2Config

CONFIG = GPT2Config(
    vocab_size=99, context_length=32, layers=1, width=32, heads=2, initializer_range=0.3
)
OPTIONS = {"prompt_length": 4, "new_tokens": 6, "rounds": 1, "details": False}


@pytest.mark.slow
def test_all_sides_decode_the_same_tokens(capsys):
    pytest.importorskip("torch")
    result = bench_generate.measure(CONFIG, batch_sizes=(1, 2), beams=2, **OPTIONS)
    assert list(result["tables"]) == ["greedy, batch 1", "greedy, batch 2", "2 beams, batch 1"]
    for sides in result["tables"].values():
        assert sides["biomedlm_jax"]["ratio"] == 1
        for name in ("hf eager", "hf sdpa"):
            assert sides[name]["equal_rows"] == 1
            assert sides[name]["median_seconds"] > 0
    assert result["errors"] == []
    print_result(result)
    assert "milliseconds per step" in capsys.readouterr().out


def test_other_tokens_are_an_error(monkeypatch):
    def make_side(name, *, cases, **work):
        rows = [[1], [2]] if name == "biomedlm_jax" else [[1], [3]]
        return {case: lambda: rows for case in cases}

    monkeypatch.setattr(bench_generate, "make_side", make_side)
    monkeypatch.setattr(bench_generate.timed, "available_peers", lambda peers, notes: peers)
    options = {"batch_sizes": (2,), "beams": 1, "peers": ("hf sdpa",), **OPTIONS}
    result = bench_generate.measure(CONFIG, **options)
    expected = "greedy, batch 2, hf sdpa: 50% of the rows have other tokens than ours"
    assert result["errors"] == [expected]
