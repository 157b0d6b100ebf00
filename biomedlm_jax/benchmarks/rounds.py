"""Time sides in alternating rounds, compute their ratios, and describe the machine."""

import dataclasses
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from biomedlm_jax.errors import InputError
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.language_model import parameter_count

OURS = "biomedlm_jax"
NO_DROPOUT = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0)


@dataclasses.dataclass
class Timing:
    """Times of one side's calls; the first call, which compiles, is kept apart."""

    first: Any = None  # its result
    first_seconds: float = 0.0
    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)  # of all threads

    def call(self, side: Callable[[], Any], times: int = 1) -> None:
        """Call a side and add its times; the first call's result and time are kept apart."""
        for _ in range(times):
            start, start_cpu = time.perf_counter(), time.process_time()
            result = side()
            seconds = time.perf_counter() - start
            if not self.first_seconds:
                self.first, self.first_seconds = result, seconds
            else:
                self.seconds.append(seconds)
                self.cpu_seconds.append(time.process_time() - start_cpu)


def alternate(
    sides: Mapping[str, Callable[[], Any]], *, rounds: int, calls: int = 1, warmup: int = 0
) -> dict[str, Timing]:
    """Time the sides in turn, `rounds` times `calls` calls each, so that load affects all sides.

    Before that each side is called once to compile and `warmup` times more. Raises InputError for
    less than one round.
    """
    if rounds < 1:
        raise InputError(f"got rounds={rounds}; expected at least 1")
    timings = {name: Timing() for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            timings[name].call(side, calls if number else 1)
            last = timings[name].seconds[-calls:] or [timings[name].first_seconds]
            progress(f"round {number} of {rounds}, {name}: {sum(last):.2f} s")
            for _ in range(0 if number else warmup):
                side()
    return timings


def summarise_timings(
    timings: Mapping[str, Timing], unit: str, work: float, reference: str = OURS
) -> dict:
    """Return each side's median and fastest seconds, `unit`s per second, and ratio.

    `work` is how many units a call does; `ratio` is the median over that of the side `reference`:
    above 1, the reference is faster.
    """
    medians = {name: statistics.median(timing.seconds) for name, timing in timings.items()}
    return {
        name: {
            "median_seconds": medians[name],
            "fastest_seconds": min(timing.seconds),
            "first_seconds": timing.first_seconds,
            f"{unit}_per_second": work / medians[name],
            "ratio": medians[name] / medians[reference],
            "seconds": timing.seconds,
        }
        for name, timing in timings.items()
    }


def benchmark_header(work: str, packages: Iterable[str], *, config=None, device: str = "") -> dict:
    """Return the work, the machine with its load average of one minute, and package versions."""
    if config is not None:
        count = parameter_count(abstract_model(config))
        shape = f"{config.layers} layers, width {config.width}, vocabulary {config.vocab_size:,}"
        device = device or jax.devices()[0].device_kind
        work = f"{count:,} parameters: {shape}, {np.dtype(config.dtype).name}, {work}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    model = next((line.partition(": ")[2] for line in lines if "model name" in line), "")
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    parts = (model or platform.machine(), f"{os.cpu_count()} cores", load, device)
    return {
        "work": work,
        "machine": ", ".join(part for part in parts if part),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def print_result(result: Mapping[str, Any]) -> None:
    """Print a benchmark's result: work, machine, versions, notes, and a line per side."""
    print(result["work"])
    print(result["machine"], *(f"{n} {v}" for n, v in result["versions"].items()), sep=", ")
    for line in result.get("notes", ()):
        print(line)
    for title, sides in result["tables"].items():
        columns = [c for c in next(iter(sides.values())) if c != "seconds"]
        print(f"\n{title:26}", *(f"{column.replace('_', ' '):>18}" for column in columns))
        for name, side in sides.items():
            print(f"{name:26}", *(f"{_text(side[column]):>18}" for column in columns))
    print("\nratio: the median over that of the side of ratio 1; above 1, the latter is faster")


def _text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def progress(line: str) -> None:
    """Print a line on standard error: standard output is for the tables."""
    print(line, file=sys.stderr, flush=True)


def torch_device() -> str:
    """Return the device of the PyTorch sides; on a CPU, set torch to all cores, as XLA uses."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    return "cuda" if torch.cuda.is_available() else "cpu"
