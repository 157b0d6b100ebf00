"""Reading a traced step, before it is compiled: its matrix products and what it calls."""

import math
from collections.abc import Iterator

import jax


def matmul_flops(jaxpr, *, times: int = 1) -> tuple[float, float]:
    """FLOPs of all matrix products of a traced step over all devices: (outside, inside) kernels.

    Loops count their turns; recomputation is counted, as it is done. A kernel counts every block
    of its grid, also those that it skips.
    """
    inside = outside = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, parameters = equation.primitive.name, equation.params
        turns = times
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left, result = equation.invars[0].aval, equation.outvars[0].aval
            depth = math.prod(left.shape[axis] for axis in contracted)
            outside += 2 * times * depth * math.prod(result.shape)
            continue
        if name == "scan":
            turns *= parameters["length"]
        elif name == "shard_map":
            turns *= parameters["mesh"].size
        elif name == "pallas_call":
            turns *= math.prod(parameters["grid_mapping"].grid)
        for inner in inner_jaxprs(equation):
            more = matmul_flops(inner, times=turns)
            if name == "pallas_call":
                inside += sum(more)
            else:
                outside, inside = outside + more[0], inside + more[1]
    return outside, inside


def inner_jaxprs(equation) -> Iterator:
    """The programs that an equation holds: a loop's body, branches, a called function."""
    values = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)
    return filter(_is_jaxpr, values)


def _is_jaxpr(value) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")
