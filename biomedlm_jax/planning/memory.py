"""Explain steps that do not fit into memory: the need, the largest arrays, and alternatives."""

import math
import re

from jax.sharding import Mesh

from biomedlm_jax import mesh as meshes
from biomedlm_jax.chips import GIB
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.planning.topology import sensible_meshes
from biomedlm_jax.planning.traced import saved_arrays
from biomedlm_jax.training.pretrain import PretrainSettings


def out_of_memory_message(
    message: str, state_bytes: dict[str, int], jaxpr, mesh: Mesh, config: ModelConfig
) -> str:
    """Return one line: the compiler's `message` shortened, the state's parts, the largest arrays.

    The arrays are those that the compiler lists, or if it lists none, those saved for the backward
    pass, which are most of a training step's temporaries.
    """
    state = ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in state_bytes.items())
    listed = re.findall(
        r"Size: ([\d.]+)([KMGT]?)\w*\s+(?:Operator: [^\n]*\n\s+)?Shape: (\w+\[[\d,]*\])", message
    )
    kind, arrays = "largest", [f"{shape} {size} {unit}iB" for size, unit, shape in listed[:4]]
    if not arrays:
        kind = "saved for the backward pass"
        saved = sorted(saved_parts(jaxpr, mesh, config), key=lambda part: -part[1])
        arrays = [f"{shape} {size / GIB:.2f} GiB" for shape, size in saved[:4]]
    arrays = [f"{kind}: {', '.join(arrays)}"] if arrays else []
    return "; ".join([f"out of memory: {_amount(message)}", state, *arrays])


def _amount(message: str) -> str:
    amount, unit = r"([\d.]+)", r"([KMGT]?)"
    if used := re.search(rf"Used {amount}{unit}\w* of {amount}{unit}\w* hbm", message):
        return "needs {} {}iB of {} {}iB".format(*used.groups())
    if used := re.search(rf"temporaries \({amount}{unit}.*HBM \({amount}{unit}", message):
        return "temporaries alone need {} {}iB of {} {}iB".format(*used.groups())
    return message if message.startswith("needs") else "does not fit"


def saved_parts(jaxpr, mesh: Mesh, config: ModelConfig) -> list[tuple[str, int]]:
    """Return the shape, as text, and the bytes of each saved array's part on one device.

    Saved arrays are [N, B, L, ...] or [N, B, heads, L, K]. Activations have no axis names: the
    heads are identified by their place, the MLP's hidden layer by its width.
    """
    parts = []
    for array in saved_arrays(jaxpr):
        shape, rows = list(array.shape), meshes.batch_shards(mesh)
        if shape[1] % rows:
            continue
        shape[1] //= rows
        if len(shape) == 5:
            shape[2] //= meshes.axis_shards(mesh, "heads")
        elif shape[-1] == config.mlp_width:
            shape[-1] //= meshes.axis_shards(mesh, "mlp")
        text = f"{array.dtype.name}[{','.join(map(str, shape))}]"
        parts.append((text, math.prod(shape) * array.dtype.itemsize))
    return parts


def alternatives(
    settings: PretrainSettings,
    model: LanguageModel,
    tried: list[dict[str, int]],
    *,
    step: str,
    slices: int = 1,
) -> list[list[tuple[dict[str, int], dict[str, int | str]]]]:
    """Return kinds of (mesh sizes, changed config values) to compile if no mesh in `tried` fits.

    The kinds are more shards of the state and, for a training step, fewer rows at a time, full
    rematerialisation, and last both. One fitting alternative of each kind is enough.
    """
    accumulation = settings.training.accumulation
    batch = settings.training.batch_size // accumulation
    widest = max(tried, key=lambda sizes: (sizes["fsdp"], -sizes["tensor"]))
    devices, tensor = math.prod(widest.values()), (widest["tensor"],)
    sensible = sensible_meshes(devices, model, batch, tensor=tensor, slices=slices)
    kinds = [[(sizes, {}) for sizes in sensible if sizes["fsdp"] > widest["fsdp"]]]
    if step != "train":
        return kinds
    rows = batch // (widest["data"] * widest["fsdp"])  # of one device at a time
    factors = [2**i for i in range(1, rows.bit_length()) if rows % 2**i == 0]
    fewer = [{"training.accumulation": accumulation * n} for n in factors]
    kinds.append([(widest, change) for change in fewer])
    if model.config.remat != "full":
        full = {"model.remat": "full"}
        kinds += [[(widest, full)], [(widest, full | change) for change in fewer]]
    return kinds
