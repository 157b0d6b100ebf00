import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from biomedlm_jax.training.config import OptimizerSettings
from biomedlm_jax.training.optimizer import make_optimizer

PUBLISHED = {
    "schedule": "cosine",
    "learning_rate": 1.6e-4,
    "warmup_steps": 100,
    "final_lr_fraction": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 1.6e-5,
    "clip_norm": 0.0,
    "decoupled": True,
}

FINETUNING = {
    "schedule": "linear",
    "learning_rate": 3e-3,
    "warmup_ratio": 0.5,
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-8,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
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
    _, schedule = make_optimizer(OptimizerSettings(**PUBLISHED), steps=400)
    assert schedule(0) == 0
    for step in range(401):
        np.testing.assert_allclose(schedule(step), composers_learning_rate(step, 400), rtol=1e-5)


def test_400_steps_equal_composers_decoupled_adamw():
    with jax.enable_x64(True):
        tx, _ = make_optimizer(OptimizerSettings(**PUBLISHED), steps=400)
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
    tx, _ = make_optimizer(OptimizerSettings(**{**PUBLISHED, "clip_norm": 1.0}), steps=400)
    free, _ = make_optimizer(OptimizerSettings(**PUBLISHED), steps=400)
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
        ("learning_rate", float("nan")),
        ("warmup_ratio", 1.5),
        ("schedule", "step"),
        ("final_lr_fraction", 1.5),
        ("beta2", 1.0),
        ("epsilon", 0.0),
        ("weight_decay", -1e-5),
        ("clip_norm", -1.0),
    ],
)
def test_values_that_cannot_be(name, value):
    with pytest.raises(ValueError, match=f"got optimizer.{name}={value!r}"):
        OptimizerSettings(**{**PUBLISHED, name: value})


@pytest.mark.parametrize("ratio", [0.0, 0.06, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_the_linear_schedule_is_transformers_without_its_first_step_of_rate_0(ratio, steps):
    torch = pytest.importorskip("torch", reason="torch is in the extra `dev`")
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2e-5)
    warmup = math.ceil(ratio * steps)
    theirs = get_linear_schedule_with_warmup(optimizer, warmup, steps + 1)
    values = {**FINETUNING, "learning_rate": 2e-5, "warmup_ratio": ratio}
    _, mine = make_optimizer(OptimizerSettings(**values), steps=steps)
    for step in range(steps):
        optimizer.step()
        theirs.step()
        np.testing.assert_allclose(mine(step), theirs.get_last_lr()[0], rtol=1e-5, atol=1e-12)
        assert mine(step) > 0


def test_clipped_adamw_with_it_steps_as_torchs_does():
    torch = pytest.importorskip("torch", reason="torch is in the extra `dev`")
    from transformers import get_linear_schedule_with_warmup

    rng = np.random.default_rng(0)
    start = {"w": rng.normal(size=(4, 3)), "b": rng.normal(size=3)}
    theirs = {name: torch.tensor(p, requires_grad=True) for name, p in start.items()}
    optimizer = torch.optim.AdamW(theirs.values(), lr=3e-3, eps=1e-8, weight_decay=0.1)
    scheduler = get_linear_schedule_with_warmup(optimizer, 30, 61)
    optimizer.step()  # without gradients: torch wants it before the schedule's first step
    scheduler.step()
    with jax.enable_x64(True):
        mine = {name: jnp.asarray(p) for name, p in start.items()}
        tx, _ = make_optimizer(OptimizerSettings(**FINETUNING), steps=60)
        state, update = tx.init(mine), jax.jit(tx.update)
        for _ in range(60):
            grads = {name: rng.normal(size=p.shape) for name, p in start.items()}
            changes, state = update(grads, state, mine)
            mine = optax.apply_updates(mine, changes)
            for name, p in theirs.items():
                p.grad = torch.tensor(grads[name])
            torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
            optimizer.step()
            scheduler.step()
        for name, p in theirs.items():
            assert np.abs(mine[name] - start[name]).max() > 0.01
            # torch divides by the norm + 1e-6, and optax's rate is a float32.
            np.testing.assert_allclose(mine[name], p.detach().numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("both", [{"warmup_steps": 3}, {"warmup_ratio": None}])
def test_the_warmup_is_given_once(both):
    with pytest.raises(ValueError, match=r"warmup_steps=.* and optimizer.warmup_ratio=.*; set one"):
        OptimizerSettings(**{**FINETUNING, **both})


def test_a_warmup_longer_than_the_run_names_the_flag():
    linear = {**FINETUNING, "warmup_ratio": None, "warmup_steps": 51}
    for values in (PUBLISHED, linear):
        with pytest.raises(ValueError, match=r"set --config.optimizer.warmup_steps=5"):
            make_optimizer(OptimizerSettings(**values), steps=50)


def test_the_linear_schedule_decays_to_the_fraction_that_it_is_given():
    values = {**FINETUNING, "final_lr_fraction": 0.1}
    _, mine = make_optimizer(OptimizerSettings(**values), steps=60)
    theirs = optax.linear_schedule(3e-3, 3e-4, 31)  # from the warmup's end to after the last step
    for step in range(29, 60):
        np.testing.assert_allclose(mine(step), theirs(step - 29), rtol=1e-5)
    assert mine(0) == pytest.approx(1e-4)


def test_the_constant_schedule_is_transformers():
    torch = pytest.importorskip("torch", reason="torch is in the extra `dev`")
    from transformers import get_constant_schedule_with_warmup

    values = {**FINETUNING, "schedule": "constant", "final_lr_fraction": 1.0}
    with pytest.raises(ValueError, match=r"set --config.optimizer.final_lr_fraction=1.0"):
        OptimizerSettings(**{**values, "final_lr_fraction": 0.1})
    assert OptimizerSettings(**values).schedule_depends_on_total_steps
    settings = OptimizerSettings(**{**values, "warmup_ratio": None, "warmup_steps": 5})
    assert not settings.schedule_depends_on_total_steps
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-3)
    theirs = get_constant_schedule_with_warmup(optimizer, 5)
    schedules = [make_optimizer(settings, steps=steps)[1] for steps in (3, 20)]
    for step in range(20):
        for mine in schedules:
            np.testing.assert_allclose(mine(step), theirs.get_last_lr()[0], rtol=1e-6)
        optimizer.step()
        theirs.step()
