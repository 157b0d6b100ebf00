import jax
import jax.numpy as jnp
import numpy as np

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.embedding import lookup


def test_the_lookups_gradient_is_summed_in_float32():
    # 300 times the same token: in bfloat16 the sum of ones would stop at 256.
    tokens_BxL = jnp.zeros((1, 300), jnp.int32)
    wte_VxD = jnp.ones((4, 8))

    def total(wte_VxD):
        return lookup(jnp.bfloat16, wte_VxD, tokens_BxL).astype(jnp.float32).sum()

    dwte_VxD = jax.grad(total)(wte_VxD)
    assert dwte_VxD.dtype == jnp.float32
    np.testing.assert_array_equal(dwte_VxD, np.array([[300.0], [0], [0], [0]]) * np.ones(8))


def test_on_a_mesh_it_is_the_same_and_no_whole_gradient_exists():
    tokens_BxL = jax.random.randint(jax.random.key(0), (8, 16), 0, 64)
    wte_VxD = jax.random.normal(jax.random.key(1), (64, 32))
    weights_BxLxD = jax.random.normal(jax.random.key(2), (8, 16, 32))

    def loss(wte_VxD, tokens_BxL):
        return (lookup(jnp.float32, wte_VxD, tokens_BxL) * weights_BxLxD).sum()

    wanted = jax.grad(lambda wte: (wte[tokens_BxL] * weights_BxLxD).sum())(wte_VxD)
    mesh = meshes.make_mesh(data=2, fsdp=4)
    with jax.set_mesh(mesh):
        shards = meshes.sharding(mesh, "vocab", "embed"), meshes.sharding(mesh, "batch", "length")
        step = jax.jit(jax.grad(loss), in_shardings=shards, out_shardings=shards[0])
        compiled = step.lower(wte_VxD, tokens_BxL).compile()
        got = compiled(*jax.device_put((wte_VxD, tokens_BxL), shards))
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    exchanges = [line for line in compiled.as_text().splitlines() if "all-reduce(" in line]
    assert not [line for line in exchanges if "f32[64,32]" in line]
