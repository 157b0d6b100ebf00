"""Products with kernels, and the dtype in which a kernel's gradient leaves its product.

Axes: those of `gpt.py`.
"""

import functools

import jax
import jax.numpy as jnp

REDUCE_DTYPES = ("float32", "compute")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(equation: str, reduce_dtype: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`einsum(equation, x, kernel)` in the dtype of `x`, such as "BLD,DF->BLF".

    The compiler sums a kernel's gradient over the devices in the dtype that its product has.
    With `reduce_dtype` float32 that is the products' own accumulator; with compute it is rounded
    to the dtype of `x` first, which halves what devices exchange.
    """
    return jnp.einsum(equation, x, kernel.astype(x.dtype))


def _forward(equation, reduce_dtype, x, kernel):
    return product(equation, reduce_dtype, x, kernel), (x, kernel)


def _backward(equation, reduce_dtype, residuals, dy):
    x, kernel = residuals
    factors, result = equation.split("->")
    left, right = factors.split(",")
    dx = jnp.einsum(f"{result},{right}->{left}", dy, kernel.astype(x.dtype))
    dtype = jnp.float32 if reduce_dtype == "float32" else x.dtype
    dkernel = jnp.einsum(f"{left},{result}->{right}", x, dy, preferred_element_type=dtype)
    return dx, dkernel.astype(kernel.dtype)


product.defvjp(_forward, _backward)
