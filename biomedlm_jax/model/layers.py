"""Layers that families share: products with chosen gradient dtypes, norms, lookups, dropout.

Axes: B batch, L length, D width, V vocabulary, x any axes before the last.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from biomedlm_jax.mesh import constrain, platform

REDUCE_DTYPES = ("float32", "compute")
# Of a product in place of a sum: of any dtype exact factors, added up in float32.
EXACT: Any = {"precision": "highest", "preferred_element_type": jnp.float32}


def custom_vjp(*nondiff_argnums: int) -> Any:
    """Return the decorator `jax.custom_vjp`, typed Any: its own type hides the return type."""
    return functools.partial(jax.custom_vjp, nondiff_argnums=nondiff_argnums)


def axis_metadata(*names: str | None) -> dict:
    """Return the metadata of a parameter whose axes have these logical names."""
    # Without eager_sharding=False a module could not be built outside a mesh.
    return {"out_sharding": names, "eager_sharding": False}


def apply_linear(
    equation: str, reduce_dtype: str, x: jax.Array, layer, *, shape: Any = None, bias: Any = -1
) -> jax.Array:
    """Return `einsum(equation, x, kernel) + bias` in the dtype of `x`; a layer may have no bias.

    The kernel is reshaped to `shape` and the bias to the shape `bias` first.
    """
    kernel = layer.kernel[...]
    y = product(equation, reduce_dtype, x, kernel.reshape(kernel.shape if shape is None else shape))
    return _add_bias(y, layer, bias)


def apply_gated(
    equation: str, reduce_dtype: str, gate: jax.Array, up: jax.Array, layer
) -> jax.Array:
    """Return `apply_linear` of silu(gate) * up: the second half of SwiGLU (arXiv 2002.05202)."""
    return _add_bias(gated_product(equation, reduce_dtype, gate, up, layer.kernel[...]), layer, -1)


def _add_bias(y: jax.Array, layer, bias: Any) -> jax.Array:
    if layer.bias is None:
        return y
    bias = _of_rank(y.ndim, layer.bias[...].reshape(bias).astype(jnp.float32))
    heads = y.ndim == 4  # queries, keys or values [B, H, L, K]
    return (_add_to_heads if heads and platform() == "tpu" else _add)(y, bias)


def _add(y: jax.Array, bias: jax.Array) -> jax.Array:
    # In float32, so that the bias's gradient is summed in float32 over rows and positions.
    return (y.astype(jnp.float32) + bias).astype(y.dtype)


@custom_vjp()
def _add_to_heads(y_BxHxLxK: jax.Array, bias_1xHx1xK: jax.Array) -> jax.Array:
    """Return `_add`; the bias's gradient is a product instead of a sum over rows and positions.

    No product ends in what the attention kernel returns, where a TPU would add it up on the way:
    the three sums read it once more, which takes 2 % of BioMedLM's step.
    """
    return _add(y_BxHxLxK, bias_1xHx1xK)


def _heads_backward(_, dy_BxHxLxK):
    B, _, L, _ = dy_BxHxLxK.shape
    group_BxLx8 = _groups(jnp.arange(B)[:, None] + jnp.arange(L)[None], dy_BxHxLxK.dtype)
    dbias_8xHxK = jnp.einsum("BHLK,BLE->EHK", dy_BxHxLxK, group_BxLx8, **EXACT)
    return dy_BxHxLxK, dbias_8xHxK.sum(0)[None, :, None]


def _groups(indices_x: jax.Array, dtype) -> jax.Array:
    """Return a factor [..., 8] that adds up in eight groups.

    Of a product with ones, the compiler would make a sum.
    """
    return jax.nn.one_hot(indices_x % 8, 8, dtype=dtype)


_add_to_heads.defvjp(lambda y, bias: (_add_to_heads(y, bias), None), _heads_backward)


def _of_rank(rank: int, x: jax.Array) -> jax.Array:
    """Return `x` with axes of size 1 before its own, `rank` in all."""
    return jax.lax.expand_dims(x, range(rank - x.ndim))


@custom_vjp(0, 1)
def product(equation: str, reduce_dtype: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return `einsum(equation, x, kernel)` in x's dtype; `reduce_dtype` is for gradients only.

    The compiler sums a kernel's gradient over devices in its product's dtype: float32, or with
    `reduce_dtype` compute the dtype of `x`, which halves the collectives' bytes.
    """
    # The axes of x come first: einsum's own order would make a transposed copy of a CPU's kernel.
    factors, result = equation.split("->")
    left, right = factors.split(",")
    natural = "".join(sorted({*left} ^ {*right}, key=(left + right).index))
    y = jnp.einsum(f"{factors}->{natural}", x, kernel.astype(x.dtype))
    return jnp.einsum(f"{natural}->{result}", y)


