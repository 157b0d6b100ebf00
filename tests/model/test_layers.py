import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model import layers
from biomedlm_jax.model.layers import (
    LayerNorm,
    RMSNorm,
    apply_linear,
    lookup,
    product,
    rms_norm,
    rotate,
)

SHAPES = {  # of x, kernel and result
    "BLD,DHK->BHLK": ((2, 5, 12), (12, 3, 4)),
    "BHLK,HKD->BLD": ((2, 3, 5, 4), (3, 4, 12)),
    "BLD,DF->BLF": ((2, 5, 12), (12, 20)),
}


def arrays(equation: str, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = (
        jax.random.normal(key, shape) for key, shape in zip(keys, SHAPES[equation], strict=False)
    )
    dy = jax.random.normal(keys[2], jnp.einsum(equation, x, kernel).shape)
    return x.astype(dtype), kernel, dy.astype(dtype)


@pytest.mark.parametrize("reduce_dtype", ["float32", "compute"])
@pytest.mark.parametrize("equation", SHAPES)
def test_value_and_gradients_are_those_of_einsum(equation, reduce_dtype):
    x, kernel, dy = arrays(equation)
    ours, back = jax.vjp(functools.partial(product, equation, reduce_dtype), x, kernel)
    theirs, their_back = jax.vjp(functools.partial(jnp.einsum, equation), x, kernel)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    for a, b in zip(back(dy), their_back(dy), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("equation", SHAPES)
def test_only_compute_rounds_the_gradient_to_the_products_dtype(equation):
    x, kernel, dy = arrays(equation, jnp.bfloat16)
    exact = jax.vjp(functools.partial(jnp.einsum, equation), x.astype(jnp.float32), kernel)[1]
    exact = exact(dy.astype(jnp.float32))[1]
    rounded = {}
    for reduce_dtype in ("float32", "compute"):
        y, back = jax.vjp(functools.partial(product, equation, reduce_dtype), x, kernel)
        dx, rounded[reduce_dtype] = back(dy)
        assert (y.dtype, dx.dtype) == (jnp.bfloat16, jnp.bfloat16)
        assert rounded[reduce_dtype].dtype == jnp.float32
    np.testing.assert_allclose(rounded["float32"], exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(rounded["compute"], rounded["compute"].astype(jnp.bfloat16))
    assert np.abs(rounded["compute"] - exact).max() > 1e-3


@pytest.mark.parametrize(("reduce_dtype", "summed"), [("float32", "f32"), ("compute", "bf16")])
def test_devices_sum_the_gradient_in_that_dtype(reduce_dtype, summed):
    # On a TPU: a CPU adds bfloat16 numbers in float32 in any case.
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: it is in the extra `tpu`")
    from biomedlm_jax.planning.compiled import read_program
    from biomedlm_jax.planning.hlo import Program
    from biomedlm_jax.planning.topology import topology_devices

    mesh = meshes.make_mesh(fsdp=4, devices=topology_devices("v5e:2x2"))
    row, cut = meshes.sharding(mesh, "batch"), meshes.sharding(mesh, "embed")
    x = jax.ShapeDtypeStruct((8, 128, 512), jnp.bfloat16, sharding=row)
    kernel = jax.ShapeDtypeStruct((512, 1024), jnp.float32, sharding=cut)

    def loss(kernel, x):
        return product("BLD,DF->BLF", reduce_dtype, x, kernel).astype(jnp.float32).sum()

    text = jax.jit(jax.grad(loss), out_shardings=cut).lower(kernel, x).compile().as_text()
    sums = [c for c in read_program(Program(text))["collectives"] if "reduce" in c.kind]
    assert [(c.dtype, c.group) for c in sums] == [(summed, 4)]


def made(kind, dtype):
    flax = {"use_fast_variance": False, "rngs": nnx.Rngs(0)} if kind is nnx.LayerNorm else {}
    module = kind(48, epsilon=1e-5, dtype=dtype, **flax)
    keys = jax.random.split(jax.random.key(1))
    module.scale[...] = jax.random.normal(keys[0], 48)
    module.bias[...] = jax.random.normal(keys[1], 48)
    return module


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 2e-5), (jnp.bfloat16, 4e-2)], ids=["float32", "bfloat16"]
)
def test_it_computes_what_flax_does_with_gradients(dtype, tolerance):
    # Far from 0, where the mean of squares less the square of the mean would cancel.
    x = (jax.random.normal(jax.random.key(2), (3, 7, 48)) + 100).astype(dtype)
    weights = jax.random.normal(jax.random.key(3), x.shape)

    def both(module):
        def loss(module, x):
            return (module(x).astype(jnp.float32) * weights).sum()

        return jax.tree.leaves(jax.value_and_grad(loss, argnums=(0, 1))(module, x))

    ours, theirs = both(made(LayerNorm, dtype)), both(made(nnx.LayerNorm, dtype))
    assert len(ours) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        scale = np.abs(np.asarray(b, np.float32)).max()
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=0, atol=tolerance * scale
        )


