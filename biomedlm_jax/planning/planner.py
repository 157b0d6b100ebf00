"""plan(): compile a config's step for one or more meshes, and estimate its time and memory."""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from biomedlm_jax import mesh as meshes
from biomedlm_jax.chips import GIB, Chip, chip
from biomedlm_jax.model import attention
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.planning.compiled import Figures, compile_figures
from biomedlm_jax.planning.memory import alternatives, shortage
from biomedlm_jax.planning.steps import STEPS, trace_step
from biomedlm_jax.planning.topology import sensible_meshes, topology_devices
from biomedlm_jax.training.metrics import flops_per_token
from biomedlm_jax.training.run import check_config

# Assumed, not measured: the share of the peak that attention kernels reach.
KERNEL_EFFICIENCY = 0.4


@dataclasses.dataclass(frozen=True)
class Row:
    """One compiled mesh: the compiler's figures, or why there are none, and estimates."""

    mesh: dict[str, int]
    change: dict[str, int | str]  # config values that differ from the plan's config
    state_bytes: dict[str, int]  # on a device: parameters, and optimizer or cache
    figures: Figures | None = None
    problem: str | None = None  # why it does not fit
    # Estimated seconds per step of operations, kernels, exposed collectives; None if unknown.
    seconds: dict[str, float] | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None

    @property
    def fits(self) -> bool:
        """Whether the step fits into a device's memory."""
        return self.problem is None

    @property
    def step_seconds(self) -> float | None:
        """Operations, kernels and exposed collectives one after the other: an upper bound."""
        return sum(self.seconds.values()) if self.seconds else None

    @property
    def name(self) -> str:
        """The mesh and the changed values, such as `data 8 x fsdp 32, model.remat=full`."""
        axes = " x ".join(f"{axis} {size}" for axis, size in self.mesh.items() if size > 1)
        return ", ".join([axes or "one device", *(f"{k}={v}" for k, v in self.change.items())])


@dataclasses.dataclass(frozen=True)
class Plan:
    """All rows of one topology, best first."""

    topology: str
    step: str
    device_kind: str
    devices: int
    chip: Chip | None
    kernel: str  # of attention
    tokens_per_step: int
    model_flops: float  # per step, all devices, recomputation not counted
    steps: int
    rows: list[Row]


def plan(
    config: ConfigDict,
    topology: str = "local",
    *,
    search: bool = False,
    tensor: tuple[int, ...] = (1, 2, 4),
    step: str = "train",
    hlo: str | Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Compile the config's step for `topology` (such as v5e:16x16; local: jax's devices).

    The mesh is the config's; `search` compiles every sensible one whose tensor axis is in `tensor`.
    `step` is train, score (the loss of a batch) or decode (one token for each row, full cache).
    `hlo` is a directory for the optimised programs; `progress` receives a line before and after
    each compilation. A mesh that does not fit into memory becomes a row with the reason, and if no
    mesh fits, other meshes and settings are compiled until some fit. Raises ValueError before it
    compiles if mesh, model and batch do not fit together.
    """
    if step not in STEPS:
        raise ValueError(f"got step={step!r}; choose one of {', '.join(STEPS)}")
    config = copy.deepcopy(config)
    with config.unlocked():
        config.data.path = config.data.path or "not read"
    model = check_config(config)
    devices = topology_devices(topology)
    known = chip(devices[0].device_kind)
    batch, accumulation = config.training.batch_size, config.training.accumulation
    if search:
        sizes = _search(len(devices), model, batch // accumulation, tensor, step, known)
        if not sizes:
            raise ValueError(
                f"no mesh of {topology} divides the model and {batch} rows; change one"
            )
    else:
        sizes = [_config_mesh(config, topology, len(devices))]
    kernel = ""
    for mesh in (made := [meshes.make_mesh(**one, devices=devices) for one in sizes]):
        meshes.check_fits(mesh, batch_size=batch, accumulation=accumulation, model=model)
        kernel = attention_kernel(model, mesh, step)
    tokens = batch if step == "decode" else batch * model.context_length
    flops = flops_per_token(model) * tokens
    result = Plan(
        topology=topology,
        step=step,
        device_kind=devices[0].device_kind,
        devices=len(devices),
        chip=known,
        kernel=kernel,
        tokens_per_step=tokens,
        model_flops=flops if step == "train" else flops / 3,  # the forward pass alone
        steps=config.training.steps,
        rows=[],
    )
    compile_row = functools.partial(_compile_row, result, config, hlo=hlo, progress=progress)
    rows = [compile_row(mesh, {}) for mesh in made]
    if not any(row.fits for row in rows):
        kinds = alternatives(config, model, [row.mesh for row in rows], step=step)
        if known and min(sum(row.state_bytes.values()) for row in rows) > known.device_memory:
            kinds = kinds[:1]  # only more shards make the state smaller
        for kind in kinds:
            if kind is kinds[-1] and any(row.fits for row in rows):
                break  # the last kind is the slowest
            tried = (compile_row(meshes.make_mesh(**m, devices=devices), c) for m, c in kind)
            rows += [row for row in [next((row for row in tried if row.fits), None)] if row]
        fitting = "; ".join(row.name for row in rows if row.fits)
        nothing = "nothing else that was tried fits; use more devices or a smaller batch_size"
        advice = f"would fit: {fitting}" if fitting else nothing
        rows = [
            row if row.fits else dataclasses.replace(row, problem=f"{row.problem}; {advice}")
            for row in rows
        ]
    result.rows.extend(sorted(rows, key=_rank))
    return result


def _config_mesh(config: ConfigDict, topology: str, devices: int) -> dict[str, int]:
    """The config's mesh sizes; ValueError if they do not make so many devices."""
    try:
        sizes = meshes.mesh_sizes(devices, **config.mesh)
    except ValueError as error:
        raise ValueError(
            f"{topology}: {error}; fix: set --config.mesh.fsdp to a divisor of {devices}, or add "
            "--search to compile every sensible mesh"
        ) from None
    return dict(zip(meshes.AXES, sizes, strict=True))


