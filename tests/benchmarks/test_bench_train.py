"""All sides compute the same losses; the times depend on the machine."""

import copy
import os

import pytest
from processes import run_process

from biomedlm_jax.benchmarks import bench_train, own_process
from biomedlm_jax.benchmarks.rounds import Timing, print_result
from biomedlm_jax.errors import InputError
from biomedlm_jax.model.gpt2 import GPT2Config

PEER = "torch sdpa fused"
BROKEN = "torch eager"


@pytest.fixture
def config() -> GPT2Config:
    """A model of one layer, without dropout."""
    return GPT2Config(layers=1, width=32, heads=2, vocab_size=128, context_length=16)


def check(result: dict, *peers: str) -> None:
    sides = result["tables"]["train"]
    assert list(sides) == ["biomedlm_jax", *peers]
    ours = sides["biomedlm_jax"]
    assert ours["ratio"] == 1
    assert 4.5 < ours["first_loss"] < 5.2  # log(128) is 4.85
    for side in sides.values():
        assert side["ratio"] == side["median_seconds"] / ours["median_seconds"]
        assert abs(side["first_loss"] - ours["first_loss"]) < 1e-5
        assert abs(side["last_loss"] - ours["last_loss"]) < 1e-4
        assert side["last_loss"] < side["first_loss"] - 0.01  # it learns
    assert result["errors"] == []
    assert result["attention"] == "xla"
    assert "vocabulary 128, float32" in result["work"]


@pytest.mark.slow
def test_all_sides_learn_the_same_in_alternating_rounds(config, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(own_process, "on_gpu", lambda: False)
    peers = ("torch eager", PEER)
    result = bench_train.measure(
        config, batch_size=8, rounds=2, steps=2, peers=peers, details=False
    )
    check(result, *peers)
    assert result["blocks"] is None
    assert list(result["tables"]) == ["train"]


def test_a_side_with_other_losses_is_an_error(config, monkeypatch):
    def make_side(name, **work):
        return {"step": lambda: [5.0 if name == "biomedlm_jax" else 5.1]}

    monkeypatch.setattr(bench_train, "make_side", make_side)
    monkeypatch.setattr(own_process, "on_gpu", lambda: False)
    monkeypatch.setattr(bench_train.timed, "available_peers", lambda peers, notes: peers)
    result = bench_train.measure(config, batch_size=8, rounds=1, peers=(PEER,), details=False)
    (error,) = result["errors"]
    assert error.startswith(f"{PEER}: losses differ by 0.02, expected at most 0.001")


@pytest.fixture
def forked(monkeypatch):
    """Processes as subprocess.run makes them, which start sooner; no GPU."""
    pytest.importorskip("torch")

    def run(command, *, env=None, **output):
        return run_process(command[1:], env=env)

    monkeypatch.setattr(own_process, "on_gpu", lambda: False)
    monkeypatch.setenv("XLA_FLAGS", os.environ["FAST_COMPILATION"])
    monkeypatch.setattr(own_process.subprocess, "run", run)


@pytest.mark.slow
def test_details_and_the_profile_of_a_cpu(config, forked, tmp_path, capsys):
    folder = tmp_path / "trace"
    result = bench_train.measure(
        config, batch_size=8, rounds=1, steps=1, peers=(PEER,), profile=str(folder)
    )
    check(result, PEER)
    parts = result["tables"]["parts of a step"]
    for side in parts.values():
        names = ("forward_seconds", "backward_seconds", "update_seconds")
        assert sum(side[name] for name in names) == pytest.approx(side["step_seconds"])
    memory = result["tables"]["peak memory"]
    assert list(memory) == ["biomedlm_jax", PEER]
    assert all(side["peak_gb"] >= side["after_imports_gb"] > 0.01 for side in memory.values())
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
    assert "alternating blocks" not in out


@pytest.mark.slow
def test_each_side_is_measured_in_its_own_process(config, forked, capsys, tmp_path):
    options = {"rounds": 2, "steps": 1, "blocks": 1, "profile": str(tmp_path / "trace")}
    result = bench_train.measure(config, batch_size=2, peers=(PEER,), **options)
    check(result, PEER)
    assert result["profile"]["kernels"]
    print_result(result)
    assert "in alternating blocks: 1" in capsys.readouterr().out


def test_on_a_gpu_the_processes_of_the_sides_alternate(config, monkeypatch):
    started, broken = [], []

    def measure(module, name, work, *, parts=None, calls=0, warmup=0, profile=None):
        if module == "release":
            return {}
        if name == BROKEN:
            broken.append(name)
            raise InputError("it ended with 1")
        started.append((name, work["execution"]["compute_dtype"], calls, profile))
        seconds = [float(len(started))] * calls
        timing = Timing([4.8], [4.7], 1.0, seconds, [], list(seconds)).to_json()
        names = (bench_train.STEP, bench_train.FORWARD, bench_train.GRADIENT)
        timings = {part: copy.deepcopy(timing) for part in names}
        result = {"timings": timings, "about": {}, "profile": None}
        result |= {"memory": {"peak": 2e9, "device_peak": 7e9}, "energy": "nvidia-smi"}
        if name == "biomedlm_jax":
            about = {"device_kind": "NVIDIA H200", "dtype": "bfloat16", "attention": "cudnn"}
            result["about"] = about
        return result

    monkeypatch.setattr(own_process, "on_gpu", lambda: True)
    monkeypatch.setattr(own_process, "measure_alone", measure)
    monkeypatch.setattr(bench_train.timed, "available_peers", lambda peers, notes: peers)
    monkeypatch.setattr("biomedlm_jax.benchmarks.release.measure_alone", measure)
    options = {"batch_size": 2, "rounds": 3, "steps": 2, "profile": "trace"}
    result = bench_train.measure(config, peers=(BROKEN, PEER), **options)
    assert started == [
        ("biomedlm_jax", "bfloat16", 6, None),
        (PEER, "bfloat16", 6, None),
        ("biomedlm_jax", "bfloat16", 6, "trace"),
        (PEER, "bfloat16", 6, None),
    ]
    assert broken == [BROKEN]  # once: it is left out
    assert result["blocks"] == 2
    assert result["attention"] == "cudnn"
    assert result["machine"].endswith("NVIDIA H200")
    ours, theirs = result["tables"]["train"].values()
    assert (ours["median_seconds"], ours["fastest_seconds"], ours["first_loss"]) == (2, 1, 4.8)
    assert (theirs["median_seconds"], theirs["ratio"], theirs["joules"]) == (3, 1.5, 3)
    assert result["tables"]["peak memory"][PEER] == {"peak_gb": 2.0, "device_peak_gb": 7.0}
    shares = result["tables"]["utilisation of FLOPs"]["biomedlm_jax"]
    assert 0 < shares["share_6N"] < shares["share_6N + 12LHKT"] < 1e-3
    assert "energy: nvidia-smi" in result["notes"]
    assert f"{BROKEN} is left out, as it fails here: it ended with 1" in result["notes"]


def test_a_peer_that_is_not_known_is_refused(config):
    with pytest.raises(ValueError, match="got the peer 'foo'; expected 'torch ATTENTION"):
        bench_train.measure(config, batch_size=1, peers=("foo",))
