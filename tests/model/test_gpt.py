import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax.model.attention import attend, dropout
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT

TINY = GPTConfig(
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


@functools.cache
def tiny(**changes) -> GPT:
    return GPT(dataclasses.replace(TINY, **changes), key=jax.random.key(0))


def logits(model: GPT, *arguments, **options):
    return jax.jit(GPT.__call__)(model, *arguments, **options)


def tokens(batch=2, length=32):
    return jax.random.randint(jax.random.key(1), (batch, length), 0, TINY.vocab_size)


def test_biomedlm_has_exactly_its_published_number_of_parameters():
    config = GPTConfig()
    model = jax.eval_shape(lambda: GPT(config, key=jax.random.key(0)))
    padding = (config.padded_vocab_size - config.vocab_size) * config.width
    count = sum(leaf.size for leaf in jax.tree.leaves(model)) - padding
    assert count == config.parameter_count == 2_594_247_680


def test_padding_is_never_visible():
    model = tiny()
    assert model.wte.shape[0] == 384
    assert not np.asarray(model.wte[300:]).any()
    visible = logits(model, tokens())
    assert visible.shape == (2, 32, 300)
    assert visible.dtype == jnp.float32


def test_no_position_sees_the_future_by_gradient():
    model = tiny()

    def last_logits(x_BxLxD, position):
        def step(x, block_and_layer):
            block, layer = block_and_layer
            return block(x, layer), None

        x_BxLxD, _ = jax.lax.scan(step, x_BxLxD, (model.h, jnp.arange(TINY.layers)))
        return x_BxLxD[0, position].sum()

    x = jax.random.normal(jax.random.key(2), (1, 8, TINY.width))
    grad_LxD = jax.jit(jax.grad(last_logits), static_argnums=1)(x, 3)[0]
    reached = np.abs(np.asarray(grad_LxD)).sum(-1) > 0
    assert reached.tolist() == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    "changes", [{"remat": "full"}, {"remat": "query,attention"}, {"unroll": 3}]
)
def test_execution_choices_change_no_number(changes):
    def loss(model):
        return (model(tokens()) ** 2).mean()

    plain, plain_grad = jax.jit(jax.value_and_grad(loss))(tiny())
    other, other_grad = jax.jit(jax.value_and_grad(loss))(tiny(**changes))
    np.testing.assert_allclose(plain, other, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(plain_grad), jax.tree.leaves(other_grad), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_inverse_layer_scale_changes_every_layer_but_the_first():
    on, off = tiny(), tiny(scale_attn_by_inverse_layer_idx=False)
    assert jnp.abs(logits(on, tokens()) - logits(off, tokens())).max() > 0.1
    one_on = GPT(dataclasses.replace(TINY, layers=1), key=jax.random.key(0))
    one_off = dataclasses.replace(TINY, layers=1, scale_attn_by_inverse_layer_idx=False)
    np.testing.assert_array_equal(
        logits(one_on, tokens()), logits(GPT(one_off, key=jax.random.key(0)), tokens())
    )


def test_initial_scales_are_gpt2s():
    model = GPT(GPTConfig(vocab_size=4096, width=256, heads=4, layers=8), key=jax.random.key(0))
    wide, narrow = 0.02, 0.02 / 4  # sqrt(2 * 8)
    for kernel, deviation in {
        "wte": (model.wte[...], wide),
        "wpe": (model.wpe[...], wide),
        "query": (model.h.attn.c_attn.query.kernel[...], wide),
        "c_fc": (model.h.mlp.c_fc.kernel[...], wide),
        "attn.c_proj": (model.h.attn.c_proj.kernel[...], narrow),
        "mlp.c_proj": (model.h.mlp.c_proj.kernel[...], narrow),
    }.values():
        np.testing.assert_allclose(np.std(kernel), deviation, rtol=0.02)
    assert not np.asarray(model.h.mlp.c_fc.bias[...]).any()
    first, second = np.asarray(model.h.mlp.c_fc.kernel[:2])
    assert (first != second).any()  # every layer draws its own


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32():
    model = GPT(dataclasses.replace(TINY, compute_dtype="bfloat16"), key=jax.random.key(0))
    assert model.hidden(tokens()).dtype == jnp.bfloat16
    assert logits(model, tokens()).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("float32")}
    error = jnp.abs(logits(model, tokens()) - logits(tiny(), tokens())).max()
    assert 0 < error < 0.05 * jnp.abs(logits(tiny(), tokens())).max()


def test_dropout_needs_a_key_and_follows_it():
    changes = {"attention_dropout": 0.1, "embedding_dropout": 0.1, "residual_dropout": 0.1}
    model = tiny(**changes)
    np.testing.assert_array_equal(logits(model, tokens()), logits(tiny(), tokens()))
    one = logits(model, tokens(), dropout_key=jax.random.key(1))
    np.testing.assert_array_equal(one, logits(model, tokens(), dropout_key=jax.random.key(1)))
    assert jnp.abs(one - logits(model, tokens(), dropout_key=jax.random.key(2))).max() > 0
    kept = dropout(jnp.ones(100_000), 0.25, jax.random.key(0))
    np.testing.assert_allclose((kept > 0).mean(), 0.75, atol=0.01)
    np.testing.assert_allclose(kept.mean(), 1, atol=0.01)


def test_too_many_tokens():
    with pytest.raises(ValueError, match="got 33 tokens; the model has 32 positions"):
        tiny()(tokens(length=33))


def test_an_unknown_attention_kernel():
    with pytest.raises(ValueError, match=r"model\.attention='flash'"):
        dataclasses.replace(TINY, attention="flash")


def test_attention_equals_torchs():
    torch = pytest.importorskip("torch", reason="torch is in the extra `dev`")
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 2, 4, 16, 8)).astype(np.float32)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (query, key, value)), is_causal=True
    )
    np.testing.assert_allclose(attend(query, key, value), theirs.numpy(), atol=1e-5)
    # The last queries alone, against all keys, are the same rows.
    np.testing.assert_allclose(
        attend(query[:, :, -3:], key, value), theirs.numpy()[:, :, -3:], atol=1e-5
    )


def test_two_texts_in_one_row_are_two_rows():
    model = tiny()
    texts_BxL = tokens(2, 16)
    text_32 = jnp.repeat(jnp.arange(2), 16)
    positions_1x32 = jnp.tile(jnp.arange(16), 2)[None]
    visible_32x32 = (text_32[:, None] == text_32) & jnp.tri(32, dtype=bool)
    apart = jax.jit(GPT.hidden)(model, texts_BxL)
    together = jax.jit(GPT.hidden)(
        model,
        texts_BxL.reshape(1, 32),
        positions_BxL=positions_1x32,
        visible_BxLxL=visible_32x32[None],
    )
    np.testing.assert_allclose(together.reshape(apart.shape), apart, atol=1e-5)


def test_the_positions_gradient_is_summed_over_rows_in_float32():
    # 512 equal rows: in bfloat16 a sum of equal numbers stops growing at 256 of them.
    model = GPT(dataclasses.replace(TINY, compute_dtype="bfloat16"), key=jax.random.key(0))
    row = tokens()[:1]
    weights = jax.random.normal(jax.random.key(1), (row.shape[1], TINY.width))

    def loss(model, rows):
        hidden = model.hidden(jnp.repeat(row, rows, axis=0)).astype(jnp.float32)
        return (hidden * weights).sum() / rows

    one, many = (jax.grad(loss)(model, rows).wpe[...] for rows in (1, 512))
    np.testing.assert_allclose(many, one, rtol=0.02, atol=0.02 * np.abs(one).max())
