import json

import pytest

from biomedlm_jax.benchmarks import bench_load, own_process, release


@pytest.fixture
def on_cpu(monkeypatch):
    """No GPU, without a process that looks for one."""
    monkeypatch.setattr(own_process, "on_gpu", lambda: False)
    monkeypatch.setattr(bench_load, "on_gpu", lambda: False)


@pytest.fixture
def on_gpu(monkeypatch) -> list:
    """A GPU, as far as a benchmark decides by it; what its processes do is done here, on the CPU.

    The list has the module, side, parts and trace of each process.
    """
    started = []

    def measure_alone(module, name, work, *, parts=None, calls=0, warmup=0, profile=None):
        if module != "release":
            started.append((module, name, parts, profile))
        request = {"module": module, "name": name, "work": work, "parts": parts, "calls": calls}
        request |= {"warmup": warmup, "profile": profile}
        answer = own_process._measure(**json.loads(json.dumps(request)))
        return json.loads(json.dumps(answer))

    monkeypatch.setattr(own_process, "on_gpu", lambda: True)
    for module in (own_process, release):
        monkeypatch.setattr(module, "measure_alone", measure_alone)
    return started
