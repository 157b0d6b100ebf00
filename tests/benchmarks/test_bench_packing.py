"""All sides compute the same losses; the times depend on the machine."""

import pytest

from biomedlm_jax.benchmarks import bench_packing
from biomedlm_jax.benchmarks.rounds import print_result
from biomedlm_jax.model.gpt2 import GPT2Config

NO_DROPOUT = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0)


@pytest.mark.slow
def test_all_sides_learn_the_same(capsys):
    sizes = {"vocab_size": 99, "context_length": 128, "layers": 1, "width": 32, "heads": 2}
    options = {"examples": 40, "batch_size": 4, "length": 128, "steps": 2, "rounds": 1}
    result = bench_packing.measure(GPT2Config(**sizes, **NO_DROPOUT), **options)
    (sides,) = result["tables"].values()
    assert list(sides) == ["packed rows", "one padded row each", "padded to the longest"]
    assert all(side["difference"] < 1e-5 for side in sides.values())
    print_result(result)
    printed = capsys.readouterr().out
    assert "examples per second" in printed
    assert "40 conversations of" in printed


def test_mixed_conversations_fill_the_rows():
    masked = bench_packing.conversations(1_000, length=512, vocab_size=50)
    assert bench_packing.fullness(*masked, length=512) > 0.95
    again = bench_packing.conversations(1_000, length=512, vocab_size=50)
    assert masked == again


def test_bad_arguments():
    config = GPT2Config(vocab_size=99, context_length=64, layers=1, width=32, heads=2)
    with pytest.raises(ValueError, match="steps=4 x batch_size=16; expected at most examples=9"):
        bench_packing.measure(config, examples=9)
