import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax.training.optimizer import make_optimizer, warmup_cosine

PUBLISHED = {
    "learning_rate": 1.6e-4,
    "warmup_steps": 100,
    "final_lr_fraction": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 1.6e-5,
    "clip_norm": 0.0,
}


def composers_learning_rate(step: int, steps: int) -> float:
    """Composer's CosineAnnealingWithWarmup, written out."""
    if step < 100:
        return 1.6e-4 * step / 100
    done = (step - 100) / (steps - 100)
    return 1.6e-4 * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


def composers_step(p, g, m, v, t: int, rate: float):
    """Composer's DecoupledAdamW in float64; t counts from 1."""
    p = p * (1 - rate / 1.6e-4 * 1.6e-5)
    m = 0.9 * m + 0.1 * g
    v = 0.95 * v + 0.05 * g * g
    denominator = np.sqrt(v / (1 - 0.95**t)) + 1e-8
    return p - rate * (m / (1 - 0.9**t)) / denominator, m, v


def test_schedule_is_composers():
    schedule = warmup_cosine(
        learning_rate=1.6e-4, warmup_steps=100, steps=400, final_lr_fraction=0.1
    )
    assert schedule(0) == 0
    for step in range(401):
        np.testing.assert_allclose(schedule(step), composers_learning_rate(step, 400), rtol=1e-5)


def test_400_steps_equal_composers_decoupled_adamw():
    with jax.enable_x64(True):
        tx, _ = make_optimizer(steps=400, **PUBLISHED)
        rng = np.random.default_rng(0)
        mine = {"ln": jnp.ones(5, jnp.float64), "w": jnp.asarray(rng.normal(size=(4, 3)))}
        theirs = {name: np.asarray(p) for name, p in mine.items()}
        m = {name: np.zeros_like(p) for name, p in theirs.items()}
        v = {name: np.zeros_like(p) for name, p in theirs.items()}
        state, update = tx.init(mine), jax.jit(tx.update)
        for step in range(400):
            grads = {name: rng.normal(size=p.shape) for name, p in theirs.items()}
            changes, state = update(grads, state, mine)
            mine = jax.tree.map(jnp.add, mine, changes)
            rate = composers_learning_rate(step, 400)
            for name, g in grads.items():
                theirs[name], m[name], v[name] = composers_step(
                    theirs[name], g, m[name], v[name], step + 1, rate
                )
        for name in theirs:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=0, atol=1e-9)


def test_clipping_bounds_the_global_norm():
    tx, _ = make_optimizer(steps=400, **{**PUBLISHED, "clip_norm": 1.0})
    free, _ = make_optimizer(steps=400, **PUBLISHED)
    params = {"a": jnp.ones(3), "b": jnp.ones(4)}
    grads = {"a": jnp.full(3, 30.0), "b": jnp.full(4, 40.0)}
    norm = math.sqrt(3 * 30**2 + 4 * 40**2)
    state = tx.init(params)
    _, state = tx.update(grads, state, params)
    clipped = {name: g / norm for name, g in grads.items()}
    _, expected = free.update(clipped, free.init(params), params)
    for mine, theirs in zip(
        jax.tree.leaves(state[1][0].mu), jax.tree.leaves(expected[0].mu), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("warmup_steps", 400),
        ("final_lr_fraction", 1.5),
        ("beta2", 1.0),
        ("epsilon", 0.0),
        ("weight_decay", -1e-5),
        ("clip_norm", -1.0),
    ],
)
def test_values_that_cannot_be(name, value):
    with pytest.raises(ValueError, match=f"optimizer.{name}={value}"):
        make_optimizer(steps=400, **{**PUBLISHED, name: value})
