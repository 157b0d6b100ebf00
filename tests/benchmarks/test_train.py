"""The benchmark's figures have their fields; what they are depends on the machine."""

import pytest

from biomedlm_jax.benchmarks import sides, train
from biomedlm_jax.model.config import GPTConfig

PEER = "torch sdpa fused"


@pytest.fixture
def config() -> GPTConfig:
    """A model of one layer, without dropout."""
    rates = ("embedding_dropout", "attention_dropout", "residual_dropout")
    shape = {"layers": 1, "width": 32, "heads": 2, "vocab_size": 128, "context_length": 16}
    return GPTConfig(**shape, **dict.fromkeys(rates, 0.0))


def check(figures: dict) -> None:
    assert list(figures["sides"]) == ["biomedlm_jax", PEER]
    ours, theirs = figures["sides"].values()
    assert ours["ratio"] == 1
    assert theirs["ratio"] == theirs["median_seconds"] / ours["median_seconds"]
    assert 4.5 < ours["first_loss"] < 5.2  # log(128) is 4.85
    assert abs(theirs["first_loss"] - ours["first_loss"]) < 0.1
    assert figures["attention"] == "xla"
    assert figures["shape"].endswith("vocabulary 128, float32")


def test_rounds_alternate_in_one_process_on_a_cpu(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sides, "measure_in_process", lambda *a, **k: pytest.fail("a process"))
    folder = tmp_path / "trace"
    figures = train.measure_train(
        config, batch_size=8, rounds=1, steps=1, peers=(PEER,), profile=str(folder)
    )
    check(figures)
    assert figures["blocks"] is None
    profile = figures["profile"]
    assert profile["trace"].startswith(str(folder))
    assert profile["cudnn_attention"] is None  # only a GPU has it
    names = [kernel["name"] for kernel in profile["kernels"]]
    assert "while" not in names[:3]  # what a loop takes is counted where it is spent
    assert all(kernel["on"] == "cpu" and kernel["seconds"] >= 0 for kernel in profile["kernels"])
    assert 0.3 < sum(kernel["share"] for kernel in profile["kernels"]) < 1.001
    train.print_table(figures)
    said = capsys.readouterr().out
    assert "attention of biomedlm_jax: xla" in said
    assert names[0] in said
    assert "alternating in blocks" not in said


def test_each_side_in_a_process_of_its_own(config, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "")
    options = {"rounds": 2, "steps": 1, "blocks": 1, "profile": str(tmp_path / "trace")}
    figures = train.measure_train(config, batch_size=2, peers=(PEER,), **options)
    check(figures)
    assert figures["profile"]["kernels"]
    train.print_table(figures)
    assert "alternating in blocks: 1" in capsys.readouterr().out


def test_on_a_gpu_the_processes_of_the_sides_alternate(config, monkeypatch):
    begun = []

    def measure(name, config, *, steps, profile, batch_size, loss_chunks):
        begun.append((name, config.compute_dtype, steps, profile))
        found = {"first_loss": len(begun), "seconds": [float(len(begun))] * steps}
        if name == "biomedlm_jax":
            about = {"device_kind": "NVIDIA H200", "machine": "m", "dtype": "bfloat16"}
            found["about"] = {**about, "attention": "cudnn"}
        return {**found, "profile": {}} if profile else found

    monkeypatch.setattr(train, "_on_gpu", lambda: True)
    monkeypatch.setattr(sides, "measure_in_process", measure)
    options = {"batch_size": 2, "rounds": 3, "steps": 2, "peers": (PEER,), "profile": "trace"}
    figures = train.measure_train(config, **options)
    assert begun == [
        ("biomedlm_jax", "auto", 6, None),
        (PEER, "bfloat16", 6, None),  # as ours was: its process does not see the GPU through jax
        ("biomedlm_jax", "bfloat16", 6, "trace"),
        (PEER, "bfloat16", 6, None),
    ]
    assert figures["blocks"] == 2
    assert figures["attention"] == "cudnn"
    ours, theirs = figures["sides"].values()
    assert (ours["median_seconds"], ours["fastest_seconds"], ours["first_loss"]) == (2, 1, 1)
    assert (theirs["median_seconds"], theirs["ratio"]) == (3, 1.5)
    assert ours["mfu"] > 0


def test_a_side_that_fails_is_named(config, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(ValueError, match="that measured nobody ended with 1; it says above why"):
        sides.measure_in_process("nobody", config, steps=1, batch_size=1, loss_chunks=1)


def test_our_process_has_the_gpu_and_a_peer_has_it_without_jax(config, monkeypatch):
    asked = []

    def run(program, *, env, stdout):
        asked.append((env.get("JAX_PLATFORMS"), env.get("XLA_PYTHON_CLIENT_MEM_FRACTION")))
        raise KeyboardInterrupt

    for name in ("JAX_PLATFORMS", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sides.subprocess, "run", run)
    for name in ("biomedlm_jax", PEER):
        with pytest.raises(KeyboardInterrupt):
            sides.measure_in_process(name, config, steps=1, batch_size=1, loss_chunks=1)
    assert asked == [(None, "0.95"), ("cpu", None)]
