"""plan(): compile a config's step for one or more meshes, and estimate its time and memory."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from biomedlm_jax import mesh as meshes
from biomedlm_jax.chips import GIB, Chip, chip
from biomedlm_jax.corpus.manifest import read_manifest
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_text
from biomedlm_jax.model import attention
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import abstract_model, make_config
from biomedlm_jax.model.language_model import LanguageModel, parameter_count
from biomedlm_jax.planning.compiled import Figures, compile_figures
from biomedlm_jax.planning.memory import alternatives, out_of_memory_message
from biomedlm_jax.planning.steps import STEPS, trace_step
from biomedlm_jax.planning.topology import sensible_meshes, topology_devices
from biomedlm_jax.settings import read_settings
from biomedlm_jax.training.config import LoRASettings
from biomedlm_jax.training.metrics import flops_per_token
from biomedlm_jax.training.pretrain import PretrainSettings, fill_config_from_manifest
from biomedlm_jax.training.state import adapted

# Assumption, not a measurement: attention kernels reach this fraction of the peak.
KERNEL_EFFICIENCY = 0.4
# Bytes/s that one chip sends between slices, over the data-centre network (DCN). Sources, read in
# November 2026: docs.cloud.google.com/tpu/docs/v5e (6.4 Tbit/s for a pod of 256 chips) and
# .../v5p (50 Gbit/s per chip). Google's pages do not have it for v4.
DCN_BANDWIDTH = {"v5e": 6.4e12 / 8 / 256, "v5p": 50e9 / 8}


@dataclasses.dataclass(frozen=True)
class Row:
    """One compiled mesh: its figures and estimates, or the reason why there are none."""

    mesh: dict[str, int]
    change: dict[str, int | str]  # config values that differ from the plan's config
    state_bytes: dict[str, int]  # on a device: parameters, and optimizer or cache
    figures: Figures | None = None
    problem: str | None = None  # why it does not fit
    # Estimated seconds per step: operations, kernels, exposed collectives, between slices; empty
    # if one is unknown.
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether the step fits into a device's memory."""
        return self.problem is None

    @property
    def step_seconds(self) -> float | None:
        """All parts one after the other: an upper bound."""
        return sum(self.seconds.values()) or None

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
    trained: int | None = None  # parameters, with LoRA
    slices: int = 1  # of TPUs, connected by the data-centre network


def plan(
    config: ConfigDict,
    topology: str = "local",
    *,
    search: bool = False,
    tensor: tuple[int, ...] = (1, 2, 4),
    step: str = "train",
    hlo: str | Path | None = None,
    suggest: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Compile a config's step for `topology` (v5e:16x16; 2xv5e:16x16; local: jax's devices).

    The mesh is the config's; `search` compiles every sensible one whose tensor axis is in `tensor`.
    `step` is train, score (the loss of a batch) or decode (one token for each row, full cache).
    `hlo` is a directory for the optimised programs; `progress` receives a line before and after
    each compilation. A mesh that does not fit into memory becomes a row with the reason, and if no
    mesh fits, other meshes and settings are compiled until some fit, unless `suggest` is False.
    Raises InputError before it compiles if mesh, model and batch do not fit together.
    """
    if step not in STEPS:
        raise InputError(f"got step={step!r}; choose one of {', '.join(STEPS)}")
    devices = topology_devices(topology)
    settings, model_config = _read(config, {})
    model = abstract_model(model_config)
    make_mesh, lora = functools.partial(meshes.make_mesh, devices=devices), settings.lora
    known, slices = chip(devices[0].device_kind), len(set(map(meshes.slice_index, devices)))
    batch, accumulation = settings.training.batch_size, settings.training.accumulation
    sizes = [dataclasses.asdict(settings.mesh)]
    if search:
        least = 1.0
        if known and step == "train":  # two thirds of a device for parameters and moments
            size = jnp.dtype(lora.frozen_dtype).itemsize if lora.rank else 12
            least = size * parameter_count(model) / (known.device_memory * 2 / 3)
        rows = batch // accumulation
        options = {"least_shards": least, "tensor": tensor, "slices": slices}
        sizes = sensible_meshes(len(devices), model, rows, **options)
        if not sizes:
            raise InputError(f"no mesh of {topology} divides the model and {batch} rows")
    try:
        tried = [make_mesh(**one) for one in sizes]
    except ValueError as error:
        advice = "set --config.mesh.fsdp=N, or add --search to compile every sensible mesh"
        raise InputError(f"{topology}: {error}; fix: {advice}") from None
    kernel, dropout = "xla", model_config.attention_dropout if step == "train" else 0.0
    for mesh in tried:
        meshes.check_fits(mesh, batch_size=batch, accumulation=accumulation, model=model)
        if step != "decode":  # which uses no kernel
            executed = dataclasses.replace(model_config, attention_dropout=dropout)
            kernel = attention.training_kernel(executed, mesh)
    tokens = batch if step == "decode" else batch * model_config.context_length
    flops = flops_per_token(model, model_config.context_length) * tokens
    result = Plan(
        topology=topology,
        step=step,
        device_kind=devices[0].device_kind,
        devices=len(devices),
        chip=known,
        kernel=kernel,
        tokens_per_step=tokens,
        model_flops=flops if step == "train" else flops / 3,  # the forward pass alone
        steps=settings.training.steps,
        rows=[],
        trained=_trained(model, lora) if step == "train" and lora.rank else None,
        slices=slices,
    )
    compile_row = functools.partial(_compile_row, result, config, hlo=hlo, progress=progress)
    rows = [compile_row(mesh, {}) for mesh in tried]
    if suggest and not any(row.fits for row in rows):
        meshes_tried = [row.mesh for row in rows]
        kinds = alternatives(settings, model, meshes_tried, step=step, slices=slices)
        if known and min(sum(row.state_bytes.values()) for row in rows) > known.device_memory:
            kinds = kinds[:1]  # only more shards make the state smaller
        for kind in kinds:
            if kind is kinds[-1] and any(row.fits for row in rows):
                break  # the last kind is the slowest
            more = (compile_row(make_mesh(**one), change) for one, change in kind)
            rows += itertools.islice((row for row in more if row.fits), 1)
        fits = "; ".join(row.name for row in rows if row.fits)
        advice = f"fits: {fits or 'nothing that was tried; use more devices or a smaller batch'}"
        for i, row in enumerate(rows):
            if row.problem:
                rows[i] = dataclasses.replace(row, problem=f"{row.problem}; {advice}")
    rows.sort(key=lambda row: row.figures.memory["total"] if row.figures else 0)
    rows.sort(key=lambda row: (not row.fits, row.step_seconds or math.inf))
    result.rows.extend(rows)
    return result


def _trained(model: LanguageModel, lora: LoRASettings) -> int:
    adapter = jax.eval_shape(functools.partial(adapted, lora=lora, seed=0), model)
    return sum(leaf.size for leaf in jax.tree.leaves(adapter))


def _read(config: ConfigDict, change: dict) -> tuple[PretrainSettings, ModelConfig]:
    """Return the changed settings and the model's, from token rows where the settings are unset."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(change)
    settings = read_settings(PretrainSettings, config.to_dict())
    unset = [k for k in ("vocab_size", "context_length") if settings.model.get(k) is None]
    if unset and not (settings.data.path or settings.data.mixture):
        flags = " and ".join(f"--config.model.{name}" for name in unset)
        raise InputError(f"expected {flags}, or --config.data.path=DIR of token rows; got none")
    if unset:
        return settings, fill_config_from_manifest(
            settings.model, read_manifest(settings.data.sources[0].path)
        )
    return settings, make_config(settings.model)


