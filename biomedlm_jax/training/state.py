"""TrainState: what an update changes; the one training step, and how it is compiled."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from biomedlm_jax.chips import COMPILER_OPTIONS, TRAINING_OPTIONS, chip
from biomedlm_jax.mesh import make_mesh, sharding
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import make_model
from biomedlm_jax.model.heads import Scorer
from biomedlm_jax.model.lora import Adapter
from biomedlm_jax.training.config import LoRASettings

LOG = logging.getLogger("biomedlm_jax")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What an update changes: the number of updates done, the model, the optimizer's moments."""

    step: jax.Array
    model: Any  # a LanguageModel, a Scorer, or an Adapter
    opt_state: optax.OptState


def init_state(model: Any, tx: optax.GradientTransformation) -> TrainState:
    """Return the state before the first update; call it under jit with `out_shardings`."""
    return TrainState(step=jnp.int32(0), model=model, opt_state=tx.init(model))


def random_model(config: ModelConfig, *, seed: int):
    """Return a model with random parameters; the seed's other half is for dropout."""
    init_key, _ = jax.random.split(jax.random.key(seed))
    return make_model(config, key=init_key)


def adapted(model: Any, lora: LoRASettings, *, seed: int, added: int = 0) -> Any:
    """Return what is trained: `model`, or with LoRA an Adapter of it and its `added` last rows."""
    if not lora.rank:
        return model
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return Adapter(model, added=added, rank=lora.rank, alpha=lora.alpha, key=key)


def frozen_part(model: Any, lora: LoRASettings) -> tuple:
    """Return the language model that LoRA leaves as it is; () without LoRA."""
    if not lora.rank:
        return ()
    return (model.trunk if isinstance(model, Scorer) else model,)


def adapted_loss(loss: Callable, trained, batch, *frozen, dropout_key) -> jax.Array:
    """Return the loss of what `adapted` returned, around the `frozen_part`."""
    model = trained.view(*frozen) if frozen else trained
    return loss(model, batch, dropout_key=dropout_key)


def train_step(
    state: TrainState,
    batch,
    *constants,
    tx,
    seed: int,
    loss_fn: Callable,
    accumulation: int = 1,
    loss_limit: jax.Array | float = math.inf,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Update once from one global batch; return the new state and the step's figures.

    `loss_fn(model, batch, *constants, dropout_key=key)` is a scalar; every array of `batch` has the
    batch axis first. No update changes `constants`. The figures are `loss`, `grad_norm` (before
    clipping) and `applied`: False if one of them is not finite or the loss is above `loss_limit`.
    Then model and optimizer stay as they are, and only the step is counted.
    """
    key = step_key(seed, state.step)
    grad_fn = accumulate_gradients(jax.value_and_grad(loss_fn), accumulation)
    loss, grads = grad_fn(state.model, batch, *constants, dropout_key=key)
    norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.model)
    new = optax.apply_updates(state.model, updates), opt_state
    applied = jnp.isfinite(loss) & jnp.isfinite(norm) & (loss <= loss_limit)
    old = state.model, state.opt_state
    new = jax.tree.map(lambda new, old: jnp.where(applied, new, old), new, old)
    metrics = {"loss": loss, "grad_norm": norm, "applied": applied}
    return TrainState(state.step + 1, *new), metrics


def step_key(seed: int, step: jax.Array | int) -> jax.Array:
    """Return the key of a step's dropout."""
    _, key = jax.random.split(jax.random.key(seed))  # the first half made the parameters
    return jax.random.fold_in(key, step)


def accumulate_gradients(grad_fn: Callable, parts: int) -> Callable:
    """Return a `grad_fn` that adds up (loss, gradients) over `parts` of the batch, in sequence.

    Each part is a batch of its own for `grad_fn`; the result is the mean over the parts, float32.
    """
    if parts == 1:
        return grad_fn

    def of_parts(model, batch, *constants, dropout_key: jax.Array):
        def add(total, part):
            batch, index = part
            key = jax.random.fold_in(dropout_key, index)
            more = grad_fn(model, batch, *constants, dropout_key=key)
            return jax.tree.map(jnp.add, total, more), None

        def cut(x):
            # Row b goes to part b % parts, so that every device keeps its own rows in every part.
            return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

        zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, model))
        total, _ = jax.lax.scan(add, zeros, (jax.tree.map(cut, batch), jnp.arange(parts)))
        return jax.tree.map(lambda x: x / parts, total)

    return of_parts


def interned(function: Callable) -> Callable:
    """Return the first function that was equal to this one: the same, or a partial of equal parts.

    jax finds what it has traced and compiled by the function's identity, so that the next run of a
    process with equal settings is not traced again. A function that was defined within another is
    returned as it is: it may hold arrays.
    """
    try:
        return _first(_Parts(function))
    except TypeError:  # a part without a hash
        return function


class _Parts:
    """A function that equals others by its parts."""

    def __init__(self, function: Callable):
        self.function, self.parts = function, _parts(function)

    def __hash__(self):
        return hash(self.parts)

    def __eq__(self, other):
        return isinstance(other, _Parts) and self.parts == other.parts


@functools.lru_cache(maxsize=64)
def _first(parts: _Parts) -> Callable:
    return parts.function


def _parts(value: Any) -> Any:
    if isinstance(value, functools.partial):
        named = ((name, _parts(part)) for name, part in sorted(value.keywords.items()))
        return (_parts(value.func), *map(_parts, value.args), *named)
    if "<locals>" in getattr(value, "__qualname__", ""):
        raise TypeError("defined within another function")
    return type(value), value  # 1 and 1.0 and True are different constants


def jit_step(step, *, abstract: TrainState, **static):
    """Return `jax.jit(step)`, which donates the state's buffers and keeps its shardings.

    `abstract` is the state with its shardings; `static` are keyword arguments of `step`.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    devices = jax.tree.leaves(shardings)[0].mesh.devices
    return jax.jit(
        interned(functools.partial(step, **static)),
        donate_argnums=0,
        out_shardings=(shardings, None),
        compiler_options=compiler_options(devices.flat[0], training=True) or None,
    )


@functools.cache
def compiler_options(device, *, training: bool = False) -> dict[str, str]:
    """Return those of `chips.COMPILER_OPTIONS` that the device's compiler accepts.

    For `training`, those of `chips.TRAINING_OPTIONS` too. One that it refuses on an empty program
    is left out with a warning.
    """
    known_chip, known = chip(device.device_kind), {}
    name = known_chip.name if known_chip else ""
    wanted = COMPILER_OPTIONS.get(name, {}) | (TRAINING_OPTIONS.get(name, {}) if training else {})
    alone = make_mesh(data=1, fsdp=1, tensor=1, devices=[device])
    one = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding(alone))
    for name, value in wanted.items():
        try:
            with jax.set_mesh(alone):
                jax.jit(lambda x: x).lower(one).compile(compiler_options={name: value})
        except jax.errors.JaxRuntimeError as error:
            LOG.warning("the compiler refused %s=%s, which is left out: %s", name, value, error)
        else:
            known[name] = value
    return known
