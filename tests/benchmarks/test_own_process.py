"""Sides in processes of their own: what they return, and how their failures are named."""

import os
from pathlib import Path

import pytest
from processes import run_process

from biomedlm_jax.benchmarks import bench_train, own_process
from biomedlm_jax.benchmarks.own_process import measure_alone, peak_memory

NAMES = ("JAX_PLATFORMS", "XLA_PYTHON_CLIENT_MEM_FRACTION", "BIOMEDLM_BENCH_DEVICE")


@pytest.fixture
def forked(monkeypatch):
    """Run as subprocess.run does, but start sooner."""
    monkeypatch.setenv("XLA_FLAGS", os.environ["FAST_COMPILATION"])

    def run(command, *, env=None, **output):
        return run_process(command[1:], env=env)

    monkeypatch.setattr(own_process.subprocess, "run", run)


@pytest.mark.slow
def test_a_side_that_fails_is_named(forked):
    with pytest.raises(ValueError, match="that measured nobody ended with 1; its error is above"):
        measure_alone("bench_train", "nobody", {})


def test_our_process_has_the_gpu_and_a_peer_has_it_without_jax(monkeypatch):
    environments, caches = [], []

    def run(program, *, env, stdout):
        environments.append(tuple(map(env.get, NAMES)))
        caches.append(Path(env["TORCHINDUCTOR_CACHE_DIR"]))
        assert not caches[-1].exists()
        assert caches[-1].parent.exists()
        raise KeyboardInterrupt

    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(own_process.subprocess, "run", run)
    monkeypatch.setattr(own_process, "on_gpu", lambda: True)
    for name in ("biomedlm_jax", "torch sdpa"):
        with pytest.raises(KeyboardInterrupt):
            measure_alone("bench_train", name, {})
    assert environments == [(None, "0.95", None), ("cpu", None, "gpu")]
    assert caches[0] != caches[1]  # each compiles anew
    assert not any(cache.parent.exists() for cache in caches)


PEAK = """
import numpy as np
from biomedlm_jax.benchmarks.own_process import host_memory
before = host_memory()
for size in (before + 100_000_000, 1_000_000):
    assert np.ones(size, np.uint8).all()
    assert host_memory() >= before + 100_000_000
"""


def test_the_peak_is_that_of_the_process():
    done = run_process(["-c", PEAK])
    assert done.returncode == 0, done.stderr


def test_a_side_without_an_answer_is_left_out_of_the_table(monkeypatch):
    def alone(module, name, work, *, parts, calls):
        assert parts == ["step"]
        if name == "fails":
            raise own_process.InputError("it ended with 9")
        return {"memory": {"after_imports": 2e9, "peak": 3e9}}

    monkeypatch.setattr(own_process, "measure_alone", alone)
    table, notes = peak_memory("bench_train", ["works", "fails"], {}, "step")
    assert table == {"works": {"after_imports_gb": 2.0, "peak_gb": 3.0}}
    assert notes[1] == "memory of fails is not measured: it ended with 9"


def test_the_peak_is_read_after_the_first_part(monkeypatch):
    order = []

    def make_side(name):
        return {part: lambda part=part: order.append(part) for part in ("a", "b", "c")}

    monkeypatch.setattr(bench_train, "make_side", make_side)
    monkeypatch.setattr(bench_train, "about", dict)
    monkeypatch.setattr(own_process, "host_memory", lambda: len(order))
    request = {"module": "bench_train", "name": "biomedlm_jax", "work": {}}
    request |= {"calls": 2, "warmup": 1, "profile": None}
    answer = own_process._measure(**request, parts=["b", "a"])
    assert order == ["b"] * 4 + ["a"] * 4  # and no call of c
    assert answer["memory"] == {"after_imports": 0, "peak": 4}
    assert list(answer["timings"]) == ["b", "a"]
    assert len(answer["timings"]["a"]["seconds"]) == 2
    assert answer["about"] == {"device_kind": "cpu"}
