"""The benchmark's figures have their fields; what they are depends on the machine."""

from biomedlm_jax.benchmarks.decode import measure_decode, print_table
from biomedlm_jax.cli import main
from biomedlm_jax.model.gpt2 import GPT2Config


def test_both_sides_decode_the_same_and_have_figures(capsys):
    config = GPT2Config(
        vocab_size=99, context_length=32, layers=1, width=32, heads=2, initializer_range=0.3
    )
    figures = measure_decode(
        config, batch_sizes=(1, 2), beams=2, prompt_length=4, new_tokens=6, rounds=1
    )
    assert list(figures["cases"]) == ["greedy, batch 1", "greedy, batch 2", "2 beams, batch 1"]
    for sides in figures["cases"].values():
        assert sides["biomedlm_jax"]["ratio"] == 1
        assert sides["hf sdpa"]["equal"] == 1
        assert sides["hf sdpa"]["median_seconds"] > 0
    print_table(figures)
    assert "ratio 1.00" in capsys.readouterr().out


def test_invalid_batch_sizes_are_refused(capsys):
    assert main(["bench", "decode", "--batch_sizes=1,two"]) == 2
    assert "--batch_sizes=1,two" in capsys.readouterr().err
