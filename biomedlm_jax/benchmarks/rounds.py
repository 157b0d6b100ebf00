"""Time sides in alternating rounds, compute their ratios, and describe the machine."""

import contextlib
import contextvars
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from biomedlm_jax.errors import InputError, one_line
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.language_model import parameter_count

OURS = "biomedlm_jax"
DEVICE = "BIOMEDLM_BENCH_DEVICE"  # of the sides in processes of their own: cpu or gpu
PEER_PACKAGES = ("torch", "transformers")
NO_DROPOUT: dict[str, Any]
NO_DROPOUT = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0)


_record: contextvars.ContextVar[Callable[..., None] | None] = contextvars.ContextVar(
    "record of rounds", default=None
)


@dataclasses.dataclass
class Timing:
    """Times of one side's calls; the first call, which compiles, is kept apart."""

    first: Any = None  # its result
    last: Any = None  # the result of the last call
    first_seconds: float = 0.0
    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)  # of all threads
    joules: list[float] = dataclasses.field(default_factory=list)  # where they are counted
    meter: Callable[[], float] | None = None

    def call(self, side: Callable[[], Any], times: int = 1) -> None:
        """Call a side and add its times; the first call's result and time are kept apart."""
        for _ in range(times):
            energy = self.meter() if self.meter else 0.0
            start, start_cpu = time.perf_counter(), time.process_time()
            self.last = side()
            seconds = time.perf_counter() - start
            if not self.first_seconds:
                self.first, self.first_seconds = self.last, seconds
                continue
            self.seconds.append(seconds)
            self.cpu_seconds.append(time.process_time() - start_cpu)
            if self.meter:
                self.joules.append(self.meter() - energy)

    def add(self, later: "Timing") -> None:
        """Add the times of the same side in another process; its last result is the last one."""
        self.last = later.last
        for name in ("seconds", "cpu_seconds", "joules"):
            getattr(self, name).extend(getattr(later, name))

    def to_json(self) -> dict[str, Any]:
        """Return all but the meter, as `Timing(**value)` takes it."""
        return {name: value for name, value in vars(self).items() if name != "meter"}


@contextlib.contextmanager
def recorded(path: str | Path, **fields: Any) -> Generator[None]:
    """Append each round that ends in the block to a file, as a JSON line with `fields`."""

    def write(**values: Any) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({**fields, **values}) + "\n")

    token = _record.set(write)
    try:
        yield
    finally:
        _record.reset(token)


def record_round(case: str, number: int, side: str, seconds: Sequence[float]) -> None:
    """Print the seconds of a side's round on standard error, and record them; round 0 compiles."""
    where = f"{case}, round {number}" if case else f"round {number}"
    progress(f"{where}, {side}: {sum(seconds):.2f} s")
    if write := _record.get():
        write(case=case, round=number, side=side, seconds=list(seconds))


