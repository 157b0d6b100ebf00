"""Devices: the mesh, the one table from logical to mesh axes, shardings."""

import functools
import math
from collections import Counter
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")

# Every array axis of the library has one of these names; nothing else knows the mesh's axes.
RULES = {
    "batch": ("data", "fsdp"),
    "rows": "data",  # the batch where `fsdp` cuts the width
    "embed": "fsdp",  # the width of a weight: gathered just before use
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "layers": None,
    "length": None,
}
DESCRIPTIONS = {"embed": "width", "mlp": "MLP width", "vocab": "padded vocabulary"}


def make_mesh(*, data: int = 1, fsdp: int = -1, tensor: int = 1, devices=None) -> Mesh:
    """Arrange `devices` (all by default) as a mesh of data x fsdp x tensor; one size may be -1.

    The mesh lies along the devices' links; they need not be here (`planning.topology`). `data`
    replicates the parameters, `fsdp` shards them and the batch, `tensor` splits heads,
    MLP and vocabulary. On several TPU slices `data` is the only axis that leaves a slice, with
    neighbouring indices in the same slice. Raises InputError if the sizes do not make exactly the
    devices there are, or if `data` is not a multiple of the number of slices.
    """
    if devices is None:
        # Threads that XLA has started keep their way to allocate: a step was a fifth slower.
        keep_freed_memory()
        devices = jax.devices()
    count, sizes = len(devices), {"data": data, "fsdp": fsdp, "tensor": tensor}
    requested = ", ".join(f"{name}={size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise InputError(
            f"mesh {requested}: sizes are at least 1, and at most one is -1 (the rest)"
        )
    if free:
        sizes[free[0]] = count // math.prod(size for size in sizes.values() if size != -1)
    if math.prod(sizes.values()) != count:
        raise InputError(
            f"mesh {requested} does not make {count}, the number of devices; choose sizes whose "
            f"product is {count}, or set one of them to -1"
        )
    slices = Counter(map(slice_index, devices))
    if sizes["data"] % len(slices):
        made = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise InputError(
            f"got mesh {made} on {len(slices)} TPU slices; expected data of a multiple of "
            f"{len(slices)}, the only axis between slices; set data=-1 and an fsdp x tensor that "
            f"divides {count // len(slices)}"
        )
    if len(set(slices.values())) > 1:
        numbers = ", ".join(map(str, slices.values()))
        raise InputError(f"got TPU slices of {numbers} devices; use slices of one size")
    # An axis of 32 on a torus of 16 x 16 takes a part of the second ring; `jax.make_mesh` allows
    # that on v5e only.
    make = mesh_utils.create_device_mesh
    if len(slices) > 1:
        across = (len(slices), 1, 1)
        make = functools.partial(mesh_utils.create_hybrid_device_mesh, dcn_mesh_shape=across)
    shape = (sizes["data"] // len(slices), sizes["fsdp"], sizes["tensor"])
    array = make(shape, devices=devices, allow_split_physical_axes=True)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def slice_index(device) -> int:
    """Return which of several TPU slices a device is in; 0 on other platforms.

    GPU devices have the attribute too, one value for each host or NVLink domain, but any mesh axis
    may cross those.
    """
    return getattr(device, "slice_index", None) or 0 if device.platform == "tpu" else 0


def spec(*axes: str | None) -> PartitionSpec:
    """The PartitionSpec of an array whose axes have these logical names (None: replicated)."""
    return PartitionSpec(*(None if axis is None else RULES[axis] for axis in axes))


def sharding(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """The NamedSharding of an array whose axes have these logical names."""
    return NamedSharding(mesh, spec(*axes))


def tree_shardings(abstract, mesh: Mesh):
    """Shardings for a tree of abstract nnx variables and arrays, from their logical axes.

    Leaves without axis names (counters, keys) are replicated.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def of(leaf):
        if isinstance(leaf, nnx.Variable):
            names = leaf.get_metadata().get("out_sharding")
            return leaf.replace(sharding(mesh, *names) if names else replicated)
        return replicated

    return jax.tree.map(of, abstract, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def abstract_sharded(make: Callable, mesh: Mesh, *arguments):
    """Return the result of `make(*arguments)` as shapes, dtypes and shardings on `mesh`."""
    return sharded(jax.eval_shape(make, *arguments), mesh)


def sharded(abstract, mesh: Mesh):
    """Return a tree of shapes and dtypes with its shardings on `mesh`."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract,
        tree_shardings(abstract, mesh),
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin an activation's sharding inside jit; without a mesh of several devices, do nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*axes))


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Put an array that every process has whole onto the devices, each its own part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def axis_shards(mesh: Mesh | AbstractMesh, axis: str) -> int:
    """How many parts an array axis of this logical name is cut into; 1 on an empty mesh."""
    names = RULES[axis]
    names = (names,) if isinstance(names, str) else names or ()
    return math.prod(mesh.shape.get(name, 1) for name in names)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """How many parts the batch axis is cut into."""
    return axis_shards(mesh, "batch")


def platform() -> str:
    """cpu, gpu or tpu: of the current mesh's devices, which need not be here; else jax's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def check_fits(
    mesh: Mesh | AbstractMesh, *, batch_size: int | None = None, accumulation: int = 1, model=None
) -> None:
    """Raise InputError unless a batch, and an (abstract) model's axes, divide over the mesh."""
    shards = batch_shards(mesh) * accumulation
    if batch_size is not None and batch_size % shards:
        raise InputError(
            f"got training.batch_size={batch_size}; expected a multiple of data x fsdp x "
            f"accumulation = {mesh.shape['data']} x {mesh.shape['fsdp']} x {accumulation} "
            f"= {shards}"
        )
    if model is None:
        return
    sizes = {"heads": {model.config.key_value_heads}}
    for variable in jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
        names = variable.get_metadata().get("out_sharding") or ()
        for name, size in zip(names, variable.shape, strict=True):
            if name is not None and name != "heads":  # of a kernel: heads * head_dim
                sizes.setdefault(name, set()).add(size)
    for name, of_axis in sizes.items():
        for size in sorted(of_axis):
            if size % axis_shards(mesh, name):
                divisors = [n for n in range(1, size + 1) if size % n == 0]
                raise InputError(
                    f"got mesh.{RULES[name]}={axis_shards(mesh, name)}, which does not divide the "
                    f"model's {DESCRIPTIONS.get(name, name)} of {size}; choose one of "
                    f"{divisors[:24]}"
                )


def one_device() -> Mesh:
    """The mesh of this process's first device."""
    return make_mesh(data=1, fsdp=1, tensor=1, devices=jax.local_devices()[:1])
