import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from biomedlm_jax.model.layer_norm import LayerNorm


def made(kind, dtype):
    module = kind(48, epsilon=1e-5, dtype=dtype, use_fast_variance=False, rngs=nnx.Rngs(0))
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


def test_saved_statistics_are_not_computed_again():
    module, x = made(LayerNorm, jnp.float32), jnp.ones((2, 48))

    def square_roots(policy):
        def loss(x):
            return jnp.sin(jax.checkpoint(module, policy=policy)(x)).sum()

        return str(jax.make_jaxpr(jax.grad(loss))(x)).count("rsqrt")

    policies = jax.checkpoint_policies
    assert square_roots(policies.save_only_these_names("norm")) == 1
    assert square_roots(policies.nothing_saveable) == 2
