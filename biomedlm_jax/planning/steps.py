"""The steps that can be planned: training, scoring and decoding, traced on a mesh."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from biomedlm_jax import mesh as meshes
from biomedlm_jax.generation.decoder import abstract_cache, abstract_decoder, decode_step
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.training.loss import next_token_loss, summed_loss
from biomedlm_jax.training.optimizer import make_optimizer
from biomedlm_jax.training.state import (
    abstract_model,
    abstract_state,
    compile_step,
    compiler_options,
    train_step,
)

STEPS = ("train", "score", "decode")


def trace_step(config: ConfigDict, model_config: GPTConfig, mesh: Mesh, step: str):
    """The step traced on `mesh`, its compiler options, and the bytes of its state on a device."""
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
