"""All sides compute the same numbers; the times depend on the machine."""

import dataclasses

import pytest

from biomedlm_jax.benchmarks import bench_score, own_process
from biomedlm_jax.model.gpt2 import GPT2Config

CONFIG = GPT2Config(layers=2, width=32, heads=2, vocab_size=96, context_length=96)


def test_all_sides_score_random_questions_the_same(on_cpu):
    """Ours beside transformers with eager attention and with SDPA."""
    pytest.importorskip("torch")
    result = bench_score.measure(CONFIG, questions=3, rounds=1, details=False)
    table = result["tables"]["scoring"]
    unshared = "biomedlm_jax, one row per option"
    assert list(table) == ["biomedlm_jax", unshared, "hf eager", "hf sdpa"]
    assert 0 < max(side["difference"] for side in table.values()) < 1e-3
    assert result["errors"] == []


def test_on_a_gpu_each_side_has_its_processes(on_gpu):
    """The scores of the processes are compared as those of one process are."""
    pytest.importorskip("torch")
    config = dataclasses.replace(CONFIG, compute_dtype="float32")
    options = {"questions": 2, "rounds": 1, "peers": ("hf sdpa",)}
    result = bench_score.measure(config, **options)
    names = ["biomedlm_jax", bench_score.UNSHARED, "hf sdpa"]
    assert on_gpu == [("bench_score", name, ["score"], None) for name in names * 2]
    table = result["tables"]["scoring"]
    assert 0 < max(side["difference"] for side in table.values()) < 1e-3
    assert [len(side["seconds"]) for side in table.values()] == [2, 2, 2]
    assert list(result["tables"]["peak memory"]) == names
    assert result["errors"] == []
    assert "each side in processes of its own, in alternating blocks: 2" in result["notes"]


@pytest.mark.parametrize("blocks", [None, 1])
def test_other_scores_are_an_error(monkeypatch, on_gpu, blocks):
    monkeypatch.setattr(own_process, "on_gpu", lambda: False)

    def make_side(name, **work):
        return {"score": lambda: [-1.0, -2.0 if name.startswith("biomedlm_jax") else -2.1]}

    monkeypatch.setattr(bench_score, "make_side", make_side)
    monkeypatch.setattr(bench_score.timed, "available_peers", lambda peers, notes: peers)
    options = {
        "questions": 1,
        "rounds": 1,
        "peers": ("hf sdpa",),
        "details": False,
        "blocks": blocks,
    }
    (error,) = bench_score.measure(CONFIG, **options)["errors"]
    assert error.startswith("hf sdpa: log-probabilities differ by 0.1, expected at most 0.001")


def test_a_context_that_holds_no_question_is_refused(on_cpu):
    short = GPT2Config(layers=1, width=32, heads=2, vocab_size=96, context_length=64)
    with pytest.raises(ValueError, match="expected at least 72; fix: --length"):
        bench_score.measure(short, questions=1, peers=())


def test_a_static_cache_is_refused(on_cpu):
    with pytest.raises(ValueError, match=r"expected 'hf ATTENTION \[compile\]'.*only generate has"):
        bench_score.measure(CONFIG, peers=("hf sdpa static",))
