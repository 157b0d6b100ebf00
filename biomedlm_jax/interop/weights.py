"""The weights under their two names: leaves of a model and tensors of Hugging Face.

Conversion renames, splits, joins and transposes by the family's table, one tensor at a time.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from biomedlm_jax.errors import InputError
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import family
from biomedlm_jax.model.heads import Scorer
from biomedlm_jax.model.language_model import (
    Tensor,
    axis_names,
    leaf_name,
    named_leaves,
    named_parameters,
)
from biomedlm_jax.training.narrowing import Narrowing

# The score layer of a head, as torch's Linear stores it.
SCORE = {
    "score.weight": Tensor(("score.kernel",), transposed=True),
    "score.bias": Tensor(("score.bias",)),
}


class Place(NamedTuple):
    """Where a Hugging Face tensor is in a model: these leaves, at this layer of each."""

    leaves: tuple[str, ...]
    layer: int | None
    transposed: bool


def hf_tensor_map(model: Any) -> dict[str, Place]:
    """Return every Hugging Face tensor of a model or of its shapes, without prefix, in order.

    `model` is a LanguageModel, or a Scorer, whose tensors `score.*` come last.
    """
    result: dict[str, Place] = {}
    if isinstance(model, Scorer):
        for name, (parts, layer, transposed) in hf_tensor_map(model.trunk).items():
            result[name] = Place(tuple(f"trunk.{leaf}" for leaf in parts), layer, transposed)
        leaves = named_leaves(model)
        kept = {name: tensor for name, tensor in SCORE.items() if tensor.leaves[0] in leaves}
        return result | {n: Place(t.leaves, None, t.transposed) for n, t in kept.items()}
    leaves, table = named_leaves(model), family(model.config.model_type).tensors
    table = {name: tensor for name, tensor in table.items() if tensor.leaves[0] in leaves}
    layered = [name for name in table if "*" in name]
    for name, tensor in table.items():
        if name == layered[0]:
            for layer in range(model.config.layers):
                for pattern in layered:
                    parts, transposed = table[pattern]
                    result[pattern.replace("*", str(layer))] = Place(parts, layer, transposed)
        elif name not in layered:
            result[name] = Place(tensor.leaves, None, tensor.transposed)
    return result


def file_name(name: str, config: ModelConfig) -> str:
    """Return the name of a tensor in a file, which has the family's prefix."""
    of_type = family(config.model_type)
    return name if name in (*SCORE, *of_type.unprefixed) else of_type.prefix + name


