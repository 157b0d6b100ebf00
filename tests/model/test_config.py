import pytest

from biomedlm_jax.model.gpt2 import GPT2Config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heads": 7}, "model.heads=7, which does not divide"),
        ({"heads": 7, "width": 10**15}, "model.heads=7, which does not divide"),
        ({"layers": 0}, "model.layers=0; expected at least 1"),
        ({"layers": 10**9}, "model.layers=1000000000; expected at least 1 and at most 10000"),
        ({"hf_entries": "{"}, "got model.hf_entries that is no JSON"),
        ({"hf_entries": "[1]"}, "expected a JSON object"),
        ({"layers": "3"}, "model.layers='3'; expected a whole number"),
        ({"layers": True}, "model.layers=True; expected a whole number"),
        ({"attention_dropout": 1.0}, "at least 0 and below 1"),
        ({"eos_token_id": 28_896}, "not below model.vocab_size"),
        ({"compute_dtype": "float16"}, "one of auto, float32, bfloat16"),
        ({"remat": "query,kee"}, "kee"),
        ({"initializer_range": float("nan")}, "expected a finite number"),
        ({"layer_norm_epsilon": float("inf")}, "expected a finite number"),
    ],
)
def test_values_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        GPT2Config(**values)


def test_unset_values_follow_the_others():
    config = GPT2Config(vocab_size=300, width=64, heads=4)
    assert (config.eos_token_id, config.mlp_width) == (299, 256)
    assert (config.head_dim, config.key_value_heads, config.padded_vocab_size) == (16, 4, 384)


def test_the_architecture_leaves_execution_and_dropout_out():
    one = GPT2Config(compute_dtype="float32", remat="full", residual_dropout=0.3, unroll=2)
    assert one.architecture() == GPT2Config(vocab_multiple=64).architecture()
    assert one.architecture()["model_type"] == "gpt2"
    assert one.architecture() != GPT2Config(layer_norm_epsilon=1e-6).architecture()
