"""plan(): compile a config's step for every mesh asked for, and reckon what it would take."""

import copy
import dataclasses
import functools
import itertools
import math
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from biomedlm_jax import mesh as meshes
from biomedlm_jax.chips import GIB, Chip, chip
from biomedlm_jax.model import attention
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.planning.alternatives import alternatives
from biomedlm_jax.planning.compiled import Figures, compile_figures
from biomedlm_jax.planning.memory import shortage
from biomedlm_jax.planning.steps import STEPS, trace_step
from biomedlm_jax.planning.topology import sensible_meshes, topology_devices
from biomedlm_jax.training.metrics import flops_per_token
from biomedlm_jax.training.run import check_config

# Assumed, not measured: the share of the peak that attention kernels reach.
KERNEL_EFFICIENCY = 0.4


@dataclasses.dataclass(frozen=True)
class Row:
    """One mesh: what the compiler said, or why it could not; estimates in seconds a step."""

    mesh: dict[str, int]
    figures: Figures | None
    state_bytes: dict[str, int]  # parameters and optimizer on a device
    fits: bool
    trouble: str | None = None
    change: dict[str, int | str] = dataclasses.field(default_factory=dict)  # of the config's values
    op_seconds: float | None = None
    kernel_seconds: float | None = None
    exchange_seconds: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None

    @property
    def step_seconds(self) -> float | None:
        """Operations, kernels and exposed exchanges one after the other: an upper bound."""
        parts = (self.op_seconds, self.kernel_seconds, self.exchange_seconds)
        return None if None in parts else sum(parts)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All rows of one topology, best first."""

    topology: str
    step: str
    device_kind: str
    devices: int
    chip: Chip | None
    kernel: str
    tokens_per_step: int
    model_flops: float  # a step, all devices: 6N + 12 * layers * width * length a token, or a third
    steps: int
    rows: list[Row]

    @property
    def chips(self) -> int:
        """Chips, of which some count as two devices."""
        return self.devices // (self.chip.devices if self.chip else 1)


def plan(
    config: ConfigDict,
    topology: str = "local",
    *,
    search: bool = False,
    tensor: tuple[int, ...] = (1, 2, 4),
    step: str = "train",
    hlo: str | Path | None = None,
    say=lambda text: None,
) -> Plan:
    """Compile the config's step for `topology` (such as v5e:16x16; local: the devices here).

    One mesh is compiled, that of the config; with `search` every sensible one whose tensor axis is
    in `tensor`. `step` is train, score (the loss of a batch) or decode (one more token for every
    row of a batch, with a full cache). `hlo` is a directory that keeps the optimised programs.
    `say` is told of progress. A mesh that runs out of memory is a row that says so, and if all do,
    other meshes and settings are compiled until some fit. Raises ValueError, before anything is
    compiled, for what does not fit together.
    """
    if step not in STEPS:
        raise ValueError(f"got step={step!r}; choose one of {', '.join(STEPS)}")
    config = copy.deepcopy(config)
    with config.unlocked():
        config.data.path = config.data.path or "not read"
    model_config = check_config(config)
    devices = topology_devices(topology)
    known = chip(devices[0].device_kind)
    batch, length = config.training.batch_size, model_config.context_length
    sizes = [dict(config.mesh)]
    if search:
        rows = batch // config.training.accumulation
        find = functools.partial(sensible_meshes, len(devices), model_config, batch_size=rows)
        least = _least_shards(model_config, known) if step == "train" else 1
        # Where no mesh spreads the state that far, those that spread it most say what is missing.
        sizes = find(least_shards=least, tensor=tensor) or _most_spread(find(tensor=tensor))
        if not sizes:
            raise ValueError(
                f"no mesh of {topology} divides the model and {batch} rows; change one"
            )
    laid_out = [meshes.make_mesh(**one, devices=devices) for one in sizes]
    for mesh in laid_out:
        accumulation = config.training.accumulation
        meshes.check_fits(mesh, batch_size=batch, accumulation=accumulation, model=model_config)
        kernel = attention_kernel(model_config, mesh, step)
    tokens = batch if step == "decode" else batch * length
    flops = flops_per_token(model_config) * tokens
    result = Plan(
        topology=topology,
        step=step,
        device_kind=devices[0].device_kind,
        devices=len(devices),
        chip=known,
        kernel=kernel,
        tokens_per_step=tokens,
        model_flops=flops if step == "train" else flops / 3,
        steps=config.training.steps,
        rows=[],
    )

    compile_row = functools.partial(_row, config, result, hlo=hlo, say=say)
    result.rows.extend(compile_row(mesh) for mesh in laid_out)
    if not any(row.fits for row in result.rows):
        tried = [row.mesh for row in result.rows]
        kinds = alternatives(config, model_config, tried, step=step)
        state = min(sum(row.state_bytes.values()) for row in result.rows)
        if known and state > known.device_memory:
            kinds = kinds[:1]  # fewer rows do not make the state smaller, more shards do
        *kinds, last = kinds
        for kind in (*kinds, last):
            if kind is last and any(row.fits for row in result.rows):
                break  # the last kind costs most
            rows = (
                compile_row(meshes.make_mesh(**one, devices=devices), change)
                for one, change in kind
            )
            result.rows.extend(itertools.islice((row for row in rows if row.fits), 1))
        _say_what_fits(result.rows)
    result.rows.sort(key=_rank)
    return result


def _most_spread(sizes: list[dict[str, int]]) -> list[dict[str, int]]:
    shards = [one["fsdp"] * one["tensor"] for one in sizes]
    return [one for one, count in zip(sizes, shards, strict=True) if count == max(shards)]


def attention_kernel(config: GPTConfig, mesh: Mesh, step: str) -> str:
    """The attention kernel of the step; a decoding step has none, scoring drops nothing out."""
    if step == "decode":
        return "xla"
    if step == "score":
        config = dataclasses.replace(config, attention_dropout=0.0)
    return attention.check_training(config, mesh)


def _say_what_fits(rows: list[Row]) -> None:
    """Add to the trouble of the rows that do not fit which of `rows` do."""
    fitting = "; ".join(row_name(row.mesh, row.change) for row in rows if row.fits)
    way = (
        f"would fit: {fitting}"
        if fitting
        else (
            "nothing else that was tried fits; take more devices or a smaller training.batch_size"
        )
    )
    rows[:] = [
        row if row.fits else dataclasses.replace(row, trouble=f"{row.trouble}; {way}")
        for row in rows
    ]


def _row(config: ConfigDict, made: Plan, mesh: Mesh, change=(), *, hlo, say) -> Row:
    """Compile the step with the config's values changed, and keep its program in `hlo`."""
    config = copy.deepcopy(config)
    config.update_from_flattened_dict(dict(change))
    name = row_name(mesh.shape, dict(change))
    say(f"compiling {name} for {made.topology}")
    row, text = _compile(config, check_config(config), mesh, made)
    if hlo and text:
        Path(hlo).mkdir(parents=True, exist_ok=True)
        words = (made.topology.replace(":", "-"), made.step, name.replace(" ", ""))
        (Path(hlo) / f"{'_'.join(words)}.hlo").write_text(text, encoding="utf-8")
    say(f"  {row.trouble}" if row.trouble else f"  {row.figures.compile_seconds:.0f} s")
    return dataclasses.replace(row, change=dict(change))


