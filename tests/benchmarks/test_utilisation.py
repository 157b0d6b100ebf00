import pytest

from biomedlm_jax.benchmarks import utilisation as shares
from biomedlm_jax.chips import CHIPS
from biomedlm_jax.model.gpt2 import GPT2Config

CONFIG = GPT2Config(layers=2, width=32, heads=4, vocab_size=128, context_length=16)
# Of a layer: query, key, value, output, and an MLP of four times the width; then the head.
MATRICES = 2 * (4 * 32 * 32 + 2 * 32 * 128) + 128 * 32
SIDES = {"ours": {"tokens_per_second": 1e6}, "peer": {"tokens_per_second": 5e5}}


def test_the_conventions_differ_in_the_pairs_of_positions_that_they_count():
    flops = shares.flops_by_convention(CONFIG, 16)
    biases = flops["6N"] - 6 * MATRICES  # and norms, which the library counts with its matrices
    assert 0 <= biases < 0.06 * flops["6N"]
    assert flops["6N + 12LHKT"] - flops["6N"] == 12 * 2 * 32 * 16
    assert flops["6N + 6LHKT, causal"] - flops["6N"] == 6 * 2 * 32 * 16


def test_the_share_is_of_the_chips_peak():
    rows, source = shares.utilisation(CONFIG, SIDES, "NVIDIA H200", "bfloat16")
    flops = shares.flops_by_convention(CONFIG, 16)
    peak = CHIPS["NVIDIA H200"].bf16_flops
    for title, count in flops.items():
        assert rows["ours"][f"share_{title}"] == pytest.approx(1e6 * count / peak)
        assert rows["peer"][f"share_{title}"] == pytest.approx(5e5 * count / peak)
    assert source.startswith("peak of NVIDIA H200")


def test_a_cpu_has_a_measured_peak(monkeypatch):
    monkeypatch.setattr(shares, "measured_peak", lambda dtype: (2e9, f"{dtype} library, 2 cores"))
    rows, source = shares.utilisation(CONFIG, SIDES, "cpu", "float32")
    expected = 1e6 * shares.flops_by_convention(CONFIG, 16)["6N"] / 2e9
    assert rows["ours"]["share_6N"] == pytest.approx(expected)
    assert source == (
        "no peak known for cpu; the shares are of 2 GFLOP/s, measured in a float32 matrix product "
        "of float32 library, 2 cores"
    )


def test_the_peak_is_measured():
    peak, library = shares.measured_peak("float32", size=64, calls=2)
    assert peak > 1e6
    assert library.startswith(("jax, ", "torch, "))
