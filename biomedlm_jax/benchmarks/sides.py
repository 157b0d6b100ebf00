"""Time all sides of a benchmark: in one process, or each in processes of its own on a GPU.

On a CPU the sides are in this process, and their rounds alternate. On a GPU two libraries in one
process would share its memory, so blocks of rounds alternate: a side starts in a new process, warms
up, is timed and ends; then the next side. Results come back with the times and are compared here.
"""

import dataclasses
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from biomedlm_jax.benchmarks import own_process
from biomedlm_jax.benchmarks.energy import open_meter
from biomedlm_jax.benchmarks.kernels import profile_steps
from biomedlm_jax.benchmarks.rounds import OURS, Timing, alternate, progress, record_round
from biomedlm_jax.errors import InputError
from biomedlm_jax.model.config import ModelConfig

BLOCKS_ON_GPU = 2


@dataclasses.dataclass
class Measured:
    """What was read of the sides; `failures` are the peers that were left out, and why."""

    timings: dict[str, dict[str, Timing]]  # part -> side -> times
    about: dict[str, str] = dataclasses.field(default_factory=dict)  # of `own_process.describe`
    energy: str = ""
    memory: dict[str, dict] = dataclasses.field(default_factory=dict)
    profile: dict | None = None
    failures: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def for_device(config: ModelConfig, blocks: int | None) -> tuple[ModelConfig, int | None]:
    """Return both as the device needs them: `auto` is bfloat16 on a GPU, and None are some blocks.

    The dtype is decided here, as a peer's process does not see jax's GPU.
    """
    half = config.compute_dtype == "auto" and own_process.on_gpu()
    config = dataclasses.replace(config, compute_dtype="bfloat16") if half else config
    return config, BLOCKS_ON_GPU if blocks is None and own_process.on_gpu() else blocks


def measure_sides(
    module: str,
    names: Iterable[str],
    work: Mapping[str, Any],
    parts: Sequence[str],
    *,
    rounds: int,
    calls: int = 1,
    warmup: int = 0,
    blocks: int | None = None,
    memory_of: str | None = None,
    profile: str | None = None,
) -> Measured:
    """Time `parts` of the sides `names`, the calls that `module`.make_side(name, **work) returns.

    A part is timed in `rounds` of `calls` calls, after a first call and `warmup` more. Without
    `blocks` all sides are in this process; else each has a process of its own in each of so many
    blocks, which does all these calls. A peer whose first call fails is left out. `memory_of` is
    the part whose peak memory is measured; with blocks it is the first one. `profile` is a
    directory for a trace of our first part. Raises InputError for less than one round.
    """
    if rounds < 1:
        raise InputError(f"got rounds={rounds}; expected at least 1")
    if blocks is not None:
        every = rounds * calls
        measured = _in_blocks(module, names, work, parts, blocks, every, warmup, profile)
        measured.memory = measured.memory if memory_of else {}
        measured.notes.append(f"each side in processes of its own, in alternating blocks: {blocks}")
    else:
        measured = _in_turn(module, names, work, parts, rounds, calls, warmup, profile)
        if memory_of:
            sides = measured.timings[memory_of]
            measured.memory, lines = own_process.peak_memory(module, sides, work, memory_of)
            measured.notes += lines
    for name, text in measured.failures.items():
        measured.notes.append(f"{name} is left out, as it fails here: {text}")
    return measured


def _in_turn(module, names, work, parts, rounds, calls, warmup, profile) -> Measured:
    benchmark: Any = importlib.import_module(f"{__package__}.{module}")
    energy, meter = open_meter(gpu=False)
    sides = {name: benchmark.make_side(name, **work) for name in names}
    measured = Measured({}, own_process.describe(benchmark, work), energy)
    for part in parts:
        chosen = {name: side[part] for name, side in sides.items() if name not in measured.failures}
        options = {"rounds": rounds, "calls": calls, "warmup": warmup, "meter": meter}
        measured.timings[part] = alternate(chosen, case=part, failures=measured.failures, **options)
    if profile:
        measured.profile = profile_steps(sides[OURS][parts[0]], profile)
    return measured


def _in_blocks(module, names, work, parts, blocks, calls, warmup, profile) -> Measured:
    measured = Measured({part: {} for part in parts})
    for block in range(blocks):
        for name in names:
            if name in measured.failures:
                continue
            progress(f"block {block + 1} of {blocks}: {name}")
            traced = profile if name == OURS and block == blocks - 1 else None
            options = {"parts": parts, "calls": calls, "warmup": warmup, "profile": traced}
            try:
                answer = own_process.measure_alone(module, name, work, **options)
            except InputError as error:
                if block or name.startswith(OURS):
                    raise
                measured.failures[name] = str(error)
                continue
            measured.memory[name] = own_process.in_gb(answer["memory"])
            if name == OURS:
                measured.about, measured.energy = answer["about"], answer["energy"]
                measured.profile = answer["profile"]
            for part, sides in measured.timings.items():
                timing = Timing(**answer["timings"][part])
                record_round(part, block + 1, name, timing.seconds)
                sides.setdefault(name, timing)
                if block:
                    sides[name].add(timing)
    return measured