def _compile(config, model_config, mesh: Mesh, made: Plan) -> tuple[Row, str]:
    with jax.set_mesh(mesh):
        traced, options, state_bytes = trace_step(config, model_config, mesh, made.step)
        sizes = dict(mesh.shape)
        try:
            figures, text = compile_figures(traced, devices=mesh.size, options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            trouble = shortage(str(error), state_bytes, traced.jaxpr, mesh, model_config)
            return Row(sizes, None, state_bytes, False, trouble), ""
    room = made.chip.device_memory if made.chip else math.inf
    used = figures.memory.get("total", 0)
    fits, trouble = used <= room, None
    if not fits:
        amount = f"needs {used / GIB:.2f} of {room / GIB:.2f} GiB"
        trouble = shortage(amount, state_bytes, traced.jaxpr, mesh, model_config)
    return Row(sizes, figures, state_bytes, fits, trouble, **_estimates(figures, made)), text


def _estimates(figures: Figures, made: Plan) -> dict:
    known = made.chip
    if known is None or figures.cycles is None or known.clock is None:
        return {}
    peak = known.device_flops
    exposed = [c for c in figures.collectives if c.exposed]
    found = {
        "op_seconds": figures.cycles / known.clock,
        "kernel_seconds": figures.kernel_flops / (peak * KERNEL_EFFICIENCY),
        "exchange_seconds": sum(c.wire for c in exposed) / known.ring_bandwidth,
    }
    seconds = sum(found.values())
    found["tokens_per_second"] = made.tokens_per_step / seconds
    found["mfu"] = made.model_flops / (seconds * made.devices * peak)
    return found


def _rank(row: Row) -> tuple:
    used = row.figures.memory.get("total", 0) if row.figures else math.inf
    return (not row.fits, row.step_seconds or math.inf, used)


def _least_shards(config: GPTConfig, known: Chip | None) -> int:
    """Over how many devices the float32 state must be spread to take two thirds of a device."""
    if known is None:
        return 1
    return math.ceil(12 * config.parameter_count / (known.device_memory * 2 / 3))


def row_name(sizes, change: dict) -> str:
    """A mesh and the changed values in words, such as `data 8 x fsdp 32, model.remat=full`."""
    mesh = " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "one device"
    return ", ".join([mesh, *(f"{name}={value}" for name, value in change.items())])
