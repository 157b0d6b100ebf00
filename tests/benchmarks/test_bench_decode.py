"""The figures have their fields; their values depend on the machine."""

import pytest

from biomedlm_jax.benchmarks.bench_decode import measure
from biomedlm_jax.benchmarks.rounds import print_result
from biomedlm_jax.model.gpt2 import GPT2Config


@pytest.mark.slow
def test_both_sides_decode_the_same_tokens(capsys):
    config = GPT2Config(
        vocab_size=99, context_length=32, layers=1, width=32, heads=2, initializer_range=0.3
    )
    result = measure(config, batch_sizes=(1, 2), beams=2, prompt_length=4, new_tokens=6, rounds=1)
    assert list(result["tables"]) == ["greedy, batch 1", "greedy, batch 2", "2 beams, batch 1"]
    for sides in result["tables"].values():
        assert sides["biomedlm_jax"]["ratio"] == 1
        assert sides["hf sdpa"]["equal_rows"] == 1
        assert sides["hf sdpa"]["median_seconds"] > 0
    print_result(result)
    assert "milliseconds per step" in capsys.readouterr().out
