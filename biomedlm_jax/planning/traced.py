"""Read a traced step: matmul FLOPs, and the arrays saved for the backward pass."""

import math
from collections.abc import Iterator

import jax


def matmul_flops(jaxpr, *, times: int = 1) -> tuple[float, float]:
    """Return the FLOPs of all matmuls over all devices: outside kernels, inside kernels.

    A loop's body counts with its trip count, recomputation counts, and a kernel counts every block
    of its grid, those that it skips included.
    """
    outside = inside = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left, result = equation.invars[0].aval, equation.outvars[0].aval
            depth = math.prod(left.shape[axis] for axis in contracted)
            outside += 2 * times * depth * math.prod(result.shape)
            continue
        trips = 1
        if name == "scan":
            trips = parameters["length"]
        elif name == "shard_map":
            trips = parameters["mesh"].size
        elif name == "pallas_call":
            trips = math.prod(parameters["grid_mapping"].grid)
        for inner in inner_jaxprs(equation):
            more, of_kernels = matmul_flops(inner, times=times * trips)
            outside += 0 if name == "pallas_call" else more
            inside += of_kernels + (more if name == "pallas_call" else 0)
    return outside, inside


def saved_arrays(jaxpr) -> list:
    """Return the arrays [N, B, ...] that the scan over layers saves for the backward pass.

    It is the first scan, from the outside in, that stacks arrays of several axes.
    """
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "scan":
            # A stacked output has one axis more than the body's; a carry has the same shape. (The
            # parameter that counts the carries differs between jax 0.10 and 0.12.)
            bodies = equation.params["jaxpr"].out_avals
            outputs = [variable.aval for variable in equation.outvars]
            stacked = [a for a, b in zip(outputs, bodies, strict=True) if a.ndim > max(2, b.ndim)]
            if stacked:
                return stacked
        for inner in inner_jaxprs(equation):
            if saved := saved_arrays(inner):
                return saved
    return []


def inner_jaxprs(equation) -> Iterator:
    """Yield the jaxprs in an equation's parameters: a loop's body, branches, called functions."""

    def is_jaxpr(value) -> bool:
        return hasattr(getattr(value, "jaxpr", value), "eqns")

    return filter(is_jaxpr, jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr))
