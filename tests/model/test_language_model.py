import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax.model.attention import Mask, attend, softmax_attention
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.model.language_model import named_leaves
from biomedlm_jax.model.layers import dropout

TINY = GPT2Config(
    vocab_size=300,
    context_length=32,
    layers=3,
    width=64,
    heads=4,
    initializer_range=0.2,
    embedding_dropout=0.0,
    attention_dropout=0.0,
    residual_dropout=0.0,
)


@pytest.fixture
def tiny(make_gpt2):
    """The model of TINY, with changes if there are any."""
    return lambda **changes: make_gpt2(dataclasses.replace(TINY, **changes))


logits = jax.jit(GPT2.__call__)


def tokens(batch=2, length=32):
    return jax.random.randint(jax.random.key(1), (batch, length), 0, TINY.vocab_size)


def test_padding_is_never_visible(tiny):
    model = tiny()
    assert model.wte.shape[0] == 384
    assert not np.asarray(model.wte[300:]).any()
    visible = logits(model, tokens())
    assert visible.shape == (2, 32, 300)
    assert visible.dtype == jnp.float32


def test_streams_are_those_before_each_block(tiny):
    model = tiny()
    x_BxLxD, streams_NxBxLxD = jax.jit(GPT2.hidden_with_streams)(model, tokens())
    np.testing.assert_allclose(x_BxLxD, jax.jit(GPT2.hidden)(model, tokens()), atol=1e-6)
    stream_BxLxD = model.embed(tokens(), None)
    for layer in range(TINY.layers):
        np.testing.assert_allclose(streams_NxBxLxD[layer], stream_BxLxD, atol=1e-5)
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], model.h)
        full = functools.partial(attend, scale=1.0)
        stream_BxLxD = jax.jit(type(block).__call__, static_argnums=4)(
            block, stream_BxLxD, None, layer, full
        )
    np.testing.assert_allclose(model.ln_f(stream_BxLxD), x_BxLxD, atol=1e-5)


def test_no_position_sees_the_future_by_gradient(tiny):
    model = tiny()

    def last_logits(x_BxLxD, position):
        def step(x, block_and_layer):
            block, layer = block_and_layer
            return block(x, None, layer, functools.partial(attend, scale=1.0)), None

        x_BxLxD, _ = jax.lax.scan(step, x_BxLxD, (model.h, jnp.arange(TINY.layers)))
        return x_BxLxD[0, position].sum()

    x = jax.random.normal(jax.random.key(2), (1, 8, TINY.width))
    grad_LxD = jax.jit(jax.grad(last_logits), static_argnums=1)(x, 3)[0]
    reached = np.abs(np.asarray(grad_LxD)).sum(-1) > 0
    assert reached.tolist() == [True] * 4 + [False] * 4


@jax.jit
@jax.value_and_grad
def mean_square_and_grad(model, tokens_BxL):
    return (model(tokens_BxL) ** 2).mean()


@pytest.mark.parametrize(
    "changes", [{"remat": "full"}, {"remat": "query,attention"}, {"unroll": 3}]
)
def test_execution_choices_change_no_number(tiny, changes):
    plain, plain_grad = mean_square_and_grad(tiny(), tokens())
    other, other_grad = mean_square_and_grad(tiny(**changes), tokens())
    np.testing.assert_allclose(plain, other, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(plain_grad), jax.tree.leaves(other_grad), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(tiny):
    model = tiny(compute_dtype="bfloat16")
    assert jax.eval_shape(GPT2.hidden, model, tokens()).dtype == jnp.bfloat16
    assert logits(model, tokens()).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("float32")}
    error = jnp.abs(logits(model, tokens()) - logits(tiny(), tokens())).max()
    assert 0 < error < 0.05 * jnp.abs(logits(tiny(), tokens())).max()


def test_dropout_needs_a_key_and_follows_it(tiny):
    changes = {"attention_dropout": 0.1, "embedding_dropout": 0.1, "residual_dropout": 0.1}
    model = tiny(**changes)
    np.testing.assert_array_equal(logits(model, tokens()), logits(tiny(), tokens()))
    one = logits(model, tokens(), dropout_key=jax.random.key(1))
    np.testing.assert_array_equal(one, logits(model, tokens(), dropout_key=jax.random.key(1)))
    assert jnp.abs(one - logits(model, tokens(), dropout_key=jax.random.key(2))).max() > 0
    kept = dropout(jnp.ones(100_000), 0.25, jax.random.key(0))
    np.testing.assert_allclose((kept > 0).mean(), 0.75, atol=0.01)
    np.testing.assert_allclose(kept.mean(), 1, atol=0.01)


def test_too_many_tokens(tiny):
    with pytest.raises(
        ValueError, match="got 33 tokens; expected at most the model's 32 positions"
    ):
        tiny()(tokens(length=33))


def test_two_texts_in_one_row_are_two_rows(tiny):
    model = tiny()
    texts_BxL = tokens(2, 16)
    text_32 = jnp.repeat(jnp.arange(2), 16)
    positions_1x32 = jnp.tile(jnp.arange(16), 2)[None]
    apart = jax.jit(GPT2.hidden)(model, texts_BxL)
    together = jax.jit(GPT2.hidden)(
        model,
        texts_BxL.reshape(1, 32),
        positions_BxL=positions_1x32,
        mask=Mask(text_32[None]),
    )
    np.testing.assert_allclose(together.reshape(apart.shape), apart, atol=1e-5)


def test_unrolled_blocks_compute_what_the_scan_does(tiny):
    model = tiny()
    unstacked = jax.jit(lambda model: model.unstacked(jnp.float32))(model)
    assert named_leaves(unstacked)["h.2.mlp.c_fc.kernel"].shape == (64, 256)
    visible = jnp.tri(32, dtype=bool)[None]

    def attend_of(layer):
        return lambda query, key, value, **_: softmax_attention(query, key, value, visible)

    def decode(model, tokens_BxL):
        positions_BxL = jnp.broadcast_to(jnp.arange(32), tokens_BxL.shape)
        return model.logits(model.hidden_with_attention(tokens_BxL, positions_BxL, attend_of))

    np.testing.assert_allclose(
        jax.jit(decode)(unstacked, tokens()), logits(model, tokens()), atol=1e-5
    )
