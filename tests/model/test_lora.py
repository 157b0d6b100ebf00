import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import mostly_slow

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.families import abstract_model, make_config, make_model
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.model.heads import MultipleChoice, score_layer
from biomedlm_jax.model.language_model import named_leaves, parameter_count
from biomedlm_jax.model.lora import Adapter, LoRA, matrices_in, without_factors

CONFIG = GPT2Config(
    vocab_size=303,
    context_length=32,
    layers=2,
    width=64,
    heads=4,
    initializer_range=0.2,
    embedding_dropout=0.0,
    attention_dropout=0.0,
    residual_dropout=0.0,
)
RANK, ALPHA, ADDED = 4, 12.0, 3
KERNELS = {
    *(f"attn.c_attn.{name}" for name in ("query", "key", "value")),
    *("attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
}


@pytest.fixture(scope="module")
def gpt(make_gpt2):
    return make_gpt2(CONFIG)


def adapter(gpt, *, trained: bool) -> Adapter:
    """As at the start of a run, or with factors and rows moved away from it."""
    score = score_layer(gpt.config, "choice", 1, key=jax.random.key(1))
    model = MultipleChoice(gpt, score)
    made = Adapter(model, added=ADDED, rank=RANK, alpha=ALPHA, key=jax.random.key(2))
    if trained:
        for i, factors in enumerate(made.lora.factors.values()):
            moved = 0.05 * jax.random.normal(jax.random.key(10 + i), factors["b"].shape)
            factors["b"] = factors["b"].replace(moved)
        for name, rows in made.rows.items():
            made.rows[name] = rows.replace(rows[...] + 0.3)
    return made


def tokens():
    some = jax.random.randint(jax.random.key(3), (2, 16), 0, 303)
    return some.at[:, -1].set(302)


@jax.jit
def hidden(model):
    return model.hidden(tokens())


def kernel(gpt, name):
    at = functools.reduce(getattr, name.split("."), gpt.h)
    return np.asarray(at.kernel[...])


@pytest.mark.slow
def test_the_first_step_starts_from_the_model_as_it_is(gpt):
    fresh = adapter(gpt, trained=False)
    np.testing.assert_array_equal(hidden(fresh.view(gpt).trunk), hidden(gpt))
    head = fresh.merged(gpt)
    for a, b in zip(jax.tree.leaves(head.trunk), jax.tree.leaves(gpt), strict=True):
        np.testing.assert_array_equal(a, b)


def test_merged_and_unmerged_models_compute_the_same(gpt):
    made = adapter(gpt, trained=True)
    unmerged, merged = made.view(gpt), made.merged(gpt)
    x = hidden(unmerged.trunk)
    assert jnp.abs(x - hidden(gpt)).max() > 0.1
    np.testing.assert_allclose(hidden(merged.trunk), x, rtol=0, atol=1e-5)
    np.testing.assert_allclose(merged(hidden(merged.trunk)), unmerged(x), rtol=0, atol=1e-5)


def test_the_change_is_alpha_over_rank_times_the_product(gpt):
    made = adapter(gpt, trained=True)
    merged = made.merged(gpt).trunk
    for name in KERNELS:
        a, b = (np.asarray(made.lora.factors[name][f][...], np.float64) for f in "ab")
        expected = kernel(gpt, name) + ALPHA / RANK * np.einsum("NDR,NRF->NDF", a, b)
        np.testing.assert_allclose(kernel(merged, name), expected, atol=1e-6, err_msg=name)


def test_only_kernels_and_the_added_rows_change(gpt):
    before = jax.tree.map(np.array, gpt)
    merged = adapter(gpt, trained=True).merged(gpt).trunk
    changed = set()
    leaves = jax.tree_util.tree_leaves_with_path(merged)
    for (path, ours), old, now in zip(
        leaves, jax.tree.leaves(before), jax.tree.leaves(gpt), strict=True
    ):
        np.testing.assert_array_equal(old, now)  # the frozen model itself stays
        if (np.asarray(ours) != old).any():
            changed.add(".".join(str(key.name) for key in path).removesuffix(".value"))
    assert changed == {"wte", *(f"h.{name}.kernel" for name in KERNELS)}
    np.testing.assert_array_equal(merged.wte[:300], before.wte[:300])
    np.testing.assert_allclose(merged.wte[300:303], before.wte[300:303] + 0.3, rtol=1e-6)
    assert not np.asarray(merged.wte[303:]).any()


def test_gradients_are_those_of_the_merged_weights_projected(gpt):
    made = adapter(gpt, trained=True)
    direction = jax.random.normal(jax.random.key(5), (2, 64))

    def loss_of_adapter(made):
        head = made.view(gpt)
        return (head.trunk.hidden(tokens())[:, -1] * direction).sum()

    def loss_of_model(model):
        return (model.hidden(tokens())[:, -1] * direction).sum()

    ours = jax.jit(jax.grad(loss_of_adapter))(made)
    whole = jax.jit(jax.grad(loss_of_model))(made.merged(gpt).trunk)
    for name in KERNELS:
        a, b = (np.asarray(made.lora.factors[name][f][...]) for f in "ab")
        change = ALPHA / RANK * kernel(whole, name)
        for got, expected in (
            (ours.lora.factors[name]["a"][...], change @ b.swapaxes(-1, -2)),
            (ours.lora.factors[name]["b"][...], a.swapaxes(-1, -2) @ change),
        ):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(got / scale, expected / scale, atol=1e-5, err_msg=name)
    scale = np.abs(whole.wte[300:303]).max()
    np.testing.assert_allclose(ours.rows["wte"][...] / scale, whole.wte[300:303] / scale, atol=1e-5)


def test_of_biomedlm_itself_a_hundredth_is_trained():
    config = GPT2Config(vocab_size=28_896 + ADDED)

    def make():
        key = jax.random.key(0)
        gpt = GPT2(config, key=key)
        score = score_layer(config, "choice", 1, key=key)
        made = Adapter(MultipleChoice(gpt, score), added=ADDED, rank=8, alpha=16.0, key=key)
        return made, optax.adamw(1e-4).init(made)

    made, moments = jax.eval_shape(make)
    abstract = jax.eval_shape(lambda: GPT2(config, key=jax.random.key(0)))
    D, F = config.width, config.mlp_width
    factors = config.layers * 8 * (4 * (D + D) + 2 * (D + F))
    trained = factors + ADDED * D + D + 1
    assert sum(leaf.size for leaf in jax.tree.leaves(made)) == trained
    assert sum(leaf.size for leaf in jax.tree.leaves(moments) if leaf.ndim) == 2 * trained
    assert trained < parameter_count(abstract) / 100


def test_every_layer_and_kernel_has_its_own_factors(gpt):
    lora = LoRA(gpt, rank=RANK, alpha=ALPHA, key=jax.random.key(0))
    initial = [np.asarray(layer) for f in lora.factors.values() for layer in f["a"][...]]
    assert len({values.tobytes() for values in initial}) == len(KERNELS) * CONFIG.layers
    for values in initial:  # Kaiming's uniform bound, sqrt(6 / inputs), nearly reached
        bound = np.sqrt(6 / values.shape[0])
        assert 0.9 * bound < np.abs(values).max() <= bound
    assert not any(np.asarray(f["b"][...]).any() for f in lora.factors.values())


def in_bfloat16(model):
    """The model with its matrices in bfloat16, and the same values in float32."""
    shapes = matrices_in(jax.eval_shape(lambda: model), "bfloat16")
    narrow = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), model, shapes)
    return narrow, jax.tree.map(lambda leaf: leaf.astype("float32"), narrow)


