"""Write tensors as safetensors, whole or in shards, one tensor in memory at a time.

The `safetensors` package would need all of them, and misorders arrays that are not contiguous.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_json

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
WRITTEN = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # dtypes, and their codes
Shapes = Mapping[str, tuple[int, ...]]


def write_tensors(
    directory: Path,
    shapes: Shapes,
    get: Callable[[str], np.ndarray],
    *,
    max_shard_size: int | str,
    dtypes: Mapping[str, str] | None = None,
) -> None:
    """Write tensors as model.safetensors, or as shards with an index.

    `get(name)` returns a tensor of the shape `shapes[name]` and the dtype `dtypes[name]`, float32
    by default; it is called once, in that order. A tensor larger than `max_shard_size` (see
    `parse_size`) gets a shard of its own.
    """
    dtypes = dict.fromkeys(shapes, "float32") if dtypes is None else dtypes
    sizes = {name: _bytes(shape, dtypes[name]) for name, shape in shapes.items()}
    shards = plan_shards(sizes, parse_size(max_shard_size))
    if len(shards) == 1:
        write_safetensors(directory / WHOLE, shapes, get, dtypes=dtypes)
        return
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        of_file = {name: shapes[name] for name in names}
        write_safetensors(directory / file, of_file, get, dtypes=dtypes)
        weight_map |= dict.fromkeys(names, file)
    size = sum(sizes.values())
    write_json(directory / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def write_safetensors(
    path: Path,
    shapes: Shapes,
    get: Callable[[str], np.ndarray],
    *,
    dtypes: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file, tensor after tensor; layout: github.com/huggingface/safetensors.

    Eight bytes with the length of a JSON header, the header (dtype, shape and offsets of each
    tensor), then the numbers, little-endian and in C order.
    """
    # transformers refuses a file whose metadata names no framework.
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    dtypes = dict.fromkeys(shapes, "float32") if dtypes is None else dtypes
    offset = 0
    for name, shape in shapes.items():
        end, code = offset + _bytes(shape, dtypes[name]), WRITTEN[dtypes[name]]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # aligns the numbers
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = np.ascontiguousarray(get(name))
            got, expected = (tensor.dtype.name, tensor.shape), (dtypes[name], shape)
            if got != expected:
                raise InputError(f"got {name} of dtype and shape {got}; expected {expected}")
            file.write(tensor.reshape(-1).view(np.uint8).data)


def plan_shards(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    """Divide the tensors, in order, into files of at most `max_bytes`, or of one tensor."""
    shards, room = [], 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= size
    return shards


def parse_size(size: int | str) -> int:
    """Return bytes from a number or from "5GB", "500MB", "64KB" (powers of ten, as on the Hub)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", str(size).upper())
    number = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if number < 1:
        wanted = "bytes, or a size such as 5GB or 500MB"
        raise InputError(f"got max_shard_size={size!r}; expected {wanted}")
    return number


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return np.dtype(dtype).itemsize * math.prod(shape)
