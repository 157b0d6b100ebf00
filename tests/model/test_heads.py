import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.model.heads import CHOICE, CLASSIFICATION, HEADS, score_layer

CONFIG = GPT2Config(vocab_size=300, context_length=32, layers=2, width=64, heads=4)


def head(kind: str, classes: int = 3, **changes):
    config = GPT2Config(**{**CONFIG.__dict__, **changes})
    score = score_layer(config, kind, classes, key=jax.random.key(1))
    return HEADS[kind](GPT2(config, key=jax.random.key(0)), score)


def test_the_published_sizes():
    shapes = {
        kind: {
            jax.tree_util.keystr(path): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                jax.eval_shape(
                    lambda k=kind: score_layer(GPT2Config(), k, 3, key=jax.random.key(0))
                )
            )
        }
        for kind in HEADS
    }
    assert shapes[CHOICE] == {".kernel.value": (2560, 1), ".bias.value": (1,)}
    assert shapes[CLASSIFICATION] == {".kernel.value": (2560, 3)}


@pytest.mark.parametrize("kind", HEADS)
def test_scores_are_a_linear_layer_in_float32(kind):
    model = head(kind)
    if kind == CHOICE:
        model.score.bias[...] = jnp.array([0.25])
    states = jax.random.normal(jax.random.key(2), (2, 5, 64))
    kernel = np.asarray(model.score.kernel[...], np.float64)
    expected = np.asarray(states, np.float64) @ kernel
    expected = expected[..., 0] + 0.25 if kind == CHOICE else expected
    np.testing.assert_allclose(model(states), expected, rtol=0, atol=1e-6)
    half = model(states.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, model(states.astype(jnp.bfloat16).astype(jnp.float32)))


def test_a_fresh_score_is_initialised_as_the_models_kernels():
    score = score_layer(GPT2Config(width=4096, heads=4), CLASSIFICATION, 5, key=jax.random.key(0))
    np.testing.assert_allclose(np.std(score.kernel[...]), 0.02, rtol=0.02)
    choice = score_layer(CONFIG, CHOICE, 1, key=jax.random.key(0))
    assert not np.asarray(choice.bias[...]).any()
    other = score_layer(CONFIG, CHOICE, 1, key=jax.random.key(1))
    assert (np.asarray(choice.kernel[...]) != np.asarray(other.kernel[...])).any()


def test_classes_equal_gpt2_for_sequence_classification(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is in the extra `dev`")
    from transformers import GPT2ForSequenceClassification

    from biomedlm_jax.interop.huggingface import export_hf

    model = head(CLASSIFICATION, initializer_range=0.2)
    theirs = GPT2ForSequenceClassification.from_pretrained(
        export_hf(model.trunk, None, tmp_path / "hf"),
        num_labels=3,
        pad_token_id=0,
        attn_implementation="eager",
    ).eval()
    theirs.score.weight.data = torch.tensor(np.array(model.score.kernel[...]).T.copy())
    tokens = jax.random.randint(jax.random.key(3), (4, 32), 1, 300)
    with torch.no_grad():
        expected = theirs(torch.tensor(np.asarray(tokens))).logits.numpy()
    np.testing.assert_allclose(model(model.trunk.hidden(tokens)[:, -1]), expected, atol=1e-5)
