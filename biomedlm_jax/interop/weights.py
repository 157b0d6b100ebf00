"""The weights under their two names: leaves of GPT and tensors of Hugging Face's GPT-2.

Hugging Face keeps linear layers as `Conv1D` [in, out], which is a Flax kernel: conversion renames,
splits and joins, and moves no number. Tensors pass one at a time, so a conversion needs little
memory beside the model itself.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from biomedlm_jax.mesh import one_device
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.training.state import abstract_model

PREFIX = "transformer."  # of GPT2LMHeadModel's tensors; GPT2Model's have none
# Hugging Face's name -> the leaves that are its parts along the last axis. `*` is a layer, and
# there the leaves have a leading axis of layers. Only wte has rows that Hugging Face never sees.
TABLE = {
    "wte.weight": ("wte",),
    "wpe.weight": ("wpe",),
    "h.*.ln_1.weight": ("h.ln_1.scale",),
    "h.*.ln_1.bias": ("h.ln_1.bias",),
    "h.*.attn.c_attn.weight": (
        "h.attn.c_attn.query.kernel",
        "h.attn.c_attn.key.kernel",
        "h.attn.c_attn.value.kernel",
    ),
    "h.*.attn.c_attn.bias": (
        "h.attn.c_attn.query.bias",
        "h.attn.c_attn.key.bias",
        "h.attn.c_attn.value.bias",
    ),
    "h.*.attn.c_proj.weight": ("h.attn.c_proj.kernel",),
    "h.*.attn.c_proj.bias": ("h.attn.c_proj.bias",),
    "h.*.ln_2.weight": ("h.ln_2.scale",),
    "h.*.ln_2.bias": ("h.ln_2.bias",),
    "h.*.mlp.c_fc.weight": ("h.mlp.c_fc.kernel",),
    "h.*.mlp.c_fc.bias": ("h.mlp.c_fc.bias",),
    "h.*.mlp.c_proj.weight": ("h.mlp.c_proj.kernel",),
    "h.*.mlp.c_proj.bias": ("h.mlp.c_proj.bias",),
    "ln_f.weight": ("ln_f.scale",),
    "ln_f.bias": ("ln_f.bias",),
}


class Place(NamedTuple):
    """Where a Hugging Face tensor lives in GPT: in these leaves, at this layer of each."""

    leaves: tuple[str, ...]
    layer: int | None


def places(config: GPTConfig) -> dict[str, Place]:
    """Every Hugging Face tensor of such a model, without prefix, in the order of its forward."""
    stacked = [pattern for pattern in TABLE if "*" in pattern]
    alone = {pattern: Place(TABLE[pattern], None) for pattern in TABLE if "*" not in pattern}
    blocks = {
        pattern.replace("*", str(layer)): Place(TABLE[pattern], layer)
        for layer in range(config.layers)
        for pattern in stacked
    }
    after = {name: alone.pop(name) for name in ("ln_f.weight", "ln_f.bias")}
    return {**alone, **blocks, **after}


@functools.lru_cache
def tensor_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every Hugging Face tensor of such a model, vocabulary padding left out."""
    leaves = named_leaves(abstract_model(config, one_device()))
    shapes = {}
    for name, (parts, layer) in places(config).items():
        shape = leaves[parts[0]].shape[0 if layer is None else 1 :]
        shape = (config.vocab_size, *shape[1:]) if name == "wte.weight" else shape
        shapes[name] = (*shape[:-1], shape[-1] * len(parts))
    return shapes


def check_tensors(found: Mapping[str, tuple[int, ...]], config: GPTConfig, *, where: str) -> None:
    """Raise ValueError unless `found` has exactly the tensors of such a model, in their shapes."""
    wanted = tensor_shapes(config)
    _refuse(
        [f"{name} {list(found[name])}" for name in found if name not in wanted],
        f"{where} has tensors that this model does not: got",
        "config.json describes another model, or the file is not a GPT-2's",
    )
    _refuse(
        [f"{name} {list(wanted[name])}" for name in wanted if name not in found],
        f"{where} lacks tensors of this model: expected",
        "the file is incomplete, or config.json describes another model",
    )
    _refuse(
        [
            f"{name}: got {list(found[name])}, expected {list(wanted[name])}"
            for name in wanted
            if tuple(found[name]) != wanted[name]
        ],
        f"{where} has tensors of another shape:",
        "config.json describes another model",
    )