def _compile_row(
    made: Plan, config: ConfigDict, mesh: Mesh, change: dict, *, hlo, progress: Callable
) -> Row:
    """Compile the step with some of the config's values changed; keep its program in `hlo`."""
    settings, model_config = _read(config, change)
    with jax.set_mesh(mesh):
        traced, options, state_bytes = trace_step(settings, model_config, mesh, made.step)
        row = Row(dict(mesh.shape), change, state_bytes)
        progress(f"compiling {row.name} for {made.topology}")
        figures, text, message = None, "", ""
        room = made.chip.device_memory if made.chip else math.inf
        try:
            figures, text = compile_figures(traced, devices=mesh.size, options=options)
        except jax.errors.JaxRuntimeError as error:
            message = str(error)
            if "RESOURCE_EXHAUSTED" not in message:
                raise
        if figures and figures.memory["total"] > room:
            message = f"needs {figures.memory['total'] / GIB:.2f} of {room / GIB:.2f} GiB"
        if message:
            problem = out_of_memory_message(message, state_bytes, traced.jaxpr, mesh, model_config)
            row = dataclasses.replace(row, problem=problem)
    progress(f"  {row.problem or f'{figures.compile_seconds if figures else 0:.0f} s'}")
    if hlo and text:
        name = f"{made.topology}_{made.step}_{row.name}.hlo".replace(":", "-").replace(" ", "")
        write_text(Path(hlo) / name, text)
    seconds = {}
    if figures and made.chip:
        seconds = estimate_seconds(figures, made.chip, slices=made.slices)
    return dataclasses.replace(row, figures=figures, seconds=seconds)


def estimate_seconds(figures: Figures, chip: Chip, *, slices: int = 1) -> dict[str, float]:
    """Return the estimated seconds of a step by part; empty if the figures for a part are unknown.

    Those are the compiler's cycles, and for several slices the bandwidth between them.
    """
    if figures.cycles is None or chip.clock is None:
        return {}
    if slices > 1 and chip.name not in DCN_BANDWIDTH:
        return {}
    wire = sum(c.wire for c in figures.collectives or () if c.exposed)
    seconds = {
        "operations": figures.cycles / chip.clock,
        "kernels": figures.kernel_flops / (chip.device_flops * KERNEL_EFFICIENCY),
        "exposed collectives": wire / chip.ring_bandwidth,
    }
    if slices > 1:
        wire = sum(c.wire for c in figures.between_slices)
        seconds["between slices"] = wire / (DCN_BANDWIDTH[chip.name] / chip.devices)
    return seconds
