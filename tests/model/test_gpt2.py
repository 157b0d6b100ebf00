import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax.model.families import config_from_hf, config_to_hf
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.model.language_model import parameter_count

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


def test_biomedlm_has_exactly_its_published_number_of_parameters():
    config = GPT2Config()
    model = jax.eval_shape(lambda: GPT2(config, key=jax.random.key(0)))
    padding = (config.padded_vocab_size - config.vocab_size) * config.width
    count = sum(leaf.size for leaf in jax.tree.leaves(model)) - padding
    assert count == parameter_count(model) == 2_594_247_680


def test_the_inverse_layer_scale_changes_every_layer_but_the_first(tiny):
    on, off = tiny(), tiny(scale_attn_by_inverse_layer_idx=False)
    assert jnp.abs(logits(on, tokens()) - logits(off, tokens())).max() > 0.1
    on, off = tiny(layers=1), tiny(layers=1, scale_attn_by_inverse_layer_idx=False)
    np.testing.assert_array_equal(logits(on, tokens()), logits(off, tokens()))


def test_initial_scales_are_gpt2s(make_gpt2):
    model = make_gpt2(GPT2Config(vocab_size=4096, width=256, heads=4, layers=8))
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
    assert (first != second).any()  # every layer has its own


def test_the_positions_gradient_is_summed_over_rows_in_float32(tiny):
    # 512 equal rows: in bfloat16 a sum of equal numbers stops growing at 256 of them.
    model = tiny(compute_dtype="bfloat16", layers=1)
    row = tokens(1, 8)
    weights = jax.random.normal(jax.random.key(1), (1, row.shape[1], TINY.width))

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(model, rows):
        def loss(model):
            hidden = model.hidden(jnp.repeat(row, rows, axis=0)).astype(jnp.float32)
            return (hidden * weights).sum() / rows

        return jax.grad(loss)(model).wpe[...]

    one, many = (gradient(model, rows) for rows in (1, 512))
    np.testing.assert_allclose(many, one, rtol=0.02, atol=0.02 * np.abs(one).max())


def test_the_defaults_are_biomedlms_published_config(real_data):
    published = json.loads((real_data / "biomedlm_config" / "config.json").read_text())
    config = config_from_hf(published)
    kept = {"pad_token_id": config.pad_token_id, "hf_entries": config.hf_entries}
    assert config == GPT2Config(**kept)
    exported = config_to_hf(config)
    for name in {*published} - {"architectures", "torch_dtype"}:
        assert exported[name] == published[name], name


@pytest.mark.parametrize("mlp_width", [None, 96])
@pytest.mark.parametrize("flag", [True, False])
def test_round_trip_through_hugging_faces_config(mlp_width, flag):
    config = GPT2Config(
        vocab_size=300,
        width=64,
        heads=4,
        layers=3,
        mlp_width=mlp_width,
        scale_attn_by_inverse_layer_idx=flag,
        attention_dropout=0.3,
    )
    assert config_from_hf(config_to_hf(config)) == config


def test_transformers_reads_the_same_values():
    transformers = pytest.importorskip("transformers", reason="transformers is in the extra `dev`")
    config = GPT2Config(vocab_size=300, width=64, heads=4, layers=3, mlp_width=96)
    theirs = transformers.GPT2Config(**config_to_hf(config))
    again = config_from_hf(theirs.to_dict())
    assert again == dataclasses.replace(config, hf_entries=again.hf_entries)
    assert not {*json.loads(again.hf_entries)} & {*config_to_hf(config)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"activation_function": "relu"}, "activation_function='relu'"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
    ],
)
def test_other_models_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf({**config_to_hf(GPT2Config()), **values})


def test_a_config_without_its_sizes_is_refused():
    with pytest.raises(ValueError, match="lacks vocab_size"):
        config_from_hf({"model_type": "gpt2"})


def test_a_missing_flag_means_no_inverse_layer_scale():
    values = config_to_hf(GPT2Config())
    del values["scale_attn_by_inverse_layer_idx"]
    assert not config_from_hf(values).scale_attn_by_inverse_layer_idx