def _product_forward(equation, reduce_dtype, x, kernel):
    return product(equation, reduce_dtype, x, kernel), (x, kernel)


def _product_backward(equation, reduce_dtype, residuals, dy):
    x, kernel = residuals
    factors, result = equation.split("->")
    left, right = factors.split(",")
    dx = jnp.einsum(f"{result},{right}->{left}", dy, kernel.astype(x.dtype))
    dtype = jnp.float32 if reduce_dtype == "float32" else x.dtype
    dkernel = jnp.einsum(f"{left},{result}->{right}", x, dy, preferred_element_type=dtype)
    return dx, dkernel.astype(kernel.dtype)


product.defvjp(_product_forward, _product_backward)


@custom_vjp(0, 1)
def gated_product(equation: str, reduce_dtype: str, gate: jax.Array, up: jax.Array, kernel):
    """Return `product` of silu(gate) * up and a kernel."""
    return product(equation, reduce_dtype, jax.nn.silu(gate) * up, kernel)


def _gated_backward(equation, reduce_dtype, residuals, dy):
    gate, up, kernel = residuals
    factors, result = equation.split("->")
    left, right = factors.split(",")
    # Without barriers the TPU compiler computes the elementwise functions anew for each tile of the
    # five products that they are fused into, which takes 17 % of the step of Llama 2 7B. The
    # gradient of the kernel comes first: meanwhile the kernel is gathered.
    sigmoid = jax.nn.sigmoid(gate)
    silu = gate * sigmoid
    h = jax.lax.optimization_barrier(silu * up)
    dtype = jnp.float32 if reduce_dtype == "float32" else gate.dtype
    dkernel = jnp.einsum(f"{left},{result}->{right}", h, dy, preferred_element_type=dtype)
    dy, dkernel = jax.lax.optimization_barrier((dy, dkernel))
    dh = jnp.einsum(f"{result},{right}->{left}", dy, kernel.astype(gate.dtype))
    dh = jax.lax.optimization_barrier(dh)
    dgate = dh * up * (sigmoid + silu * (1 - sigmoid))
    dgate, dup = jax.lax.optimization_barrier((dgate, dh * silu))
    return dgate, dup, dkernel.astype(kernel.dtype)


gated_product.defvjp(
    lambda equation, reduce_dtype, *primals: (
        gated_product(equation, reduce_dtype, *primals),
        primals,
    ),
    _gated_backward,
)


class LayerNorm(nnx.Module):
    """Normalise the last axis to mean 0 and variance 1, then scale and shift it.

    The variance is of centred values, as in torch: a mean of squares would cancel. With mean and
    inverse deviation saved (checkpoint name `norm`), the backward pass reads positions once.
    """

    def __init__(self, width: int, *, epsilon: float, dtype):
        self.scale = nnx.Param(jnp.ones(width), **axis_metadata(None))
        self.bias = nnx.Param(jnp.zeros(width), **axis_metadata(None))
        self.epsilon, self.dtype = epsilon, dtype

    def __call__(self, x_xD: jax.Array) -> jax.Array:
        """Return the normalised `x`, computed in float32, in the module's dtype."""
        return layer_norm(self.epsilon, self.dtype, x_xD, self.scale[...], self.bias[...])


@custom_vjp(0, 1)
def layer_norm(epsilon: float, dtype, x_xD: jax.Array, scale_D: jax.Array, bias_D: jax.Array):
    """Return (x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis."""
    return _norm_forward(epsilon, dtype, x_xD, scale_D, bias_D)[0]


