"""Writing tensors as safetensors, whole or in shards, one tensor in memory at a time.

The `safetensors` package reads these files; its own writer wants every tensor of a file in memory,
and takes an array that is not contiguous for one that is.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
Shapes = Mapping[str, tuple[int, ...]]


def write_tensors(
    directory: Path,
    shapes: Shapes,
    get: Callable[[str], np.ndarray],
    *,
    max_shard_size: int | str,
) -> None:
    """Write float32 tensors as model.safetensors, or as shards with an index.

    `get(name)` gives a tensor of the shape `shapes[name]`; it is called once, in that order.
    `max_shard_size` is in bytes or like "5GB"; a larger tensor has a shard of its own.
    """
    shards = plan_shards(shapes, parse_size(max_shard_size))
    if len(shards) == 1:
        write_safetensors(directory / WHOLE, shapes, get)
        return
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(directory / file, {name: shapes[name] for name in names}, get)
        weight_map |= dict.fromkeys(names, file)
    metadata = {"total_size": sum(map(_bytes, shapes.values()))}
    index = {"metadata": metadata, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_safetensors(path: Path, shapes: Shapes, get: Callable[[str], np.ndarray]) -> None:
    """Write one safetensors file, tensor after tensor; layout: github.com/huggingface/safetensors.

    Eight bytes hold the length of a JSON header, which holds each tensor's dtype, shape and
    offsets, and the numbers follow, little-endian and in C order.
    """
    # transformers refuses a file that does not say for which framework it was written.
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        end = offset + _bytes(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # aligns the numbers
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = np.ascontiguousarray(get(name), "<f4")
            if tensor.shape != shape:
                raise ValueError(f"got {name} of shape {tensor.shape}, announced as {shape}")
            file.write(tensor.data)


def plan_shards(shapes: Shapes, max_bytes: int) -> list[list[str]]:
    """Cut the tensors, in order, into files of at most `max_bytes`, or of one tensor."""
    shards, room = [], 0
    for name, shape in shapes.items():
        size = _bytes(shape)
        if not shards or size > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= size
    return shards


def parse_size(size: int | str) -> int:
    """Bytes from a number or from "5GB", "500MB", "64KB" (powers of ten, as on the Hub)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", str(size).upper())
    number = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if number < 1:
        raise ValueError(f"max_shard_size={size!r}; give bytes, or a size such as 5GB or 500MB")
    return number


def _bytes(shape: tuple[int, ...]) -> int:
    return 4 * math.prod(shape)