def plain_rms_norm(epsilon, dtype, x_xD, scale_D):
    x_xD = x_xD.astype(jnp.float32)
    root_x1 = jnp.sqrt((x_xD**2).mean(-1, keepdims=True) + epsilon)
    return (x_xD / root_x1 * scale_D[None, None]).astype(dtype)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-5, 0.5])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 1e-2)], ids=["float32", "bfloat16"]
)
def test_rms_norm_is_its_formula_with_gradients(epsilon, dtype, tolerance):
    # Of rows of many sizes: at the smallest epsilon counts.
    sizes = jnp.array([1e-3, 0.1, 1, 30]).reshape(1, 4, 1)
    x = (sizes * jax.random.normal(jax.random.key(2), (3, 4, 48))).astype(dtype)
    weights = jax.random.normal(jax.random.key(3), x.shape)
    scale = jax.random.normal(jax.random.key(4), 48)

    def both(norm):
        def loss(x, scale):
            return (norm(epsilon, dtype, x, scale).astype(jnp.float32) * weights).sum()

        return jax.value_and_grad(loss, argnums=(0, 1))(x, scale)

    loss, (dx, dscale) = both(rms_norm)
    expected, (their_dx, their_dscale) = both(plain_rms_norm)
    np.testing.assert_allclose(loss, expected, rtol=tolerance, atol=tolerance)
    assert dx.dtype == dtype
    for ours, theirs in ((dscale, their_dscale), *((dx[:, i], their_dx[:, i]) for i in range(4))):
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("batched", [False, True])
def test_a_rotation_is_a_product_of_complex_numbers_with_gradients(batched):
    F = 5
    frequencies = np.float32(1) / np.float32(100) ** (np.arange(F, dtype=np.float32) / F)
    x = jax.random.normal(jax.random.key(0), (2, 3, 7, 2 * F))
    weights = np.asarray(jax.random.normal(jax.random.key(1), x.shape), np.float64)
    positions = np.arange(7) + (np.array([[3], [40]]) if batched else 0)

    def turned(x, sign):
        x = np.asarray(x, np.float64)
        phase = sign * positions[..., None] * np.asarray(frequencies, np.float64)
        phase = phase[:, None] if batched else phase
        pairs = (x[..., :F] + 1j * x[..., F:]) * np.exp(1j * phase)
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    def loss(x):
        y = rotate(x, jnp.asarray(positions), frequencies)
        return (y * jnp.asarray(weights, jnp.float32)).sum(), y

    gradient, y = jax.grad(loss, has_aux=True)(x)
    np.testing.assert_allclose(y, turned(x, 1), atol=1e-5)
    np.testing.assert_allclose(gradient, turned(weights, -1), atol=1e-5)
    half = rotate(x.astype(jnp.bfloat16), jnp.asarray(positions), frequencies)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float32), y, atol=0.03)


@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm])
def test_saved_statistics_are_not_computed_again(kind):
    module, x = kind(48, epsilon=1e-5, dtype=jnp.float32), jnp.ones((2, 48))

    def square_roots(policy):
        def loss(x):
            return jnp.sin(jax.checkpoint(module, policy=policy)(x)).sum()

        return str(jax.make_jaxpr(jax.grad(loss))(x)).count("rsqrt")

    policies = jax.checkpoint_policies
    assert square_roots(policies.save_only_these_names("norm")) == 1
    assert square_roots(policies.nothing_saveable) == 2