def test_kernels_and_tables_are_matrices():
    sizes = {"vocab_size": 64, "context_length": 16, "layers": 2, "width": 32, "heads": 4}
    fields = {"model_type": "qwen3", "head_dim": 8, "key_value_heads": 2, "mlp_width": 64, **sizes}
    for config in (CONFIG, make_config(fields)):
        model = abstract_model(config, meshes.one_device())
        wide, narrow = named_leaves(model), named_leaves(matrices_in(model, "bfloat16"))
        assert {name for name in wide if narrow[name].dtype == "bfloat16"} == {
            name for name in wide if name.endswith(("kernel", "wte", "wpe", "tokens", "lm_head"))
        }
        for name, leaf in wide.items():
            assert (leaf.shape, leaf.sharding) == (narrow[name].shape, narrow[name].sharding)


@pytest.mark.slow
@pytest.mark.parametrize("family", mostly_slow(["gpt2", "llama"], ["llama"]))
def test_a_frozen_bfloat16_model_is_computed_as_its_float32_values(gpt, family):
    model = gpt
    if family == "llama":
        fields = {"vocab_size": 303, "context_length": 32, "layers": 2, "width": 64, "heads": 4}
        config = make_config(
            {"model_type": "llama", "key_value_heads": 2, "mlp_width": 96} | fields
        )
        model = make_model(config, key=jax.random.key(0))
    narrow, wide = in_bfloat16(model)
    made = adapter(wide, trained=True)

    @jax.jit
    def step(made, frozen):
        def loss(made):
            head = made.view(frozen)
            states = head.trunk.hidden(tokens())
            return (head(states) ** 2).mean() + (head.trunk.logits(states) ** 2).mean()

        return jax.value_and_grad(loss)(made)

    ours, theirs = step(made, narrow), step(made, wide)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    plain, expected = without_factors(made.view(narrow)), made.merged(wide)
    assert jax.tree.structure(plain) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert without_factors(expected).trunk is expected.trunk
    # For decoding, each layer is merged before it is cast.
    one, two = (m.trunk.unstacked(jnp.float32) for m in (made.view(narrow), expected))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