def alternate(
    sides: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    calls: int = 1,
    warmup: int = 0,
    case: str = "",
    failures: dict[str, str] | None = None,
    meter: Callable[[], float] | None = None,
) -> dict[str, Timing]:
    """Time the sides in turn, `rounds` times `calls` calls each, so that load affects all sides.

    Before that each side is called once to compile and `warmup` times more. With `failures`, a peer
    whose first call fails is left out, and its error is put there (torch.compile needs a compiler).
    Raises InputError for less than one round.
    """
    if rounds < 1:
        raise InputError(f"got rounds={rounds}; expected at least 1")
    timings = {name: Timing(meter=meter) for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            if name not in timings:
                continue
            try:
                timings[name].call(side, calls if number else 1)
                last = timings[name].seconds[-calls:] or [timings[name].first_seconds]
                record_round(case, number, name, last)
                for _ in range(0 if number else warmup):
                    side()
            except Exception as error:
                if number or failures is None or name.startswith(OURS):
                    raise
                failures[name] = f"{type(error).__name__}: {one_line(str(error))[:200]}"
                progress(f"{name} fails and is left out: {failures[name]}")
                del timings[name]
    return timings


def available_peers(peers: Iterable[str], notes: list[str], packages=PEER_PACKAGES) -> tuple:
    """Return the peers, or none if their packages are not installed: then a note is added."""
    peers = tuple(peers)
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if peers and missing:
        notes.append(
            f"{' and '.join(missing)} not installed, {OURS} is measured alone; fix: pip install "
            "'biomedlm-jax[hf]'"
        )
        return ()
    return peers


def summarise_timings(
    timings: Mapping[str, Timing], unit: str, work: float, reference: str = OURS
) -> dict:
    """Return each side's median seconds with quartiles, `unit`s per second, and ratio.

    `work` is how many units a call does; `ratio` is the median over that of the side `reference`:
    above 1, the reference is faster. `compile_seconds` are the first call's less a median one.
    `joules` of a median call are there where energy is counted.
    """
    medians = {name: statistics.median(timing.seconds) for name, timing in timings.items()}
    table = {}
    for name, timing in timings.items():
        table[name] = {
            "median_seconds": medians[name],
            "quartile_seconds": np.percentile(timing.seconds, [25, 75]).tolist(),
            "fastest_seconds": min(timing.seconds),
            "first_seconds": timing.first_seconds,
            "compile_seconds": max(0.0, timing.first_seconds - medians[name]),
            f"{unit}_per_second": work / medians[name],
            "ratio": medians[name] / medians[reference],
            "seconds": timing.seconds,
        }
        if timing.joules:
            table[name]["joules"] = statistics.median(timing.joules)
    return table


def unequal(table: Mapping[str, Mapping], what: str, tolerance: float) -> list[str]:
    """Return an error line for each side whose `difference` from the first is above `tolerance`."""
    lines = []
    for name, side in table.items():
        difference = side["difference"]
        if not difference <= tolerance:  # nor is NaN
            lines.append(
                f"{name}: {what} differ by {difference:.3g}, expected at most {tolerance:.3g}; "
                "the sides do not compute the same, and their times do not compare"
            )
    return lines


def compare_first(table: Mapping[str, dict], timings: Mapping[str, Timing]) -> None:
    """Set `difference`: the largest one between the numbers of a side's first call and the first's.

    Raises InputError if a side returned another number of them.
    """
    reference, *_ = timings.values()
    for name, side in table.items():
        if len(timings[name].first) != len(reference.first):
            got = f"got {len(timings[name].first)} numbers of {name}"
            raise InputError(f"{got}; expected {len(reference.first)}, as of the first side")
        side["difference"] = float(np.abs(np.subtract(timings[name].first, reference.first)).max())


def benchmark_header(
    work: str, packages: Iterable[str], *, config=None, about: Mapping[str, str] | None = None
) -> dict:
    """Return the work, the machine with its load average of one minute, and package versions.

    `about` has the device of another process, so that this one need not start it.
    """
    device = ""
    if config is not None:
        count = parameter_count(abstract_model(config))
        shape = f"{config.layers} layers, width {config.width}, vocabulary {config.vocab_size:,}"
        device = about["device_kind"] if about else jax.devices()[0].device_kind
        work = f"{count:,} parameters: {shape}, {np.dtype(config.dtype).name}, {work}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    model = next((line.partition(": ")[2] for line in lines if "model name" in line), "")
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    parts = (model or platform.machine(), f"{cores()} cores", load, device)
    return {
        "work": work,
        "machine": ", ".join(part for part in parts if part),
        "versions": {name: version for name in packages if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def print_result(result: Mapping[str, Any]) -> None:
    """Print a benchmark's result: work, machine, versions, notes, errors, and its tables."""
    for line in result.get("errors", ()):
        print(f"error: {line}")
    if "tables" not in result:
        return
    print(result["work"])
    print(result["machine"], *(f"{n} {v}" for n, v in result["versions"].items()), sep=", ")
    for line in result.get("notes", ()):
        print(line)
    for title, rows in result["tables"].items():
        columns = table_columns(rows)
        print(f"\n{title:26}", *(f"{column.replace('_', ' '):>18}" for column in columns))
        for name, row in rows.items():
            print(f"{name:26}", *(f"{cell_text(row.get(column)):>18}" for column in columns))
    print("\nratio: the median over that of the side of ratio 1; above 1, the latter is faster")


def table_columns(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the columns of a table of a result, but not the seconds of each call."""
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    return [column for column in columns if column != "seconds"]


def cell_text(value: Any) -> str:
    """Return a value of a table as text: four digits, a range for a pair, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return " to ".join(map(cell_text, value))
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def progress(line: str) -> None:
    """Print a line on standard error: standard output is for the tables."""
    print(line, file=sys.stderr, flush=True)


def cores() -> int:
    """Return the number of cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def torch_device() -> str:
    """Return the device of the PyTorch sides, that of jax; on a CPU, set torch to all cores.

    Raises InputError if jax runs on a GPU and this torch has none.
    """
    import torch

    torch.set_num_threads(cores())
    device = os.environ.get(DEVICE) or jax.default_backend()  # a peer's process hides jax's GPU
    if device != "gpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError("jax runs on a GPU and this torch has none; fix: install torch for CUDA")
    torch.set_float32_matmul_precision("high")  # TF32, as jax multiplies float32 on a GPU
    return "cuda"