def tensor_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of every Hugging Face tensor of a model, vocabulary padding excluded."""
    leaves, shapes = _shapes(model), {}
    for name, (parts, layer, transposed) in hf_tensor_map(model).items():
        *before, last = leaves[parts[0]][0 if layer is None else 1 :]
        shape = (*before, last * len(parts))
        shapes[name] = shape[::-1] if transposed else shape
    return shapes


def check_tensors(shapes: Mapping[str, tuple[int, ...]], model: Any, *, where: str) -> None:
    """Raise InputError unless `shapes` has exactly the tensors of `model`, in their shapes."""
    wanted = tensor_shapes(model)
    got = {name: f"{name} {list(shape)}" for name, shape in shapes.items()}
    expected = {name: f"{name} {list(shape)}" for name, shape in wanted.items()}
    problems = {
        "has tensors that this model does not: got": [got[n] for n in got if n not in wanted],
        "lacks tensors of this model: expected": [expected[n] for n in wanted if n not in got],
        "has tensors of another shape: got": [
            f"{got[n]}, expected {list(wanted[n])}"
            for n in wanted
            if n in got and got[n] != expected[n]
        ],
    }
    for problem, tensors in problems.items():
        if tensors:
            more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
            cause = f"config.json describes another {model.config.model_type} model"
            tensors = f"{', '.join(tensors[:3])}{more}"
            raise InputError(f"{where} {problem} {tensors}; the file is incomplete, or {cause}")


def vocabulary_tensors(model: Any) -> set[str]:
    """Return the names of the tensors with a row for each token."""
    parameters = named_parameters(model)
    where = hf_tensor_map(model)
    return {n for n in where if "vocab" in axis_names(parameters[where[n].leaves[0]])}


def with_more_rows(
    model: Any, count: int, read: Callable[[str], np.ndarray]
) -> Callable[[str], np.ndarray]:
    """Return a `read` with `count` more rows in each vocabulary tensor of `model`: their mean."""
    names = vocabulary_tensors(model)

    def grown(name: str) -> np.ndarray:
        tensor = read(name)
        if name not in names:
            return tensor
        mean = tensor.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
        return np.concatenate([tensor, np.repeat(mean, count, axis=0)])

    return grown


def read_model(
    abstract: Any, read: Callable[[str], np.ndarray], *, narrowing: Narrowing | None = None
) -> Any:
    """Build the model `abstract` from `read(name)`, whose tensors passed `check_tensors`.

    `narrowing` casts what has another dtype than float32 there.
    """
    specs, arrays = named_leaves(abstract), {}
    groups: dict[tuple[str, ...], list[tuple[str, Place]]] = {}
    for name, place in hf_tensor_map(abstract).items():
        groups.setdefault(place.leaves, []).append((name, place))
    # On its way to a device a leaf exists twice, so the largest go while the others do not exist.
    for leaves in sorted(groups, key=lambda leaves: -specs[leaves[0]].size):
        stacks = _stack(groups[leaves], read, [specs[leaf] for leaf in leaves], narrowing)
        for leaf in leaves:
            arrays[leaf] = _on_devices(stacks.pop(0), specs[leaf].sharding)
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[leaf_name(path)], abstract)


def tensor_reader(model: Any) -> Callable[[str], np.ndarray]:
    """Return a function from a Hugging Face name to that tensor of `model`: float32, on the host.

    Raises InputError for a model spread over several processes.
    """
    leaves, shapes, where = named_leaves(model), _shapes(model), hf_tensor_map(model)
    if not all(leaf.is_fully_addressable for leaf in leaves.values()):
        raise InputError("the model is spread over processes; export its run directory in one")

    def part(leaf: str, layer: int | None) -> np.ndarray:
        array = leaves[leaf]
        if layer is not None:
            # Not array[layer] of the host's copy: that of a whole stack would stay in memory.
            array = jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
        elif array.shape != shapes[leaf]:  # vocabulary padding
            array = array[tuple(map(slice, shapes[leaf]))]
        return np.asarray(array, np.float32)

    def read(name: str) -> np.ndarray:
        names, layer, transposed = where[name]
        tensor = np.concatenate([part(leaf, layer) for leaf in names], axis=-1)
        return tensor.T if transposed else tensor

    return read


def folded(
    model: Any, read: Callable[[str], np.ndarray], fold: str | None
) -> Callable[[str], np.ndarray]:
    """Return a `read` whose leaves with `fold` in their name are divided by the layer's index + 1.

    See the family's `fold_attention_scale`.
    """
    where = hf_tensor_map(model)

    def divided(name: str) -> np.ndarray:
        tensor, (leaves, layer, transposed) = read(name), where[name]
        if fold is None or layer is None or not any(fold in leaf for leaf in leaves):
            return tensor
        parts = np.split(tensor.T if transposed else tensor, len(leaves), axis=-1)
        divisor = np.float32(layer + 1)
        parts = [p / divisor if fold in leaf else p for p, leaf in zip(parts, leaves, strict=True)]
        tensor = np.concatenate(parts, axis=-1)
        return tensor.T if transposed else tensor

    return divided


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of the leaves, vocabulary padding excluded."""
    size, shapes = model.config.vocab_size, {}
    for name, variable in named_parameters(model).items():
        axes = itertools.zip_longest(axis_names(variable), variable.shape)
        shapes[name] = tuple(size if axis == "vocab" else length for axis, length in axes)
    return shapes


def _stack(tensors, read, specs: list, narrowing: Narrowing | None) -> list[np.ndarray]:
    """The host's copies of the leaves that these tensors, with their layers, are parts of."""
    stacks = [_aligned_zeros(spec.shape, spec.dtype) for spec in specs]
    for name, place in tensors:
        tensor = read(name)
        parts = np.split(tensor.T if place.transposed else tensor, len(stacks), axis=-1)
        for stack, part in zip(stacks, parts, strict=True):
            target = stack if place.layer is None else stack[place.layer]
            part = part if narrowing is None else narrowing.cast(part, stack.dtype)
            target[tuple(map(slice, part.shape))] = part  # vocabulary padding stays zero
    return stacks


def _aligned_zeros(shape: tuple[int, ...], dtype) -> np.ndarray:
    # On a CPU jax takes an array that begins at a multiple of 64 bytes as it is, and copies others.
    size = np.dtype(dtype).itemsize * math.prod(shape)
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _on_devices(stack: np.ndarray, sharding) -> jax.Array:
    array = jax.make_array_from_callback(stack.shape, sharding, lambda index: stack[index])
    return jax.block_until_ready(array)  # so that the host's copy can go
