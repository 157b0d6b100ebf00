"""Devices that are not here: TPU slices by name, through the compiler in `libtpu`."""

import functools
import importlib.util
import os

import jax
from jax.experimental import topologies

from biomedlm_jax.model.config import GPTConfig

# Slices by the maker's name of the generation. v4 and v5p chips have two cores that act as one
# device; a TPU7x chip is two devices.
TOPOLOGIES = {
    "v4": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "TPU7x": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}
# Slices smaller than a host's 2 x 2 (x 1) chips must be told of.
SMALL = {"1x1": (1, 1, 1), "2x4": (2, 4, 1)}


def check_topology(name: str) -> tuple[str, str]:
    """Split `v5e:16x16` into generation and shape; raise ValueError for one that is not known."""
    generation, _, shape = name.partition(":")
    if generation not in TOPOLOGIES:
        raise ValueError(
            f"unknown topology {name!r}; it is local or GENERATION:SHAPE with a generation of "
            f"{', '.join(TOPOLOGIES)}, such as v5e:16x16"
        )
    if shape not in TOPOLOGIES[generation]:
        raise ValueError(
            f"unknown topology {name!r}; the shapes of {generation} are "
            f"{', '.join(TOPOLOGIES[generation])}"
        )
    return generation, shape


@functools.cache
def topology_devices(name: str) -> list:
    """The devices of a TPU slice such as `v5e:16x16`, for compiling only; `local`: those here.

    Raises ValueError for a slice that is not known, ModuleNotFoundError as ValueError without
    `libtpu`, and ValueError if another process holds it.
    """
    if name == "local":
        return jax.devices()
    generation, shape = check_topology(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"planning for {name} needs the TPU compiler; install the extra `tpu` "
            '(pip install "biomedlm-jax[tpu]"), which brings libtpu'
        )
    # libtpu asks the machine what it is; these answers let it start where there is no TPU.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # It also takes a lock as if there were chips to guard. Compiling shares nothing.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    options = {}
    if shape in SMALL:
        options["chips_per_host_bounds"] = SMALL[shape]
    if generation == "v4":
        options["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:
        said = " ".join(str(error).split())
        if "libtpu" in said and ("lock" in said or "already in use" in said):
            raise ValueError(
                "another process holds libtpu; wait until it ends, or set "
                "ALLOW_MULTIPLE_LIBTPU_LOAD=true for both"
            ) from error
        raise ValueError(f"libtpu does not make the topology {name}: {said[:300]}") from error


def sensible_meshes(
    devices: int,
    config: GPTConfig,
    *,
    batch_size: int,
    least_shards: int = 1,
    tensor: tuple[int, ...] = (1, 2, 4),
) -> list[dict[str, int]]:
    """Meshes worth compiling: every power-of-two split that the model and the batch allow.

    `least_shards` leaves out meshes that keep more than that part of the state on each device.
    A cut of the width that is no multiple of 8 would not fill a TPU's tiles and is left out, too.
    """
    split = (config.heads, config.mlp_width, config.padded_vocab_size)  # over `tensor`
    found = []
    for parts in tensor:
        for fsdp in (2**i for i in range(devices.bit_length())):
            data = devices // (fsdp * parts)
            fits = (
                data * fsdp * parts == devices
                and batch_size % (data * fsdp) == 0
                and not any(size % parts for size in split)
                and config.width % (8 * fsdp) == 0
                and fsdp * parts >= least_shards
            )
            if fits:
                found.append({"data": data, "fsdp": fsdp, "tensor": parts})
    return found
