"""Measure one side of a benchmark in a process of its own: its time, memory and energy.

A benchmark module has `make_side(name, **work)`, which returns the calls of that side by name; the
process calls each of them. `work` holds JSON values, so that it can be passed to the process.
"""

import contextlib
import functools
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.benchmarks.caches import no_jax_cache, torch_caches
from biomedlm_jax.benchmarks.energy import open_meter
from biomedlm_jax.benchmarks.kernels import profile_steps
from biomedlm_jax.benchmarks.rounds import DEVICE, OURS, Timing, progress
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_text


@functools.cache
def on_gpu() -> bool:
    """Return whether jax runs on a GPU; checked in another process, as jax reserves its memory."""
    program = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stdout.split()[-1:] == ["gpu"]


def measure_alone(
    module: str,
    name: str,
    work: Mapping[str, Any],
    *,
    parts: Sequence[str] | None = None,
    calls: int = 0,
    warmup: int = 0,
    profile: str | None = None,
) -> dict[str, Any]:
    """Time the calls of one side in a process of its own, once and `calls` times more.

    `module` is the file in this folder with `make_side`, `parts` are those of its calls that are
    timed, all by default. Returns `timings` (a Timing as a dict for each call), `memory` in bytes
    after the first part (`after_imports`, `peak`, and on an accelerator `device_peak`), `energy`
    (what was read), `about` (of `describe`) and `profile`. The process compiles anew what it needs.
    Raises InputError if it fails.
    """
    # The process has the GPU to itself, of which jax would reserve three quarters. A peer does not
    # need jax there, which must not reserve any.
    environment = {"JAX_PLATFORMS": "cpu", DEVICE: "gpu" if on_gpu() else "cpu"}
    if name.startswith(OURS):
        fraction = "XLA_PYTHON_CLIENT_MEM_FRACTION"
        environment = {fraction: os.environ.get(fraction, "0.95")}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        answer = Path(folder) / "answer.json"
        request: dict[str, Any] = {"module": module, "name": name, "work": work, "parts": parts}
        request |= {"calls": calls, "warmup": warmup, "profile": profile}
        environment |= torch_caches(folder)
        program = [sys.executable, "-m", __name__, json.dumps(request), str(answer)]
        # Its output goes to stderr (2): standard output is for the tables.
        done = subprocess.run(program, env={**os.environ, **environment}, stdout=2)
        if done.returncode or not answer.exists():
            raise InputError(
                f"the process that measured {name} ended with {done.returncode}; its error is "
                "above. If memory ran out, take a smaller batch_size"
            )
        return json.loads(answer.read_text(encoding="utf-8"))


def peak_memory(
    module: str, names, work: Mapping[str, Any], part: str
) -> tuple[dict[str, dict], list[str]]:
    """Return the table of peak memory in two calls of a part, each side in a process, and notes.

    A side whose process fails is named in the notes.
    """
    table, notes = {}, ["peak memory: each side in a process of its own, imports included"]
    for name in names:
        progress(f"memory of {name}")
        try:
            memory = measure_alone(module, name, work, parts=[part], calls=1)["memory"]
        except InputError as error:
            notes.append(f"memory of {name} is not measured: {error}")
            continue
        table[name] = in_gb(memory)
    return table, notes


def in_gb(memory: Mapping[str, int]) -> dict[str, float]:
    """Return the row of a table for the memory that a process has measured."""
    return {f"{key}_gb": value / 1e9 for key, value in memory.items()}


def describe(benchmark: Any, work: Mapping[str, Any]) -> dict[str, str]:
    """Return jax's device, and what the module's `about` returns, if it has one."""
    import jax

    more = benchmark.about(**work) if hasattr(benchmark, "about") else {}
    return {"device_kind": jax.devices()[0].device_kind, **more}


def host_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    with contextlib.suppress(OSError):
        # A process inherits ru_maxrss from the one that started it; VmHWM starts anew.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _device_memory(name: str) -> dict[str, int]:
    """Return the peak memory of an accelerator, or nothing on a CPU."""
    if name.startswith(OURS):
        import jax

        peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use") for d in jax.local_devices()]
        return {"device_peak": sum(filter(None, peaks))} if all(peaks) else {}
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    return {"device_peak": torch.cuda.max_memory_allocated()}


def _measure(
    *, module: str, name: str, work: dict, parts, calls: int, warmup: int, profile
) -> dict[str, Any]:
    if name.startswith(OURS):
        keep_freed_memory()  # as its commands do
        import jax

        gpu = jax.default_backend() == "gpu"
    else:
        gpu = False
        with contextlib.suppress(ImportError):  # a process that writes weights needs neither
            import torch
            import transformers  # noqa: F401

            gpu = torch.cuda.is_available()
    benchmark: Any = importlib.import_module(f"{__package__}.{module}")
    memory = {"after_imports": host_memory()}
    energy, meter = open_meter(gpu=gpu)
    sides = benchmark.make_side(name, **work)
    timings: dict[str, Timing] = {}
    for part in parts or sides:
        timings[part] = timing = Timing(meter=meter)
        timing.call(sides[part])
        for _ in range(warmup):
            sides[part]()
        timing.call(sides[part], calls)
        if len(timings) == 1:
            memory |= {"peak": host_memory(), **_device_memory(name)}
    traced = profile_steps(sides[next(iter(timings))], profile) if profile else None
    about = describe(benchmark, work) if name == OURS else {}
    return {
        "timings": {part: timing.to_json() for part, timing in timings.items()},
        "memory": memory,
        "energy": energy,
        "about": about,
        "profile": traced,
    }


if __name__ == "__main__":
    with no_jax_cache():
        measured = _measure(**json.loads(sys.argv[1]))
    write_text(sys.argv[2], json.dumps(measured))  # NaN included, which differs from all others