@pytest.mark.parametrize("gathered", [True, False])
def test_the_lookups_gradient_is_summed_in_float32(gathered):
    # 300 times the same token: in bfloat16 the sum of ones would stop at 256.
    tokens_BxL = jnp.zeros((1, 300), jnp.int32)
    table_VxD = jnp.ones((4, 8))

    def total(table_VxD):
        return lookup(jnp.bfloat16, gathered, table_VxD, tokens_BxL).astype(jnp.float32).sum()

    dtable_VxD = jax.grad(total)(table_VxD)
    assert dtable_VxD.dtype == jnp.float32
    np.testing.assert_array_equal(dtable_VxD, np.array([[300.0], [0], [0], [0]]) * np.ones(8))


@pytest.mark.parametrize("gathered", [True, False])
def test_on_a_mesh_it_is_the_same_and_no_whole_gradient_exists(gathered):
    tokens_BxL = jax.random.randint(jax.random.key(0), (8, 16), 0, 64)
    table_VxD = jax.random.normal(jax.random.key(1), (64, 32))
    weights_BxLxD = jax.random.normal(jax.random.key(2), (8, 16, 32))

    def loss(table_VxD, tokens_BxL):
        return (lookup(jnp.float32, gathered, table_VxD, tokens_BxL) * weights_BxLxD).sum()

    wanted = jax.value_and_grad(lambda table: (table[tokens_BxL] * weights_BxLxD).sum())(table_VxD)
    mesh = meshes.make_mesh(data=2, fsdp=4)
    with jax.set_mesh(mesh):
        shards = meshes.sharding(mesh, "vocab", "embed"), meshes.sharding(mesh, "batch", "length")
        step = jax.jit(
            jax.value_and_grad(loss), in_shardings=shards, out_shardings=(None, shards[0])
        )
        compiled = step.lower(table_VxD, tokens_BxL).compile()
        got = compiled(*jax.device_put((table_VxD, tokens_BxL), shards))
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], wanted[1], atol=1e-5)
    collectives = [line for line in compiled.as_text().splitlines() if "all-reduce(" in line]
    assert not [line for line in collectives if "f32[64,32]" in line]


def test_a_linear_layer_may_have_no_bias():
    layer = nnx.Linear(3, 4, use_bias=False, rngs=nnx.Rngs(0))
    x_BxLxD = jax.random.normal(jax.random.key(1), (2, 5, 3))
    y_BxLxF = apply_linear("BLD,DF->BLF", "float32", x_BxLxD, layer)
    np.testing.assert_allclose(y_BxLxF, layer(x_BxLxD), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_tpu_the_gradient_of_the_heads_bias_is_a_product_and_the_same(dtype, monkeypatch):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, 37, 12), dtype)
    dy = jax.random.normal(keys[1], (3, 2, 37, 4), dtype) + 1
    layer = nnx.Linear(12, 8, rngs=nnx.Rngs(0))
    layer.bias[...] = jax.random.normal(keys[2], (8,))

    def of(layer, x):
        shapes = {"shape": (-1, 2, 4), "bias": (2, 1, 4)}
        return apply_linear("BLD,DHK->BHLK", "compute", x, layer, **shapes)

    results, products = {}, {}
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(layers, "platform", lambda name=platform: name)
        y, back = jax.vjp(of, layer, x)
        products[platform] = str(jax.make_jaxpr(back)(dy)).count("dot_general[")
        results[platform] = y, back(dy)
    assert products == {"cpu": 2, "tpu": 3}
    for ours, theirs in zip(*map(jax.tree.leaves, results.values()), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    exact = np.asarray(dy, np.float64).sum((0, 2)).ravel()
    np.testing.assert_allclose(results["tpu"][1][0].bias[...], exact, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_tpu_the_mean_of_layer_norm_is_a_product_and_the_same(dtype, monkeypatch):
    x = (jax.random.normal(jax.random.key(0), (2, 5, 52)) * 3 + 7).astype(dtype)
    norm, results, products = LayerNorm(52, epsilon=1e-5, dtype=jnp.float32), {}, {}
    for platform in ("cpu", "tpu"):
        monkeypatch.setattr(layers, "platform", lambda name=platform: name)
        y, back = jax.vjp(lambda norm, x: norm(x), norm, x)
        products[platform] = str(jax.make_jaxpr(lambda x: norm(x))(x)).count("dot_general[")
        results[platform] = y, back(jnp.cos(y))
    assert products == {"cpu": 0, "tpu": 1}
    for ours, theirs in zip(*map(jax.tree.leaves, results.values()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    wide = np.asarray(x, np.float64)
    exact = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(results["tpu"][0], exact, rtol=1e-5, atol=1e-5)
