"""TPU slices by name, as devices of the compiler in `libtpu`, and their sensible meshes."""

import contextlib
import functools
import importlib.util
import itertools
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AbstractMesh

from biomedlm_jax import mesh as meshes
from biomedlm_jax.errors import InputError
from biomedlm_jax.model.language_model import LanguageModel

# Slices by generation, in libtpu's names. A v4 or v5p chip has two cores that act as one device; a
# TPU7x chip is two devices.
_SQUARE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
TOPOLOGIES = {"v4": _CUBE, "v5e": _SQUARE, "v5p": _CUBE, "v6e": _SQUARE, "TPU7x": _CUBE}
# libtpu assumes hosts of 2 x 2 (x 1) chips; for these slices it needs the host's shape.
HOST_BOUNDS = {"1x1": (1, 1, 1), "2x4": (2, 4, 1)}


@functools.cache
def topology_devices(name: str) -> list:
    """Return the devices of a TPU slice such as `v5e:16x16` to compile for; local: jax's devices.

    `2xv5e:16x16` is two slices, connected by the data-centre network.
    Raises InputError for an unknown slice, without `libtpu`, and if another process locks it.
    """
    if name == "local":
        return jax.devices()
    number, generation, shape = re.findall(r"(?s)^(?:([1-9]\d*)x)?([^:]*):?(.*)", name)[0]
    shapes = TOPOLOGIES.get(generation, ())
    if shape not in shapes:
        known = f"local, or {', '.join(TOPOLOGIES)}: and a shape, such as v5e:16x16 or 2xv5e:16x16"
        known = f"{generation}: with one of {', '.join(shapes)}" if shapes else known
        raise InputError(f"got topology {name!r}; expected {known}")
    if importlib.util.find_spec("libtpu") is None:
        fix = 'install the extra `tpu` (pip install "biomedlm-jax[tpu]")'
        raise InputError(f"planning for {name} needs the TPU compiler, libtpu; fix: {fix}")
    # Without a TPU, libtpu starts only if these describe one.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # libtpu locks the chips for one process, but compiling uses none.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    options: dict[str, Any] = {"chip_config_name": "megacore"} if generation == "v4" else {}
    options |= {"chips_per_host_bounds": HOST_BOUNDS[shape]} if shape in HOST_BOUNDS else {}
    options |= {"num_slices": int(number)} if number else {}
    one = f"{generation}:{shape}"
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=one, **options).devices
    except Exception as error:  # libtpu raises several kinds
        message = " ".join(str(error).split())
        if "libtpu" in message and ("lock" in message or "already in use" in message):
            fix = "wait for its end, or set ALLOW_MULTIPLE_LIBTPU_LOAD=true for both"
            raise InputError(f"another process locks libtpu; fix: {fix}") from error
        raise InputError(f"libtpu cannot make the topology {name}: {message[:300]}") from error


def sensible_meshes(
    devices: int,
    model: LanguageModel,
    batch_size: int,
    *,
    least_shards: float = 1,
    tensor: tuple[int, ...] = (1, 2, 4),
    slices: int = 1,
) -> list[dict[str, int]]:
    """Return the meshes worth compiling: power-of-two splits that an (abstract) model allows.

    They split the state into `least_shards` parts or more; if none does, into as many as possible.
    A mesh whose shards of the width are not a multiple of 8 is omitted: they do not fill a TPU's
    tiles. So is one whose fsdp and tensor axes do not fit into one of the `slices`.
    """
    sensible = []
    for parts, exponent in itertools.product(tensor, range(devices.bit_length())):
        sizes = {"data": devices // (parts << exponent), "fsdp": 1 << exponent, "tensor": parts}
        whole = math.prod(sizes.values()) == devices and sizes["data"] % slices == 0
        if whole and model.config.width % (8 << exponent) == 0:
            mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
            with contextlib.suppress(ValueError):
                meshes.check_fits(mesh, batch_size=batch_size, model=model)
                sensible.append(sizes)
    least = min(least_shards, max((devices // one["data"] for one in sensible), default=1))
    return [one for one in sensible if devices // one["data"] >= least]
