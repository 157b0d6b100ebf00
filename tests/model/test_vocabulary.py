import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax import mesh as meshes
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
