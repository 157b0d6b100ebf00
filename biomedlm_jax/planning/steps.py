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
    """Return the step traced on `mesh`, its compiler options, and its state's bytes per device."""
    batch, length = config.training.batch_size, model_config.context_length
    tokens = _integers(mesh, (batch, length), "batch", "length")
    options = compiler_options(mesh.devices.flat[0])
    if step == "train":
        traced, state = _trace_train(config, model_config, mesh, tokens)
    elif step == "score":
        traced, state = _trace_score(config, model_config, mesh, tokens, options)
    else:
        traced, state = _trace_decode(model_config, mesh, batch, options)
    return traced, options, {name: _device_bytes(tree) for name, tree in state.items()}


def _trace_train(config: ConfigDict, model_config: GPTConfig, mesh: Mesh, tokens):
    tx, _ = make_optimizer(steps=config.training.steps, **config.optimizer)
    abstract = abstract_state(model_config, tx, mesh)
    jitted = compile_step(
        train_step,
        abstract=abstract,
        tx=tx,
        seed=config.training.seed,
        accumulation=config.training.accumulation,
        loss_of=functools.partial(next_token_loss, chunks=config.training.loss_chunks),
    )
    state = {"parameters": abstract.model, "optimizer": abstract.opt_state}
    return jitted.trace(abstract, tokens), state


def _trace_score(config: ConfigDict, model_config: GPTConfig, mesh: Mesh, tokens, options):
    """The summed loss of a batch, without a backward pass."""
    model = abstract_model(model_config, mesh)
    loss = functools.partial(summed_loss, chunks=config.training.loss_chunks)
    jitted = jax.jit(loss, compiler_options=options)
    return jitted.trace(model, tokens), {"parameters": model}


def _trace_decode(config: GPTConfig, mesh: Mesh, batch: int, options):
    """One more token for every row, with a cache as long as the context."""
    length = config.context_length
    decoder = abstract_decoder(config, mesh)
    cache = abstract_cache(config, batch, length, mesh)
    token = _integers(mesh, (batch, 1), "batch", None)
    visible = jax.ShapeDtypeStruct(
        (batch, 1, length), jnp.bool, sharding=meshes.sharding(mesh, "batch", None, None)
    )
    slot = jax.ShapeDtypeStruct((), jnp.int32)
    jitted = jax.jit(decode_step, donate_argnums=1, compiler_options=options)
    traced = jitted.trace(decoder, cache, token, token, slot, visible)
    return traced, {"parameters": decoder, "cache": cache}


def _integers(mesh: Mesh, shape: tuple[int, ...], *axes: str | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=meshes.sharding(mesh, *axes))


def _device_bytes(tree) -> int:
    """Bytes of a sharded tree on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
