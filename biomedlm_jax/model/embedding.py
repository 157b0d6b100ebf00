"""The embedding's rows, looked up and differentiated without a gradient of the whole table.

Axes: B batch, L length, D width, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from biomedlm_jax.mesh import constrain


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def lookup(dtype, wte_VxD: jax.Array, tokens_BxL: jax.Array) -> jax.Array:
    """The tokens' rows of the embedding as `dtype`; its gradient is summed in float32.

    Forward gathers the table's width: a lookup in columns would have to be replicated before it
    could be cut into rows again. Backward exchanges rows for columns instead, so that each device
    sums its own columns of the gradient, and no gradient of the whole table ever exists.
    """
    return constrain(wte_VxD.astype(dtype), "vocab", None)[tokens_BxL]


def _lookup_forward(dtype, wte_VxD, tokens_BxL):
    return lookup(dtype, wte_VxD, tokens_BxL), (tokens_BxL, wte_VxD.shape[0])


def _lookup_backward(dtype, residuals, dx_BxLxD):
    tokens_BxL, V = residuals
    dx_BxLxD = constrain(dx_BxLxD, "rows", None, "embed")
    tokens_BxL = constrain(tokens_BxL, "rows", None)
    zeros_VxD = jnp.zeros((V, dx_BxLxD.shape[-1]), jnp.float32)
    dwte_VxD = zeros_VxD.at[tokens_BxL].add(dx_BxLxD.astype(jnp.float32))
    return constrain(dwte_VxD, "vocab", "embed"), None


lookup.defvjp(_lookup_forward, _lookup_backward)
