import jax
import numpy as np
import pytest

from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.model.tokens import grow_vocabulary


@pytest.mark.parametrize("multiple", [1, 64])
def test_old_entries_keep_their_logits_and_new_ones_are_like_fresh_ones(multiple):
    config = GPTConfig(
        vocab_size=61, context_length=16, layers=2, width=64, heads=2, vocab_multiple=multiple
    )
    model = GPT(config, key=jax.random.key(0))
    grown = grow_vocabulary(model, 40, jax.random.key(1))
    assert (grown.config.vocab_size, grown.config.eos_token_id) == (101, 60)
    assert grown.h.attn.config == grown.config
    assert grown.wte.shape[0] == grown.config.padded_vocab_size
    tokens = np.arange(8)[None]
    np.testing.assert_allclose(grown(tokens)[..., :61], model(tokens), atol=1e-6)
    np.testing.assert_array_equal(grown.wte[...][:61], model.wte[...][:61])
    new = np.asarray(grown.wte[...])[61:101]
    assert 0.015 < new.std() < 0.025
    assert model.config.vocab_size == 61
    with pytest.raises(ValueError, match="count=0"):
        grow_vocabulary(model, 0, jax.random.key(1))
