"""What to try when a step does not fit into the devices' memory."""

import math

from ml_collections import ConfigDict

from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.planning.topology import sensible_meshes

Alternative = tuple[dict[str, int], dict[str, int | str]]  # a mesh, and changed config values


def alternatives(
    config: ConfigDict, model_config: GPTConfig, tried: list[dict[str, int]], *, step: str
) -> list[list[Alternative]]:
    """Kinds of alternatives to the meshes in `tried`, none of which fits.

    They are more shards of the state and, of a training step, fewer rows at a time or less that is
    saved for the backward pass, and last both. Of each kind the first that fits is enough.
    """
    now = config.training.accumulation
    batch = config.training.batch_size // now
    most = max(tried, key=lambda sizes: (sizes["fsdp"], -sizes["tensor"]))
    devices, tensor = math.prod(most.values()), (most["tensor"],)
    found = sensible_meshes(devices, model_config, batch_size=batch, tensor=tensor)
    kinds = [[(sizes, {}) for sizes in found if sizes["fsdp"] > most["fsdp"]]]
    if step != "train":
        return kinds
    rows = batch // (most["data"] * most["fsdp"])  # of a device at a time
    parts = [2**i for i in range(1, rows.bit_length()) if rows % 2**i == 0]
    fewer = [{"training.accumulation": now * n} for n in parts]
    full = {"model.remat": "full"}
    kinds.append([(most, change) for change in fewer])
    if config.model.remat != "full":
        kinds.append([(most, full)])
        kinds.append([(most, full | change) for change in fewer])
    return kinds
