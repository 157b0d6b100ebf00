"""Why a step does not fit: how much it needs, and which arrays take it."""

import math
import re

from jax.sharding import Mesh

from biomedlm_jax import mesh as meshes
from biomedlm_jax.chips import GIB
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.planning.traced import inner_jaxprs


def shortage(said: str, state_bytes: dict[str, int], jaxpr, mesh: Mesh, config: GPTConfig) -> str:
    """One line: what the compiler `said` of its need, the state's parts, the largest arrays.

    The arrays are the compiler's, or where it lists none those that a layer saves for the backward
    pass, which are most of a training step's temporaries.
    """
    state = ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in state_bytes.items())
    listed = re.findall(
        r"Size: ([\d.]+)([KMGT]?)\w*\s+(?:Operator: [^\n]*\n\s+)?Shape: (\w+\[[\d,]*\])", said
    )
    arrays = [f"{shape} {size} {unit}iB" for size, unit, shape in listed[:4]]
    kind = "largest"
    if not arrays:
        kind = "saved for the backward pass"
        saved = sorted(saved_arrays(jaxpr, mesh, config), key=lambda found: -found[1])
        arrays = [f"{shape} {size / GIB:.2f} GiB" for shape, size in saved[:4]]
    return f"out of memory: {_amount(said)}; {state}" + (
        f"; {kind}: {', '.join(arrays)}" if arrays else ""
    )


def _amount(said: str) -> str:
    if used := re.search(r"Used ([\d.]+)([KMGT]?)\w* of ([\d.]+)([KMGT]?)\w* hbm", said):
        return f"needs {used[1]} {used[2]}iB of {used[3]} {used[4]}iB"
    temporaries = re.search(
        r"temporaries \(([\d.]+)([KMGT]).*available HBM \(([\d.]+)([KMGT])", said
    )
    if temporaries:
        need, unit, room, units = temporaries.groups()
        return f"temporaries alone need {need} {unit}iB of {room} {units}iB"
    return said if said.startswith("needs") else "does not fit"


def saved_arrays(jaxpr, mesh: Mesh, config: GPTConfig) -> list[tuple[str, int]]:
    """The arrays [N, B, ...] that the layers' scan stacks: shape and bytes of a device's part."""
    scan = _first_scan(jaxpr)
    if scan is None:
        return []
    rows, parts, found = meshes.batch_shards(mesh), meshes.axis_shards(mesh, "heads"), []
    for variable in scan.outvars[scan.params["num_carry"] :]:
        shape, dtype = variable.aval.shape, variable.aval.dtype
        if len(shape) > 2 and shape[1] % rows == 0:
            split = {2: config.heads, len(shape) - 1: config.mlp_width}
            shape = [
                size // (rows if i == 1 else parts if size == split.get(i) else 1)
                for i, size in enumerate(shape)
            ]
            text = f"{dtype.name}[{','.join(map(str, shape))}]"
            found.append((text, math.prod(shape) * dtype.itemsize))
    return found


def _first_scan(jaxpr):
    """The first scan, in order and from the outside in, that stacks arrays of two axes or more."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "scan":
            stacked = equation.outvars[equation.params["num_carry"] :]
            if any(len(variable.aval.shape) > 2 for variable in stacked):
                return equation
        for inner in inner_jaxprs(equation):
            found = _first_scan(inner)
            if found is not None:
                return found
    return None
