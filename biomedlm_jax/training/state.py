"""TrainState: abstract, sharded, initialised; and the one training step."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from biomedlm_jax.chips import COMPILER_OPTIONS, chip
from biomedlm_jax.mesh import make_mesh, sharding, tree_shardings
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.training.loss import next_token_loss

LOG = logging.getLogger("biomedlm_jax")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes: the number of steps done, the model, the optimizer's moments."""

    step: jax.Array
    model: GPT
    opt_state: optax.OptState


def make_state(config: GPTConfig, tx: optax.GradientTransformation, *, seed: int) -> TrainState:
    """A fresh state; call it under jit with `out_shardings`, or under `jax.eval_shape`."""
    init_key, _ = jax.random.split(jax.random.key(seed))
    model = GPT(config, key=init_key)
    return TrainState(step=jnp.int32(0), model=model, opt_state=tx.init(model))


def abstract_state(config: GPTConfig, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state's shapes, dtypes and shardings, without its values."""
    return _laid_out(functools.partial(make_state, config, tx, seed=0), mesh)


def abstract_model(config: GPTConfig, mesh: Mesh) -> GPT:
    """The model's shapes, dtypes and shardings, without its values."""
    return _laid_out(lambda: GPT(config, key=jax.random.key(0)), mesh)


def _laid_out(make, mesh: Mesh):
    abstract = jax.eval_shape(make)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract,
        tree_shardings(abstract, mesh),
    )


def init_state(
    config: GPTConfig, tx: optax.GradientTransformation, mesh: Mesh, *, seed: int
) -> TrainState:
    """A fresh state, created in its shards: no device ever holds more than its part."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, tx, mesh))
    init = functools.partial(make_state, config, tx, seed=seed)
    return jax.jit(init, out_shardings=shardings)()


def train_step(
    state: TrainState,
    tokens_BxL: jax.Array,
    *,
    tx: optax.GradientTransformation,
    seed: int,
    accumulation: int = 1,
    loss_chunks: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update from one global batch; returns the new state and `loss` and `grad_norm`."""
    _, key = jax.random.split(jax.random.key(seed))  # the first half made the parameters
    key = jax.random.fold_in(key, state.step)
    loss_of = functools.partial(next_token_loss, chunks=loss_chunks)
    loss, grads = accumulate(loss_of, state.model, tokens_BxL, key, accumulation)
    updates, opt_state = tx.update(grads, state.opt_state, state.model)
    model = optax.apply_updates(state.model, updates)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, model, opt_state), metrics


def accumulate(loss_of, model: GPT, tokens_BxL: jax.Array, key: jax.Array, parts: int):
    """Mean loss and float32 gradients over `parts` equal parts of the batch, one at a time."""
    grad_of = jax.value_and_grad(loss_of)
    dropout_key = key if has_dropout(model.config) else None
    if parts == 1:
        return grad_of(model, tokens_BxL, dropout_key=dropout_key)

    def add(total, part):
        tokens, index = part
        part_key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        return jax.tree.map(jnp.add, total, grad_of(model, tokens, dropout_key=part_key)), None

    B, L = tokens_BxL.shape
    # Row b goes to part b % parts, so that every device keeps its own rows in every part.
    tokens_PxBxL = jnp.moveaxis(tokens_BxL.reshape(B // parts, parts, L), 1, 0)
    zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, model))
    total, _ = jax.lax.scan(add, zeros, (tokens_PxBxL, jnp.arange(parts)))
    return jax.tree.map(lambda x: x / parts, total)


def has_dropout(config: GPTConfig) -> bool:
    """Whether any dropout rate is above 0; without one, no random numbers are drawn."""
    return max(config.embedding_dropout, config.attention_dropout, config.residual_dropout) > 0


def compile_step(step, *, abstract: TrainState, **static):
    """`jax.jit` of a step; the state's buffers are reused and keep the shardings of `abstract`.

    It is compiled with the options that `chips.COMPILER_OPTIONS` has for the devices.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    devices = jax.tree.leaves(shardings)[0].mesh.devices
    return jax.jit(
        functools.partial(step, **static),
        donate_argnums=0,
        out_shardings=(shardings, None),
        compiler_options=compiler_options(devices.flat[0]) or None,
    )


@functools.cache
def compiler_options(device) -> dict[str, str]:
    """The table's options for a device, those that its compiler knows.

    Each is tried on an empty program; one that is refused is left out with a warning.
    """
    found = chip(device.device_kind)
    wanted = COMPILER_OPTIONS.get(found.name, {}) if found else {}
    known = {}
    alone = make_mesh(data=1, fsdp=1, tensor=1, devices=[device])
    one = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding(alone))
    for name, value in wanted.items():
        try:
            with jax.set_mesh(alone):
                jax.jit(lambda x: x).lower(one).compile(compiler_options={name: value})
        except jax.errors.JaxRuntimeError as error:
            LOG.warning("the compiler refused %s=%s and goes without: %s", name, value, error)
        else:
            known[name] = value
    return known
