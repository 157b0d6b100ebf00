import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.training.loss import cross_entropy, next_token_loss, token_log_probabilities

CONFIG = GPT2Config(
    vocab_size=300,
    context_length=16,
    layers=2,
    width=32,
    heads=2,
    initializer_range=0.3,
    embedding_dropout=0.0,
    attention_dropout=0.0,
    residual_dropout=0.0,
)


def plain_loss(model, tokens_BxL, weights_B=None):
    """The same loss through log_softmax of the visible logits and jax's own gradients."""
    logp = jax.nn.log_softmax(model(tokens_BxL)[:, :-1])
    nll = -jnp.take_along_axis(logp, tokens_BxL[:, 1:, None], -1)[..., 0]
    weights = jnp.ones(len(nll)) if weights_B is None else weights_B
    return (nll * weights[:, None]).sum() / (weights.sum() * nll.shape[1])


def jit_grad(loss):
    return jax.jit(jax.value_and_grad(loss))


plain_grad = jit_grad(plain_loss)


def make_gpt2(config):
    return jax.jit(lambda: GPT2(config, key=jax.random.key(0)))()


@pytest.fixture(scope="module")
def model():
    return make_gpt2(CONFIG)


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (4, 16), 0, 300)


@pytest.mark.parametrize(
    ("weights", "chunks"),
    [
        pytest.param(None, 1, marks=pytest.mark.slow),
        ([1.0, 0.0, 1.0, 0.5], 2),
        pytest.param(None, 2, marks=pytest.mark.slow),
        pytest.param(None, 16, marks=pytest.mark.slow),
        pytest.param([1.0, 0.0, 1.0, 0.5], 1, marks=pytest.mark.slow),
        pytest.param([1.0, 0.0, 1.0, 0.5], 16, marks=pytest.mark.slow),
    ],
)
def test_loss_and_gradients_equal_log_softmaxs(model, tokens, chunks, weights):
    weights_B = None if weights is None else jnp.array(weights)
    mine, mine_grad = jit_grad(
        lambda m: next_token_loss(m, tokens, weights_B=weights_B, chunks=chunks)
    )(model)
    theirs, theirs_grad = plain_grad(model, tokens, weights_B)
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(mine_grad), jax.tree.leaves(theirs_grad), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_loss_equals_torchs_cross_entropy(model, tokens):
    torch = pytest.importorskip("torch", reason="torch is in the extra `dev`")
    logits = torch.from_numpy(np.array(jax.jit(GPT2.__call__)(model, tokens)))[:, :-1].reshape(
        -1, 300
    )
    targets = torch.from_numpy(np.array(tokens))[:, 1:].reshape(-1).long()
    theirs = torch.nn.functional.cross_entropy(logits, targets).item()
    np.testing.assert_allclose(jax.jit(next_token_loss)(model, tokens), theirs, rtol=1e-6)


def test_padding_rows_get_no_gradient(model, tokens):
    _, grad = jit_grad(lambda m: next_token_loss(m, tokens))(model)
    assert not np.asarray(grad.wte[300:]).any()
    assert np.asarray(grad.wte[:300]).any()


def test_far_logits_do_not_overflow_or_vanish():
    x = jnp.full((1, 2, 4), 30.0)
    wte = jnp.concatenate([jnp.full((3, 4), -5.0), jnp.zeros((1, 4))])  # the last row is padding
    targets, weights = jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2))
    total = cross_entropy(3, 1, x, wte, targets, weights)
    np.testing.assert_allclose(total, 2 * np.log(3), rtol=1e-6)
    far = cross_entropy(3, 1, -1000 * x, wte, targets, weights)
    np.testing.assert_allclose(far, 2 * np.log(3), rtol=1e-6)


@pytest.mark.slow
def test_bfloat16_gradients_come_close(model, tokens):
    half = make_gpt2(dataclasses.replace(CONFIG, compute_dtype="bfloat16"))
    (_, a), (_, b) = (jit_grad(lambda m: next_token_loss(m, tokens))(m) for m in (half, model))
    error = jnp.abs(a.wte[...] - b.wte[...]).max() / jnp.abs(b.wte[...]).max()
    assert 0 < error < 0.05
    assert a.wte[...].dtype == jnp.float32


def test_chunks_that_do_not_divide(model, tokens):
    with pytest.raises(ValueError, match=r"loss_chunks=3; expected a divisor of the length 16"):
        next_token_loss(model, tokens, chunks=3)


def test_log_probabilities_are_log_softmaxs_and_sum_to_the_loss(model, tokens):
    x_BxLxD = jax.jit(GPT2.hidden)(model, tokens)
    targets_BxL = jnp.roll(tokens, -1, axis=1)
    got, likeliest = jax.jit(token_log_probabilities)(model, x_BxLxD, targets_BxL)
    expected = jax.nn.log_softmax(model.logits(x_BxLxD))
    np.testing.assert_allclose(
        got, jnp.take_along_axis(expected, targets_BxL[..., None], -1)[..., 0], atol=1e-5
    )
    np.testing.assert_array_equal(likeliest, expected.argmax(-1) == targets_BxL)
    np.testing.assert_allclose(-got[:, :-1].mean(), next_token_loss(model, tokens), rtol=1e-5)
