"""The optimizers in optax: of pre-training (cosine, decoupled AdamW) and of fine-tuning."""

import math
from collections.abc import Mapping

import optax


def warmup_cosine(
    *, learning_rate: float, warmup_steps: int, steps: int, final_lr_fraction: float
) -> optax.Schedule:
    """Linear warmup from 0 (the first step has rate 0), then a cosine to a fraction of the peak.

    Raises ValueError unless 0 <= warmup_steps < steps and the fraction is in [0, 1].
    """
    if not 0 <= warmup_steps < steps:
        raise ValueError(
            f"optimizer.warmup_steps={warmup_steps} with training.steps={steps}; "
            "the warmup must be shorter than the run"
        )
    if not 0 <= final_lr_fraction <= 1:
        raise ValueError(f"optimizer.final_lr_fraction={final_lr_fraction}; it must be in [0, 1]")
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else learning_rate,
        peak_value=learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=steps,
        end_value=learning_rate * final_lr_fraction,
    )


def warmup_linear(*, learning_rate: float, warmup_ratio: float, steps: int) -> optax.Schedule:
    """Linear warmup over a share of the steps, then linearly to 0 after the last one.

    As transformers' `get_linear_schedule_with_warmup`: the first step has rate 0. Raises
    ValueError unless the rate is above 0 and the ratio in [0, 1].
    """
    if learning_rate <= 0 or not 0 <= warmup_ratio <= 1:
        raise ValueError(
            f"optimizer.learning_rate={learning_rate} and warmup_ratio={warmup_ratio}; the rate "
            "must be above 0, and the ratio in [0, 1]"
        )
    warmup = math.ceil(warmup_ratio * steps)
    rise = optax.linear_schedule(0.0, learning_rate, max(1, warmup))
    fall = optax.linear_schedule(learning_rate, 0.0, max(1, steps - warmup))
    return optax.join_schedules([rise, fall], [warmup])


def decoupled_adamw(
    schedule: optax.Schedule,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> optax.GradientTransformation:
    """Composer's `DecoupledAdamW`: each step multiplies p by 1 - (lr_t / lr_0) * weight_decay.

    PyTorch's and optax's AdamW decay by lr_t * weight_decay, so the same rule is theirs with
    weight_decay / lr_0 (1.6e-5 at lr 1.6e-4 is their 0.1). Every parameter decays, layer norms
    and biases too: the published run had one parameter group.
    """
    return optax.adamw(
        schedule, b1=beta1, b2=beta2, eps=epsilon, weight_decay=weight_decay / learning_rate
    )


def make_optimizer(
    *,
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    final_lr_fraction: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    clip_norm: float,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a config's `optimizer` group for a run of `steps`, and its schedule.

    `clip_norm` bounds the global norm of the gradient; 0 leaves it as it is. Raises ValueError
    for a rate, a norm or an epsilon that cannot be.
    """
    check_numbers(
        learning_rate=learning_rate,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
    )
    schedule = warmup_cosine(
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        steps=steps,
        final_lr_fraction=final_lr_fraction,
    )
    adamw = decoupled_adamw(
        schedule,
        learning_rate=learning_rate,
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
        weight_decay=weight_decay,
    )
    if not clip_norm:
        return adamw, schedule
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw), schedule


def make_tuning_optimizer(
    *,
    steps: int,
    learning_rate: float,
    warmup_ratio: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    clip_norm: float,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """PyTorch's AdamW with linear warmup and decay, as the original fine-tuning has it.

    The optimizer of a fine-tuning config's `optimizer` group for a run of `steps`, and its
    schedule; `check_tuning` says which values can be.
    """
    schedule = warmup_linear(learning_rate=learning_rate, warmup_ratio=warmup_ratio, steps=steps)
    adamw = optax.adamw(schedule, b1=beta1, b2=beta2, eps=epsilon, weight_decay=weight_decay)
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, adamw), schedule


def check_tuning(group: Mapping) -> None:
    """Raise ValueError for a value that `make_tuning_optimizer` cannot work with."""
    check_numbers(**{name: value for name, value in group.items() if name != "warmup_ratio"})
    if not 0 <= group["warmup_ratio"] <= 1:
        raise ValueError(
            f"config.optimizer.warmup_ratio={group['warmup_ratio']}; it must be in [0, 1]"
        )


def check_numbers(
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    clip_norm: float,
) -> None:
    """Raise ValueError for a number that AdamW or the clipping cannot work with."""
    for name, value in (("learning_rate", learning_rate), ("epsilon", epsilon)):
        if value <= 0:
            raise ValueError(f"optimizer.{name}={value}; it must be above 0")
    for name, value in (("weight_decay", weight_decay), ("clip_norm", clip_norm)):
        if value < 0:
            raise ValueError(f"optimizer.{name}={value}; it must be at least 0")
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= value < 1:
            raise ValueError(f"optimizer.{name}={value}; it must be in [0, 1)")
