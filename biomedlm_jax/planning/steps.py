"""Trace the steps that can be planned on a mesh: training, scoring and decoding."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.lora import matrices_in
from biomedlm_jax.training import state as states
from biomedlm_jax.training.loss import next_token_loss, summed_loss
from biomedlm_jax.training.optimizer import make_optimizer
from biomedlm_jax.training.pretrain import PretrainSettings

STEPS = ("train", "score", "decode")


def trace_step(settings: PretrainSettings, config: ModelConfig, mesh: Mesh, step: str):
    """Trace a step on `mesh`; return it, its compiler options and its state's bytes per device."""
    batch, chunks = settings.training.batch_size, settings.training.loss_chunks
    tokens = _abstract(mesh, (batch, config.context_length), "batch", "length")
    options = states.compiler_options(mesh.devices.flat[0], training=step == "train")
    if step == "train":
        traced, state = _trace_train(settings, config, mesh, tokens)
    elif step == "score":  # the summed loss of a batch
        model = abstract_model(config, mesh)
        loss = functools.partial(summed_loss, chunks=chunks)
        traced = jax.jit(loss, compiler_options=options).trace(model, tokens)
        state = {"parameters": model}
    else:
        traced, state = _trace_decode(config, mesh, batch, options)
    return traced, options, {name: _device_bytes(tree) for name, tree in state.items()}


def _trace_train(settings: PretrainSettings, config: ModelConfig, mesh: Mesh, tokens):
    training, lora = settings.training, settings.lora
    tx, _ = make_optimizer(settings.optimizer, steps=training.steps)

    def make(model) -> states.TrainState:
        return states.init_state(states.adapted(model, lora, seed=training.seed), tx)

    model = matrices_in(abstract_model(config, mesh), lora.frozen_dtype)
    abstract = meshes.abstract_sharded(make, mesh, model)
    frozen = states.frozen_part(model, lora)
    loss = functools.partial(next_token_loss, chunks=training.loss_chunks)
    update = states.jit_step(
        states.train_step,
        abstract=abstract,
        tx=tx,
        seed=training.seed,
        accumulation=training.accumulation,
        loss_fn=functools.partial(states.adapted_loss, loss),
    )
    state = {"parameters": (abstract.model, frozen), "optimizer": abstract.opt_state}
    return update.trace(abstract, tokens, *frozen), state


def _trace_decode(config: ModelConfig, mesh: Mesh, batch: int, options):
    """One more token for every row, with a cache as long as the context."""
    from biomedlm_jax.generation.decoder import abstract_cache, abstract_decoder, decode_step

    length = config.context_length
    decoder = abstract_decoder(config, mesh)
    cache = abstract_cache(config, batch, length, mesh)
    token = _abstract(mesh, (batch, 1), "batch", None)
    visible = _abstract(mesh, (batch, 1, length), "batch", None, None, dtype=jnp.bool)
    slot = jax.ShapeDtypeStruct((), jnp.int32)
    step = jax.jit(decode_step, donate_argnums=1, compiler_options=options)
    traced = step.trace(decoder, cache, token, token, slot, visible)
    return traced, {"parameters": decoder, "cache": cache}


def _abstract(mesh: Mesh, shape: tuple[int, ...], *axes: str | None, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=meshes.sharding(mesh, *axes))


def _device_bytes(tree) -> int:
    """Bytes of a sharded tree on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
