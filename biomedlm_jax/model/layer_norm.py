"""LayerNorm: scale and bias of a normalised width, its statistics in float32 and kept.

Axes: D width, x all axes before it.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name


class LayerNorm(nnx.LayerNorm):
    """Normalise the last axis to mean 0 and variance 1, then scale and shift it.

    The variance is the mean square of the centred values, as torch computes it; the mean of
    squares less the square of the mean would cancel. Mean and reciprocal deviation bear the
    checkpoint name `norm`: saved, they cost two numbers a position, and backward reads the
    positions once instead of three times.
    """

    def __call__(self, x_xD: jax.Array) -> jax.Array:
        """The normalised `x`, computed in float32 and returned in the module's dtype."""
        return normalise(self.epsilon, self.dtype, x_xD, self.scale[...], self.bias[...])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def normalise(epsilon: float, dtype, x_xD: jax.Array, scale_D: jax.Array, bias_D: jax.Array):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis, as `dtype`."""
    return _forward(epsilon, dtype, x_xD, scale_D, bias_D)[0]


def _forward(epsilon, dtype, x_xD, scale_D, bias_D):
    wide_xD = x_xD.astype(jnp.float32)
    mean_x1 = wide_xD.mean(-1, keepdims=True)
    variance_x1 = jnp.square(wide_xD - mean_x1).mean(-1, keepdims=True)
    mean_x1 = checkpoint_name(mean_x1, "norm")
    inverse_x1 = checkpoint_name(jax.lax.rsqrt(variance_x1 + epsilon), "norm")
    y_xD = (wide_xD - mean_x1) * inverse_x1 * scale_D + bias_D
    return y_xD.astype(dtype), (x_xD, mean_x1, inverse_x1, scale_D)


def _backward(epsilon, dtype, residuals, dy_xD):
    x_xD, mean_x1, inverse_x1, scale_D = residuals
    dy_xD = dy_xD.astype(jnp.float32)
    unit_xD = (x_xD.astype(jnp.float32) - mean_x1) * inverse_x1
    rows = tuple(range(x_xD.ndim - 1))
    dscale_D, dbias_D = (dy_xD * unit_xD).sum(rows), dy_xD.sum(rows)
    dunit_xD = dy_xD * scale_D
    along_x1 = (dunit_xD * unit_xD).mean(-1, keepdims=True)
    dx_xD = (dunit_xD - dunit_xD.mean(-1, keepdims=True) - unit_xD * along_x1) * inverse_x1
    return dx_xD.astype(x_xD.dtype), dscale_D, dbias_D


normalise.defvjp(_forward, _backward)