def read_model(
    config: GPTConfig, read: Callable[[str], np.ndarray], *, mesh: Mesh | None = None
) -> GPT:
    """Build a GPT from `read(name)`, Hugging Face's float32 tensors, laid out on `mesh`.

    The tensors must have passed `check_tensors`. Without a mesh the model goes onto one device.
    """
    abstract = abstract_model(config, one_device() if mesh is None else mesh)
    specs, arrays = named_leaves(abstract), {}
    groups: dict[tuple[str, ...], list[tuple[str, int | None]]] = {}
    for name, (leaves, layer) in places(config).items():
        groups.setdefault(leaves, []).append((name, layer))
    # On its way to a device a leaf exists twice, so the largest go while the others do not exist.
    for leaves in sorted(groups, key=lambda leaves: -specs[leaves[0]].size):
        stacks = _stack(groups[leaves], read, [specs[leaf].shape for leaf in leaves])
        for leaf in leaves:
            arrays[leaf] = _place(stacks.pop(0), specs[leaf].sharding)
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_name(path)], abstract)


def tensor_reader(model: GPT, *, fold: bool = False) -> Callable[[str], np.ndarray]:
    """A function from a Hugging Face name to that tensor of `model`: float32, on the host.

    With `fold` the query part of layer l's c_attn is divided by l + 1, as a model without
    `scale_attn_by_inverse_layer_idx` needs it to compute the same function. Raises ValueError for
    a model spread over several processes.
    """
    leaves, where = named_leaves(model), places(model.config)
    if not all(leaf.is_fully_addressable for leaf in leaves.values()):
        raise ValueError(
            "the model is spread over several processes; export its run directory in one"
        )

    def part(leaf: str, layer: int | None) -> np.ndarray:
        array = leaves[leaf]
        if layer is not None:
            # Not array[layer] of the host's copy: that of a whole stack would stay in memory.
            array = jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
        elif leaf == "wte":
            array = array[: model.config.vocab_size]
        values = np.asarray(array, np.float32)
        return values / np.float32(layer + 1) if fold and ".query." in leaf else values

    def read(name: str) -> np.ndarray:
        names, layer = where[name]
        return np.concatenate([part(leaf, layer) for leaf in names], axis=-1)

    return read


def named_leaves(model: GPT) -> dict[str, jax.Array]:
    """The leaves of a model, or of its shapes, by dotted name."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}


def _name(path: tuple) -> str:
    return ".".join(key.name for key in path[:-1])  # the last key is the Param's own


def _stack(tensors, read, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """The host's copies of the leaves that these tensors, with their layers, are parts of."""
    stacks = [_aligned_zeros(shape) for shape in shapes]
    for name, layer in tensors:
        parts = np.split(read(name), len(stacks), axis=-1)
        for stack, part in zip(stacks, parts, strict=True):
            target = stack if layer is None else stack[layer]
            target[: len(part)] = part  # fewer rows than wte has: the padding stays zero
    return stacks


def _aligned_zeros(shape: tuple[int, ...]) -> np.ndarray:
    # On a CPU jax takes an array that begins at a multiple of 64 bytes as it is, and copies others.
    size = 4 * math.prod(shape)
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)


def _place(stack: np.ndarray, sharding) -> jax.Array:
    array = jax.make_array_from_callback(stack.shape, sharding, lambda index: stack[index])
    return jax.block_until_ready(array)  # so that the host's copy can go


def _refuse(bad: Iterable[str], problem: str, advice: str) -> None:
    bad = list(bad)
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(f"{problem} {', '.join(bad[:3])}{more}; {advice}")
