import json

import pytest

from biomedlm_jax.model.config import GPTConfig


def test_the_defaults_are_biomedlms_published_config(real_data):
    published = json.loads((real_data / "biomedlm_config" / "config.json").read_text())
    assert GPTConfig.from_hf(published) == GPTConfig()


@pytest.mark.parametrize("mlp_width", [None, 96])
@pytest.mark.parametrize("flag", [True, False])
def test_round_trip_through_hugging_faces_config(mlp_width, flag):
    config = GPTConfig(
        vocab_size=300,
        width=64,
        heads=4,
        layers=3,
        mlp_width=mlp_width,
        scale_attn_by_inverse_layer_idx=flag,
        attention_dropout=0.3,
    )
    assert GPTConfig.from_hf(config.to_hf()) == config


def test_transformers_reads_the_same_values():
    transformers = pytest.importorskip("transformers", reason="transformers is in the extra `dev`")
    config = GPTConfig(vocab_size=300, width=64, heads=4, layers=3, mlp_width=96)
    theirs = transformers.GPT2Config(**config.to_hf())
    assert GPTConfig.from_hf(theirs.to_dict()) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"heads": 7}, "model.heads=7 does not divide"),
        ({"layers": 0}, "at least 1"),
        ({"layers": "3"}, "model.layers='3' is a str"),
        ({"layers": True}, "is a bool"),
        ({"attention_dropout": 1.0}, r"in \[0, 1\)"),
        ({"eos_token_id": 28_896}, "not in the vocabulary"),
        ({"compute_dtype": "float16"}, "choose auto, float32 or bfloat16"),
        ({"remat": "query,kee"}, "kee"),
    ],
)
def test_values_that_cannot_be(values, said):
    with pytest.raises(ValueError, match=said):
        GPTConfig(**values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "llama"}, "model_type='llama'"),
        ({"activation_function": "relu"}, "activation_function='relu'"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
    ],
)
def test_other_models_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        GPTConfig.from_hf({**GPTConfig().to_hf(), **values})


def test_a_config_without_its_sizes_is_refused():
    with pytest.raises(ValueError, match="lacks vocab_size"):
        GPTConfig.from_hf({"model_type": "gpt2"})


def test_a_missing_flag_means_no_inverse_layer_scale():
    values = GPTConfig().to_hf()
    del values["scale_attn_by_inverse_layer_idx"]
    assert not GPTConfig.from_hf(values).scale_attn_by_inverse_layer_idx
