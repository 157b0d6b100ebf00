import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.families import make_config, make_model
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.model.language_model import named_leaves
from biomedlm_jax.model.vocabulary import grow_vocabulary, with_added_tokens

CONFIG = GPT2Config(vocab_size=300, context_length=32, layers=2, width=64, heads=4, eos_token_id=7)


@pytest.fixture(scope="module")
def model(make_gpt2):
    return make_gpt2(CONFIG)


@pytest.mark.parametrize("count", [0, 3, 84, 85])  # up to the padding's end, and beyond
def test_everything_else_keeps_its_bits(model, count):
    bigger = grow_vocabulary(model, count, key=jax.random.key(1))
    assert bigger.config == with_added_tokens(CONFIG, count)
    assert bigger.config.vocab_size == 300 + count
    assert bigger.config.eos_token_id == 7
    before, after = named_leaves(model), named_leaves(bigger)
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        kept = after[name][:300] if name == "wte" else after[name]
        leaf = leaf[:300] if name == "wte" else leaf
        assert np.asarray(kept).tobytes() == np.asarray(leaf).tobytes(), name
    assert len(bigger.wte[...]) == (512 if count == 85 else 384)
    assert not np.asarray(bigger.wte[300 + count :]).any()
    assert not count or np.abs(bigger.wte[300 : 300 + count]).min(axis=1).all()
    metadata = bigger.wte.get_metadata()["out_sharding"]
    assert metadata == model.wte.get_metadata()["out_sharding"]


def test_old_texts_have_their_old_logits_and_padding_is_never_visible(model):
    tokens = jax.random.randint(jax.random.key(2), (2, 16), 0, 300)
    bigger = grow_vocabulary(model, 5, key=jax.random.key(1))
    logits = jax.jit(GPT2.__call__)(bigger, tokens)
    assert logits.shape == (2, 16, 305)
    np.testing.assert_allclose(logits[..., :300], jax.jit(GPT2.__call__)(model, tokens), atol=1e-6)
    assert jnp.abs(logits[..., 300:]).max() > 0  # of the rows' own, not of padding


def test_rows_are_initialised_as_a_fresh_models_and_follow_the_key(model, make_gpt2):
    wide = make_gpt2(GPT2Config(vocab_size=8, layers=1, width=512, heads=4))
    rows = grow_vocabulary(wide, 100, key=jax.random.key(1)).wte[8:108]
    np.testing.assert_allclose(np.std(rows), 0.02, rtol=0.02)
    np.testing.assert_allclose(np.mean(rows), 0, atol=1e-3)
    one, same, other = (grow_vocabulary(model, 3, key=jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one.wte[...], same.wte[...])
    assert (np.asarray(one.wte[300:303]) != np.asarray(other.wte[300:303])).any()


@pytest.mark.slow
def test_rows_at_the_mean_have_the_mean_and_the_scaled_covariance_of_the_others(model):
    size, untied = (
        {"vocab_size": 300, "layers": 1, "width": 16, "heads": 4},
        ("embed_tokens", "lm_head"),
    )
    fields = {"model_type": "llama", "key_value_heads": 2, "mlp_width": 16, "context_length": 8}
    llama = make_model(make_config(fields | size), key=jax.random.key(3))
    for name in untied:
        setattr(llama, name, getattr(llama, name).replace(getattr(llama, name)[...] + 0.5))
    samples = []
    for before in (model, llama):
        after = grow_vocabulary(before, 20_000, key=jax.random.key(1), at_mean=True)
        for name, leaf in named_leaves(before).items():
            if name not in ("wte", *untied):
                assert named_leaves(after)[name] is leaf
                continue
            table, grown = (np.asarray(named_leaves(m)[name], np.float64) for m in (before, after))
            np.testing.assert_array_equal(grown[:300], table[:300])
            rows, scale = grown[300:20_300], table[:300].std(axis=0).max()
            np.testing.assert_allclose(
                rows, np.tile(table[:300].mean(0), (20_000, 1)), atol=scale / 1e3
            )
            wanted = 1e-9 * np.cov(table[:300].T, bias=True)
            np.testing.assert_allclose(np.cov(rows.T), wanted, rtol=0, atol=0.06 * wanted.max())
            assert len(np.unique(rows[:3, 0])) > 1
            samples.append(rows - rows.mean(0))
    assert (samples[1] != samples[2]).any()  # the input's noise is not the output's


def test_a_bfloat16_table_grows_as_it_is(model):
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
    for at_mean in (False, True):
        grown = grow_vocabulary(narrow, 2, key=jax.random.key(1), at_mean=at_mean)
        assert grown.wte.dtype == jnp.bfloat16
    mean = np.asarray(model.wte[:300], np.float64).mean(0)
    np.testing.assert_allclose(grown.wte[300].astype(jnp.float32), mean, atol=2e-4)


def test_it_grows_in_its_shards(model):
    mesh = meshes.make_mesh(data=1, fsdp=4, tensor=2)

    def grow():
        return grow_vocabulary(GPT2(CONFIG, key=jax.random.key(0)), 85, key=jax.random.key(1))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, meshes.abstract_sharded(grow, mesh))
    sharded = jax.jit(grow, out_shardings=shardings)()
    assert sharded.wte[...].addressable_shards[0].data.shape == (512 // 2, 64 // 4)
    whole = grow_vocabulary(model, 85, key=jax.random.key(1))
    np.testing.assert_allclose(sharded.wte[...], whole.wte[...], atol=1e-7)


def test_a_negative_count(model):
    with pytest.raises(ValueError, match="got count=-1 tokens to add; expected at least 0"):
        grow_vocabulary(model, -1, key=jax.random.key(0))