def _norm_forward(epsilon, dtype, x_xD, scale_D, bias_D):
    wide_xD = x_xD.astype(jnp.float32)
    if platform() == "tpu":  # a product: a collective overlaps it, and it takes less time
        group_Dx8 = _groups(jnp.arange(x_xD.shape[-1]), x_xD.dtype)
        sums_x8 = jnp.einsum("...D,DE->...E", x_xD, group_Dx8, **EXACT)
        mean_x1 = sums_x8.sum(-1, keepdims=True) / x_xD.shape[-1]
    else:
        mean_x1 = wide_xD.mean(-1, keepdims=True)
    variance_x1 = jnp.square(wide_xD - mean_x1).mean(-1, keepdims=True)
    mean_x1 = checkpoint_name(mean_x1, "norm")
    inverse_x1 = checkpoint_name(jax.lax.rsqrt(variance_x1 + epsilon), "norm")
    y_xD = (wide_xD - mean_x1) * inverse_x1 * _of_rank(x_xD.ndim, scale_D)
    y_xD += _of_rank(x_xD.ndim, bias_D)
    return y_xD.astype(dtype), (x_xD, mean_x1, inverse_x1, scale_D)


def _norm_backward(epsilon, dtype, residuals, dy_xD):
    x_xD, mean_x1, inverse_x1, scale_D = residuals
    dy_xD = dy_xD.astype(jnp.float32)
    unit_xD = (x_xD.astype(jnp.float32) - mean_x1) * inverse_x1
    rows = tuple(range(x_xD.ndim - 1))
    dscale_D, dbias_D = (dy_xD * unit_xD).sum(rows), dy_xD.sum(rows)
    dunit_xD = dy_xD * _of_rank(x_xD.ndim, scale_D)
    along_x1 = (dunit_xD * unit_xD).mean(-1, keepdims=True)
    dx_xD = (dunit_xD - dunit_xD.mean(-1, keepdims=True) - unit_xD * along_x1) * inverse_x1
    return dx_xD.astype(x_xD.dtype), dscale_D, dbias_D


layer_norm.defvjp(_norm_forward, _norm_backward)


class RMSNorm(nnx.Module):
    """Divide the last axis by the root of its mean square, then scale it.

    The inverse root is saved (checkpoint name `norm`), so the backward pass reads positions once.
    """

    def __init__(self, width: int, *, epsilon: float, dtype):
        self.scale = nnx.Param(jnp.ones(width), **axis_metadata(None))
        self.epsilon, self.dtype = epsilon, dtype

    def __call__(self, x_xD: jax.Array) -> jax.Array:
        """Return the normalised `x`, computed in float32, in the module's dtype."""
        return rms_norm(self.epsilon, self.dtype, x_xD, self.scale[...])


@custom_vjp(0, 1)
def rms_norm(epsilon: float, dtype, x_xD: jax.Array, scale_D: jax.Array):
    """Return x / sqrt(mean(x ** 2) + epsilon) * scale over the last axis."""
    return _rms_forward(epsilon, dtype, x_xD, scale_D)[0]


def _rms_forward(epsilon, dtype, x_xD, scale_D):
    wide_xD = x_xD.astype(jnp.float32)
    square_x1 = jnp.square(wide_xD).mean(-1, keepdims=True)
    inverse_x1 = checkpoint_name(jax.lax.rsqrt(square_x1 + epsilon), "norm")
    y_xD = wide_xD * inverse_x1 * _of_rank(x_xD.ndim, scale_D)
    return y_xD.astype(dtype), (x_xD, inverse_x1, scale_D)


def _rms_backward(epsilon, dtype, residuals, dy_xD):
    x_xD, inverse_x1, scale_D = residuals
    dy_xD, unit_xD = dy_xD.astype(jnp.float32), x_xD.astype(jnp.float32) * inverse_x1
    dscale_D = (dy_xD * unit_xD).sum(tuple(range(x_xD.ndim - 1)))
    dunit_xD = dy_xD * _of_rank(x_xD.ndim, scale_D)
    dx_xD = (dunit_xD - unit_xD * (dunit_xD * unit_xD).mean(-1, keepdims=True)) * inverse_x1
    return dx_xD.astype(x_xD.dtype), dscale_D


