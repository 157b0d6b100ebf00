"""The optimizers: AdamW with the schedules of pre-training (cosine) and fine-tuning (linear)."""

import math

import jax.numpy as jnp
import optax

from biomedlm_jax.training.config import OptimizerSettings


def make_optimizer(
    settings: OptimizerSettings, *, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Return the optimizer and the learning-rate schedule of a run of `steps` updates.

    Raises ValueError if the warmup is not shorter than the run.
    """
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = math.ceil((settings.warmup_ratio or 0.0) * steps)
    if settings.schedule == "cosine":
        if warmup >= steps:
            raise ValueError(
                f"got optimizer.warmup_steps={warmup} in a run of {steps} steps; expected a "
                f"shorter warmup: set --config.optimizer.warmup_steps={steps // 10}"
            )
        peak = settings.learning_rate
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=0.0 if warmup else peak,  # with a warmup, the first update has rate 0
            peak_value=peak,
            warmup_steps=warmup,
            decay_steps=steps,
            end_value=peak * settings.final_lr_fraction,
        )
    else:
        schedule = warmup_linear(settings.learning_rate, warmup=min(warmup, steps), steps=steps)
    # Composer's DecoupledAdamW multiplies p by 1 - (lr_t / lr_0) * weight_decay at each step, optax
    # by 1 - lr_t * weight_decay. Every parameter decays, as in the published run.
    decay = settings.weight_decay / (settings.learning_rate if settings.decoupled else 1.0)
    b1, b2, eps = settings.beta1, settings.beta2, settings.epsilon
    adamw = optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=decay)
    if not settings.clip_norm:
        return adamw, schedule
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw), schedule


def warmup_linear(learning_rate: float, *, warmup: int, steps: int) -> optax.Schedule:
    """Return a linear warmup, then a linear decay that would reach 0 one update after the last.

    transformers' `get_linear_schedule_with_warmup`, one update further on: its first update has
    rate 0 and changes nothing.
    """

    def schedule(count):
        done = jnp.asarray(count, jnp.float32) + 1
        rise = done / max(1, warmup)
        fall = (steps + 1 - done) / max(1, steps + 1 - warmup)
        return learning_rate * jnp.clip(jnp.minimum(rise, fall), 0.0, 1.0)

    return schedule