def _search(
    devices: int,
    model: GPTConfig,
    rows: int,
    tensor: tuple[int, ...],
    step: str,
    known: Chip | None,
) -> list[dict[str, int]]:
    """Sensible meshes on which the training state takes two thirds of a device, or the closest."""
    sensible = sensible_meshes(devices, model, batch_size=rows, tensor=tensor)
    shards = [one["fsdp"] * one["tensor"] for one in sensible]
    least = 1.0
    if known and step == "train":
        least = 12 * model.parameter_count / (known.device_memory * 2 / 3)  # float32 and moments
    least = min(least, max(shards, default=1))
    return [one for one, parts in zip(sensible, shards, strict=True) if parts >= least]


def attention_kernel(model: GPTConfig, mesh: Mesh, step: str) -> str:
    """Return the attention kernel of a step; decoding uses none, scoring has no dropout."""
    if step == "decode":
        return "xla"
    if step == "score":
        model = dataclasses.replace(model, attention_dropout=0.0)
    return attention.check_training(model, mesh)


def _compile_row(
    made: Plan,
    config: ConfigDict,
    mesh: Mesh,
    change: dict[str, int | str],
    *,
    hlo: str | Path | None,
    progress: Callable[[str], None],
) -> Row:
    """Compile the step with some of the config's values changed; keep its program in `hlo`."""
    config = copy.deepcopy(config)
    config.update_from_flattened_dict(change)
    model = check_config(config)
    with jax.set_mesh(mesh):
        traced, options, state_bytes = trace_step(config, model, mesh, made.step)
        row = Row(dict(mesh.shape), change, state_bytes)
        progress(f"compiling {row.name} for {made.topology}")
        try:
            figures, text = compile_figures(traced, devices=mesh.size, options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            problem = shortage(str(error), state_bytes, traced.jaxpr, mesh, model)
            progress(f"  {problem}")
            return dataclasses.replace(row, problem=problem)
        room = made.chip.device_memory if made.chip else math.inf
        used, problem = figures.memory.get("total", 0), None
        if used > room:
            need = f"needs {used / GIB:.2f} of {room / GIB:.2f} GiB"
            problem = shortage(need, state_bytes, traced.jaxpr, mesh, model)
    progress(f"  {problem or f'{figures.compile_seconds:.0f} s'}")
    if hlo and text:
        Path(hlo).mkdir(parents=True, exist_ok=True)
        words = (made.topology.replace(":", "-"), made.step, row.name.replace(" ", ""))
        (Path(hlo) / f"{'_'.join(words)}.hlo").write_text(text, encoding="utf-8")
    estimates = _estimates(figures, made)
    return dataclasses.replace(row, figures=figures, problem=problem, **estimates)


def _estimates(figures: Figures, made: Plan) -> dict[str, Any]:
    known = made.chip
    if known is None or figures.cycles is None or known.clock is None:
        return {}
    peak = known.device_flops
    wire = sum(c.wire for c in figures.collectives or () if c.exposed)
    seconds = {
        "operations": figures.cycles / known.clock,
        "kernels": figures.kernel_flops / (peak * KERNEL_EFFICIENCY),
        "exposed collectives": wire / known.ring_bandwidth,
    }
    total = sum(seconds.values())
    mfu = made.model_flops / (total * made.devices * peak)
    return {"seconds": seconds, "tokens_per_second": made.tokens_per_step / total, "mfu": mfu}


def _rank(row: Row) -> tuple:
    used = row.figures.memory.get("total", 0) if row.figures else math.inf
    return (not row.fits, row.step_seconds or math.inf, used)
