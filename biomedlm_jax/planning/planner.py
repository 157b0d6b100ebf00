"""plan(): compile a config's step for every mesh asked for, and reckon what it would take."""

import copy
import dataclasses
import functools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from biomedlm_jax import mesh as meshes
from biomedlm_jax.chips import Chip, chip
from biomedlm_jax.generation.decoder import abstract_cache, abstract_decoder, decode_step
from biomedlm_jax.model import attention
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.planning.compiled import Figures, compile_figures, peak_links
from biomedlm_jax.planning.topology import sensible_meshes, topology_devices, topology_mesh
from biomedlm_jax.training.loss import next_token_loss, summed_loss
from biomedlm_jax.training.metrics import flops_per_token
from biomedlm_jax.training.optimizer import make_optimizer
from biomedlm_jax.training.run import check_config
from biomedlm_jax.training.state import (
    abstract_model,
    abstract_state,
    compile_step,
    compiler_options,
    train_step,
)

STEPS = ("train", "score", "decode")
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
    `say` is told of progress. Raises ValueError, before anything is compiled,
    for what does not fit together; a mesh that runs out of memory is a row that says so.
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
        least = _least_shards(model_config, known) if step == "train" else 1
        sizes = sensible_meshes(
            len(devices), model_config, batch_size=batch, least_shards=least, tensor=tensor
        )
        if not sizes:
            raise ValueError(
                f"no mesh of {topology} divides the model and {batch} rows; change one"
            )
    laid_out = [topology_mesh(devices, **one) for one in sizes]
    for mesh in laid_out:
        accumulation = config.training.accumulation
        meshes.check_fits(mesh, batch_size=batch, accumulation=accumulation, model=model_config)
        kernel = attention.check_training(model_config, mesh)
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
    for mesh in laid_out:
        say(f"compiling {_name(mesh)} for {topology}")
        row, text = _compile(config, model_config, mesh, result)
        if hlo and text:
            Path(hlo).mkdir(parents=True, exist_ok=True)
            (Path(hlo) / f"{_name(mesh).replace(' ', '')}.hlo").write_text(text, encoding="utf-8")
        result.rows.append(row)
        say(f"  {row.trouble}" if row.trouble else f"  {row.figures.compile_seconds:.0f} s")
    result.rows.sort(key=_rank)
    return result


def _compile(config, model_config, mesh: Mesh, made: Plan) -> tuple[Row, str]:
    with jax.set_mesh(mesh):
        traced, options, state_bytes = _trace(config, model_config, mesh, made.step)
        sizes = dict(mesh.shape)
        try:
            figures, text = compile_figures(traced, devices=mesh.size, options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return Row(sizes, None, state_bytes, False, _out_of_memory(str(error), made)), ""
    room = made.chip.memory / made.chip.devices if made.chip else math.inf
    used = figures.memory.get("total", 0)
    fits = used <= room
    trouble = None if fits else f"needs {used / 1e9:.1f} of {room / 1e9:.1f} GB"
    return Row(sizes, figures, state_bytes, fits, trouble, **_estimates(figures, made)), text


def _trace(config, model_config: GPTConfig, mesh: Mesh, step: str):
    """The traced step, its compiler options and the bytes of parameters and optimizer."""
    if step == "decode":
        return _trace_decode(config.training.batch_size, model_config, mesh)
    shape = (config.training.batch_size, model_config.context_length)
    rows = meshes.sharding(mesh, "batch", "length")
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
    chunks, seed = config.training.loss_chunks, config.training.seed
    options = compiler_options(mesh.devices.flat[0])
    if step == "score":
        model = abstract_model(model_config, mesh)
        jitted = jax.jit(functools.partial(summed_loss, chunks=chunks), compiler_options=options)
        return jitted.trace(model, tokens), options, {"parameters": _bytes(model)}
    tx, _ = make_optimizer(steps=config.training.steps, **config.optimizer)
    abstract = abstract_state(model_config, tx, mesh)
    accumulation = config.training.accumulation
    static = {"tx": tx, "seed": seed, "accumulation": accumulation}
    static["loss_of"] = functools.partial(next_token_loss, chunks=chunks)
    jitted = compile_step(train_step, abstract=abstract, **static)
    state_bytes = {
        "parameters": _bytes(abstract.model),
        "optimizer": _bytes(abstract.opt_state),
    }
    return jitted.trace(abstract, tokens), options, state_bytes


def _trace_decode(batch: int, config: GPTConfig, mesh: Mesh):
    """The traced decoding step of `batch` rows whose cache is as long as the context."""
    length, rows = config.context_length, meshes.sharding(mesh, "batch", None)
    decoder = abstract_decoder(config, mesh)
    cache = abstract_cache(config, batch, length, mesh)
    token = jax.ShapeDtypeStruct((batch, 1), jnp.int32, sharding=rows)
    visible = jax.ShapeDtypeStruct(
        (batch, 1, length), jnp.bool, sharding=meshes.sharding(mesh, "batch", None, None)
    )
    options = compiler_options(mesh.devices.flat[0])
    jitted = jax.jit(decode_step, donate_argnums=1, compiler_options=options)
    state_bytes = {"parameters": _bytes(decoder), "cache": _bytes(cache)}
    slot = jax.ShapeDtypeStruct((), jnp.int32)
    return jitted.trace(decoder, cache, token, token, slot, visible), options, state_bytes


def _bytes(tree) -> int:
    """Bytes of a laid-out tree on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _estimates(figures: Figures, made: Plan) -> dict:
    known = made.chip
    if known is None or figures.cycles is None or known.clock is None:
        return {}
    peak = known.bf16_flops / known.devices
    exposed = [c for c in figures.collectives if c.exposed]
    found = {
        "op_seconds": figures.cycles / known.clock,
        "kernel_seconds": figures.kernel_flops / (peak * KERNEL_EFFICIENCY),
        "exchange_seconds": sum(c.wire for c in exposed) / peak_links(known),
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
    return math.ceil(12 * config.parameter_count / (known.memory / known.devices * 2 / 3))


def _name(mesh: Mesh) -> str:
    return " x ".join(f"{name} {size}" for name, size in mesh.shape.items())


def _out_of_memory(said: str, made: Plan) -> str:
    """One line out of the compiler's page: how much, the largest arrays, and what would fit."""
    used = re.search(r"Used ([\d.]+\w+) of ([\d.]+\w+) hbm", said)
    amount = f"needs {used[1]} of {used[2]}" if used else "does not fit"
    largest = re.findall(
        r"Size: ([\d.]+\w+)\s+(?:Operator: [^\n]*\n\s+)?Shape: (\w+\[[\d,]*\])", said
    )
    arrays = ", ".join(f"{shape} of {size}" for size, shape in largest[:3])
    return (
        f"out of memory: {amount}" + (f"; largest: {arrays}" if arrays else "") + "; "
        "try a larger mesh.fsdp (less state a device), model.remat=full or a larger "
        "training.accumulation (fewer activations); --search finds the meshes that fit"
    )
