"""All sides return the same tokens; the times depend on the machine."""

import dataclasses

import pytest

from biomedlm_jax.benchmarks import bench_generate, own_process
from biomedlm_jax.benchmarks.rounds import print_result
from biomedlm_jax.model.gpt2 import GPT2Config

CONFIG = GPT2Config(
    vocab_size=99, context_length=32, layers=1, width=32, heads=2, initializer_range=0.3
)
OPTIONS = {"prompt_length": 4, "new_tokens": 6, "rounds": 1, "details": False}


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [None, 1])
def test_all_sides_decode_the_same_tokens(capsys, on_gpu, monkeypatch, blocks):
    pytest.importorskip("torch")
    monkeypatch.setattr(own_process, "on_gpu", lambda: False)
    sizes = {"batch_sizes": (1, 2), "beams": 2, "blocks": blocks}
    result = bench_generate.measure(CONFIG, **sizes, **OPTIONS)
    assert len(on_gpu) == (9 if blocks else 0)
    assert list(result["tables"]) == ["greedy, batch 1", "greedy, batch 2", "2 beams, batch 1"]
    for sides in result["tables"].values():
        assert sides["biomedlm_jax"]["ratio"] == 1
        for name in ("hf eager", "hf sdpa"):
            assert sides[name]["equal_rows"] == 1
            assert sides[name]["median_seconds"] > 0
    assert result["errors"] == []
    print_result(result)
    assert "milliseconds per step" in capsys.readouterr().out


@pytest.fixture
def other_tokens(monkeypatch):
    """A peer whose second row differs."""

    def make_side(name, *, cases, **work):
        def decode(size):
            return [[1], [2 if name == "biomedlm_jax" else 3]][:size]

        return {case: lambda size=size: decode(size) for case, (size, _) in cases.items()}

    monkeypatch.setattr(bench_generate, "make_side", make_side)
    monkeypatch.setattr(bench_generate.timed, "available_peers", lambda peers, notes: peers)


SIZES = {"batch_sizes": (1, 2), "beams": 1, "peers": ("hf sdpa",)}
ERROR = "greedy, batch 2, hf sdpa: 50% of the rows have other tokens than ours"


def test_other_tokens_are_an_error(other_tokens, on_cpu):
    assert bench_generate.measure(CONFIG, **SIZES, **OPTIONS)["errors"] == [ERROR]


def test_on_a_gpu_each_case_has_its_processes(other_tokens, on_gpu):
    config = dataclasses.replace(CONFIG, compute_dtype="float32")
    result = bench_generate.measure(config, **SIZES, **{**OPTIONS, "details": True})
    one, two = (f"greedy, batch {size}" for size in (1, 2))
    sides = ("biomedlm_jax", "hf sdpa") * 2
    assert on_gpu == [("bench_generate", s, [case], None) for case in (one, two) for s in sides]
    assert result["errors"] == [ERROR]
    assert list(result["tables"]) == [one, two, "peak memory"]
    assert list(result["tables"]["peak memory"]) == ["biomedlm_jax", "hf sdpa"]
    assert result["notes"].count("each side in processes of its own, in alternating blocks: 2") == 1


def test_nothing_to_decode_is_refused(on_cpu):
    with pytest.raises(ValueError, match="got no batch size and beams=1"):
        bench_generate.measure(CONFIG, batch_sizes=(), beams=1)
