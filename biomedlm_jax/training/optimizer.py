"""The optimizers: AdamW; schedules of pre-training (cosine, constant) and fine-tuning (linear)."""

import functools

import jax.numpy as jnp
import optax

from biomedlm_jax.errors import InputError
from biomedlm_jax.training.config import OptimizerSettings


@functools.lru_cache(maxsize=16)  # equal settings, the same functions: see `state.interned`
def make_optimizer(
    settings: OptimizerSettings, *, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the optimizer and the learning-rate schedule of a run of `steps` updates.

    With a warmup, update 1 has rate 0, as published, but for the linear schedule of fine-tuning.
    Raises InputError if the warmup is longer than the run (a run of constant rate can be
    lengthened), or of a cosine as long.
    """
    warmup = settings.warmup_of(steps)
    peak, final = settings.learning_rate, settings.final_lr_fraction
    if settings.schedule != "constant" and warmup > steps - (settings.schedule == "cosine"):
        raise InputError(
            f"got optimizer.warmup_steps={warmup} in a run of {steps} steps; expected a "
            f"shorter warmup: set --config.optimizer.warmup_steps={steps // 10}"
        )
    if settings.schedule == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=0.0 if warmup else peak,  # as published: update 1 has rate 0
            peak_value=peak,
            warmup_steps=warmup,
            decay_steps=steps,
            end_value=peak * final,
        )
    elif settings.schedule == "linear":
        schedule = warmup_linear(peak, warmup=warmup, steps=steps, final=final)
    else:
        schedule = optax.linear_schedule(0.0 if warmup else peak, peak, warmup)
    # Composer's DecoupledAdamW multiplies p by 1 - (lr_t / lr_0) * weight_decay at each step, optax
    # by 1 - lr_t * weight_decay. Every parameter decays, as in the published run.
    decay = settings.weight_decay / (settings.learning_rate if settings.decoupled else 1.0)
    b1, b2, eps = settings.beta1, settings.beta2, settings.epsilon
    adamw = optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=decay)
    if not settings.clip_norm:
        return adamw, schedule
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw), schedule


def warmup_linear(
    learning_rate: float, *, warmup: int, steps: int, final: float = 0.0
) -> optax.Schedule:
    """Return a linear warmup, then a linear decay to `final` times the learning rate.

    The update after the last would reach it. With final=0 this is transformers'
    `get_linear_schedule_with_warmup`, one update further on: its first update has rate 0 and
    changes nothing.
    """

    def schedule(count):
        done = jnp.asarray(count, jnp.float32) + 1
        rise = done / max(1, warmup)
        fall = (steps + 1 - done) / max(1, steps + 1 - warmup)
        fall = final + (1.0 - final) * fall
        return learning_rate * jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0)

    return schedule