rms_norm.defvjp(_rms_forward, _rms_backward)


def rotate(x_BxHxLxK: jax.Array, positions_xL: jax.Array, frequencies_F: np.ndarray) -> jax.Array:
    """Rotate the pairs (i, i + K / 2) of each head by position * frequencies[i] (RoPE).

    Su et al., arXiv 2104.09864, with the pairs of transformers' Llama. `positions` are [L] or
    [B, L]; angles are float32, the result has the dtype of `x`.
    """
    angles_xLxF = positions_xL[..., None].astype(jnp.float32) * _of_rank(
        positions_xL.ndim + 1, jnp.asarray(frequencies_F)
    )
    angles_xx1xLxF = jnp.expand_dims(angles_xLxF, -3)
    cos, sin = (_of_rank(4, f(angles_xx1xLxF)) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x_BxHxLxK.astype(jnp.float32), 2, axis=-1)
    pairs = first * cos - second * sin, second * cos + first * sin
    return jnp.concatenate(pairs, axis=-1).astype(x_BxHxLxK.dtype)


@custom_vjp(0, 1)
def lookup(dtype, gathered: bool, table_VxD: jax.Array, tokens_BxL: jax.Array) -> jax.Array:
    """Return the tokens' rows of the embedding as `dtype`; its gradient is summed in float32.

    The forward pass all-gathers the table's width if `gathered`, as a tied head does anyway; else
    each device looks up its own columns and exchanges columns for rows. The backward pass exchanges
    rows for columns; no device holds the gradient of the whole table.
    """
    table_VxD = table_VxD.astype(dtype)
    if gathered:
        return constrain(table_VxD, "vocab", None)[tokens_BxL]
    x_BxLxD = table_VxD[constrain(tokens_BxL, "rows", None)]
    return constrain(constrain(x_BxLxD, "rows", None, "embed"), "batch", "length", None)


def _lookup_forward(dtype, gathered, table_VxD, tokens_BxL):
    return lookup(dtype, gathered, table_VxD, tokens_BxL), (tokens_BxL, table_VxD.shape[0])


def _lookup_backward(dtype, gathered, residuals, dx_BxLxD):
    tokens_BxL, V = residuals
    dx_BxLxD = constrain(dx_BxLxD, "rows", None, "embed")
    tokens_BxL = constrain(tokens_BxL, "rows", None)
    zeros_VxD = jnp.zeros((V, dx_BxLxD.shape[-1]), jnp.float32)
    dtable_VxD = zeros_VxD.at[tokens_BxL].add(dx_BxLxD.astype(jnp.float32))
    return constrain(dtable_VxD, "vocab", "embed"), None


lookup.defvjp(_lookup_forward, _lookup_backward)


@custom_vjp(0)
def cast_with_float32_gradient(dtype, x: jax.Array) -> jax.Array:
    """Cast float32 `x` to `dtype`; cast its gradient to float32 before it is summed."""
    return x.astype(dtype)


def _cast_backward(dtype, _, dy):
    # Without it, the sum that follows decides the layout of all layers' gradients: +2 % step time.
    return (jax.lax.optimization_barrier(dy).astype(jnp.float32),)


cast_with_float32_gradient.defvjp(lambda dtype, x: (x.astype(dtype), None), _cast_backward)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero each element with probability `rate` and scale the rest up; without a key return x."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def rematerialise(step: Callable, policy: str) -> Callable:
    """Wrap a scan's body so that the backward pass recomputes what `policy` does not save."""
    if policy == "none":
        return step
    checkpoint = functools.partial(jax.checkpoint, prevent_cse=False)  # a scan cannot merge them
    if policy == "full":
        return checkpoint(step)
    saved = jax.checkpoint_policies.save_only_these_names(*policy.split(","))
    return checkpoint(step, policy=saved)
