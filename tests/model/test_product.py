import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.product import product
from biomedlm_jax.planning.compiled import read_program
from biomedlm_jax.planning.hlo import Program
from biomedlm_jax.planning.topology import topology_devices

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
    found = {}
    for reduce_dtype in ("float32", "compute"):
        y, back = jax.vjp(functools.partial(product, equation, reduce_dtype), x, kernel)
        dx, found[reduce_dtype] = back(dy)
        assert (y.dtype, dx.dtype) == (jnp.bfloat16, jnp.bfloat16)
        assert found[reduce_dtype].dtype == jnp.float32
    np.testing.assert_allclose(found["float32"], exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["compute"], found["compute"].astype(jnp.bfloat16))
    assert np.abs(found["compute"] - exact).max() > 1e-3


@pytest.mark.parametrize(("reduce_dtype", "summed"), [("float32", "f32"), ("compute", "bf16")])
def test_devices_sum_the_gradient_in_that_dtype(reduce_dtype, summed):
    # On a TPU: a CPU adds bfloat16 numbers in float32 in any case.
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: it is in the extra `tpu`")
    mesh = meshes.make_mesh(fsdp=4, devices=topology_devices("v5e:2x2"))
    row, cut = meshes.sharding(mesh, "batch"), meshes.sharding(mesh, "embed")
    x = jax.ShapeDtypeStruct((8, 128, 512), jnp.bfloat16, sharding=row)
    kernel = jax.ShapeDtypeStruct((512, 1024), jnp.float32, sharding=cut)

    def loss(kernel, x):
        return product("BLD,DF->BLF", reduce_dtype, x, kernel).astype(jnp.float32).sum()

    text = jax.jit(jax.grad(loss), out_shardings=cut).lower(kernel, x).compile().as_text()
    sums = [c for c in read_program(Program(text))["collectives"] if "reduce" in c.kind]
    assert [(c.dtype, c.group) for c in sums] == [(summed, 4)]
