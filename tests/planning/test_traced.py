import jax
import jax.numpy as jnp

from biomedlm_jax.planning.traced import matmul_flops, saved_arrays


def test_recomputation_counts():
    def loss(x):
        return (jnp.sin(x @ x) @ x).sum()

    def rematerialised(x):
        return jax.checkpoint(lambda x: jnp.sin(x @ x) @ x)(x).sum()

    x = jax.ShapeDtypeStruct((8, 8), "float32")
    plain, inside = matmul_flops(jax.make_jaxpr(jax.grad(loss))(x))
    again, _ = matmul_flops(jax.make_jaxpr(jax.grad(rematerialised))(x))
    assert (plain, inside) == (6 * 2 * 8**3, 0)
    assert again == plain + 2 * 8**3


def test_a_kernel_and_a_loop_count_apart():
    from jax.experimental import pallas

    def kernel(x_ref, y_ref, out_ref):
        out_ref[...] = jnp.dot(x_ref[...], y_ref[...])

    def step(x, _):
        call = pallas.pallas_call(kernel, grid=(2,), out_shape=x, interpret=True)
        return call(x, x), None

    x = jax.ShapeDtypeStruct((8, 8), "float32")
    jaxpr = jax.make_jaxpr(lambda x: jax.lax.scan(step, x @ x, length=3)[0])(x)
    assert matmul_flops(jaxpr) == (2 * 8**3, 3 * 2 * 2 * 8**3)


def test_saved_arrays_are_those_that_the_scan_stacks():
    def loss(w_NxDxD, x_BxD):
        def layer(x_BxD, w_DxD):
            return jnp.sin(x_BxD @ w_DxD), None

        y_BxD, _ = jax.lax.scan(layer, x_BxD, w_NxDxD)
        return y_BxD.sum()

    w, x = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((3, 8, 8), (4, 8)))
    arrays = saved_arrays(jax.make_jaxpr(jax.jit(jax.grad(loss)))(w, x))
    assert {a.shape for a in arrays} == {(3, 4, 8)}  # what sin and the product need
    assert saved_arrays(jax.make_jaxpr(loss)(w, x)) == []
