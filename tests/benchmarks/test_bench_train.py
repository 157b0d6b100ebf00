"""The figures have their fields; their values depend on the machine."""

import dataclasses
import os

import pytest
from processes import run_process

from biomedlm_jax.benchmarks import bench_train
from biomedlm_jax.benchmarks.rounds import Timing, print_result
from biomedlm_jax.model.gpt2 import GPT2Config

PEER = "torch sdpa fused"


@pytest.fixture
def config() -> GPT2Config:
    """A model of one layer, without dropout."""
    return GPT2Config(layers=1, width=32, heads=2, vocab_size=128, context_length=16)


def forked(command, *, env=None, **output):
    """Run as subprocess.run does, but start sooner."""
    return run_process(command[1:], env=env)


def check(result: dict) -> None:
    sides = result["tables"]["train"]
    assert list(sides) == ["biomedlm_jax", PEER]
    ours, theirs = sides.values()
    assert ours["ratio"] == 1
    assert theirs["ratio"] == theirs["median_seconds"] / ours["median_seconds"]
    assert 4.5 < ours["first_loss"] < 5.2  # log(128) is 4.85
    assert abs(theirs["first_loss"] - ours["first_loss"]) < 0.1
    assert result["attention"] == "xla"
    assert "vocabulary 128, float32" in result["work"]


@pytest.mark.slow
def test_rounds_alternate_in_one_process_on_a_cpu(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_train, "_on_gpu", lambda: False)
    monkeypatch.setattr(bench_train, "measure_in_process", lambda *a, **k: pytest.fail("process"))
    folder = tmp_path / "trace"
    result = bench_train.measure(
        config, batch_size=8, rounds=1, steps=1, peers=(PEER,), profile=str(folder)
    )
    check(result)
    assert result["blocks"] is None
    profile = result["profile"]
    assert profile["trace"].startswith(str(folder))
    assert profile["cudnn_attention"] is None  # only a GPU has it
    names = [kernel["name"] for kernel in profile["kernels"]]
    assert "while" not in names[:3]  # the time of a loop counts for its body
    assert all(kernel["on"] == "cpu" and kernel["seconds"] >= 0 for kernel in profile["kernels"])
    assert 0.3 < sum(kernel["share"] for kernel in profile["kernels"]) < 1.001
    print_result(result)
    out = capsys.readouterr().out
    assert "attention of biomedlm_jax: xla" in out
    assert names[0] in out
    assert "alternating in blocks" not in out


@pytest.mark.slow
def test_each_side_is_measured_in_its_own_process(config, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", os.environ["FAST_COMPILATION"])
    monkeypatch.setattr(bench_train.subprocess, "run", forked)
    options = {"rounds": 2, "steps": 1, "blocks": 1, "profile": str(tmp_path / "trace")}
    result = bench_train.measure(config, batch_size=2, peers=(PEER,), **options)
    check(result)
    assert result["profile"]["kernels"]
    print_result(result)
    assert "alternating in blocks: 1" in capsys.readouterr().out


def test_on_a_gpu_the_processes_of_the_sides_alternate(config, monkeypatch):
    started = []

    def measure(name, config, *, steps, profile, batch_size, loss_chunks):
        started.append((name, config.compute_dtype, steps, profile))
        timing = Timing([float(len(started))], 1.0, [float(len(started))] * steps, [])
        result = {"timing": dataclasses.asdict(timing), "about": {}, "profile": None}
        if name == "biomedlm_jax":
            about = {"device_kind": "NVIDIA H200", "dtype": "bfloat16", "attention": "cudnn"}
            result["about"] = about
        return result

    monkeypatch.setattr(bench_train, "_on_gpu", lambda: True)
    monkeypatch.setattr(bench_train, "measure_in_process", measure)
    options = {"batch_size": 2, "rounds": 3, "steps": 2, "peers": (PEER,), "profile": "trace"}
    result = bench_train.measure(config, **options)
    assert started == [
        ("biomedlm_jax", "auto", 6, None),
        (PEER, "bfloat16", 6, None),  # as ours was: jax has no GPU in its process
        ("biomedlm_jax", "bfloat16", 6, "trace"),
        (PEER, "bfloat16", 6, None),
    ]
    assert result["blocks"] == 2
    assert result["attention"] == "cudnn"
    assert result["machine"].endswith("NVIDIA H200")
    ours, theirs = result["tables"]["train"].values()
    assert (ours["median_seconds"], ours["fastest_seconds"], ours["first_loss"]) == (2, 1, 1)
    assert (theirs["median_seconds"], theirs["ratio"]) == (3, 1.5)
    assert ours["mfu"] > 0


def test_a_peer_that_is_not_known_is_refused(config):
    with pytest.raises(ValueError, match="got the peer 'foo'; expected 'torch ATTENTION"):
        bench_train.measure(config, batch_size=1, peers=("foo",))


@pytest.mark.slow
def test_a_side_that_fails_is_named(config, monkeypatch):
    monkeypatch.setattr(bench_train.subprocess, "run", forked)
    with pytest.raises(ValueError, match="that measured nobody ended with 1; its error is above"):
        bench_train.measure_in_process("nobody", config, steps=1, batch_size=1, loss_chunks=1)


def test_our_process_has_the_gpu_and_a_peer_has_it_without_jax(config, monkeypatch):
    environments = []

    def run(program, *, env, stdout):
        names = ("JAX_PLATFORMS", "XLA_PYTHON_CLIENT_MEM_FRACTION")
        environments.append(tuple(map(env.get, names)))
        raise KeyboardInterrupt

    for name in ("JAX_PLATFORMS", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(bench_train.subprocess, "run", run)
    for name in ("biomedlm_jax", PEER):
        with pytest.raises(KeyboardInterrupt):
            bench_train.measure_in_process(name, config, steps=1, batch_size=1, loss_chunks=1)
    assert environments == [(None, "0.95"), ("cpu", None)]
