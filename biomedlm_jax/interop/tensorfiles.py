"""TensorFiles: the tensors of a Hugging Face directory, read one at a time and checked.

Formats: safetensors and torch's pickles, whole or in shards with an index.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, for safetensors
import numpy as np
from safetensors import SafetensorError, safe_open

from biomedlm_jax.interop.shards import INDEX, WHOLE
from biomedlm_jax.interop.weights import PREFIX

CANDIDATES = (WHOLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
# Constants of old files: the causal mask and the value of a masked logit.
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Entry(NamedTuple):
    """A tensor in a file, under the name that the file gives it."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


class TensorFiles:
    """The tensors of a Hugging Face directory: names and shapes at once, values on demand.

    Names lose the prefix `transformer.`. Mask buffers are left out and listed in `dropped`; the
    output head is left out once it is found equal to the embedding, to which this library ties it.

    Raises:
      FileNotFoundError: the directory has no file of tensors, or not every one in its index.
      ValueError: a file cannot be read, an index points outside the directory or does not fit its
        files, a tensor is there twice or of no float dtype, or the head is not the embedding.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.entries: dict[str, Entry] = {}
        self.dropped: list[str] = []
        self.files, index = _find(self.directory)
        keys = {}
        for file in self.files:
            for key, (shape, dtype) in _format(file).headers(file).items():
                self._add(Entry(file, key, tuple(shape), dtype))
                keys[key] = file.name
        if index is not None and keys != index:
            key = next(k for k in sorted({*keys, *index}) if keys.get(k) != index.get(k))
            raise ValueError(
                f"{self.directory}: the index puts tensor {key} into {index.get(key, 'no file')}, "
                f"and the files have it in {keys.get(key, 'none of them')}"
            )
        if "lm_head.weight" in self.entries:
            self._drop_head()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def dtypes(self) -> list[str]:
        """The dtypes there are, by numpy's names."""
        return sorted({entry.dtype for entry in self.entries.values()})

    def read(self, name: str) -> np.ndarray:
        """One tensor as float32; raises ValueError if any of its numbers is not finite."""
        entry = self.entries[name]
        tensor = np.asarray(_format(entry.file).read(entry.file, entry.key), np.float32)
        finite = np.isfinite(tensor)
        if not finite.all():
            where = [int(i) for i in np.argwhere(~finite)[0]]
            raise ValueError(
                f"{entry.file} has {tensor[tuple(where)]} in tensor {name} at {where} "
                f"({int((~finite).sum())} such values); expected finite numbers"
            )
        return tensor

    def _add(self, entry: Entry) -> None:
        name = entry.key.removeprefix(PREFIX)
        if MASKS.fullmatch(name):
            self.dropped.append(name)
            return
        if entry.dtype not in FLOATS.values():
            raise ValueError(
                f"{entry.file} has tensor {name} of dtype {entry.dtype}; "
                f"expected one of {', '.join(FLOATS.values())}"
            )
        if before := self.entries.get(name):
            raise ValueError(
                f"tensor {name} is there twice: as {before.key} in {before.file.name} "
                f"and as {entry.key} in {entry.file.name}"
            )
        self.entries[name] = entry

    def _drop_head(self) -> None:
        head, embedding = self.entries["lm_head.weight"], self.entries.get("wte.weight")
        if embedding is None or head.shape != embedding.shape:
            got = "none" if embedding is None else list(embedding.shape)
            raise ValueError(f"lm_head.weight is {list(head.shape)} and wte.weight {got}")
        if not np.array_equal(self.read("lm_head.weight"), self.read("wte.weight")):
            raise ValueError(
                f"{head.file}: lm_head.weight differs from wte.weight; this library computes "
                "models whose output head is the embedding only"
            )
        del self.entries["lm_head.weight"]
        self.dropped.append("lm_head.weight")


class Format(NamedTuple):
    """How to list a file's tensors, as {key: (shape, dtype)}, and how to read one."""

    headers: Callable[[Path], dict[str, tuple[tuple[int, ...], str]]]
    read: Callable[[Path, str], np.ndarray]


def _safetensors_headers(file: Path):
    try:
        with safe_open(file, "np") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
            return {
                key: (part.get_shape(), FLOATS.get(part.get_dtype(), part.get_dtype()))
                for key, part in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(f"{file} is no complete safetensors file: {error}") from None


def _safetensors_read(file: Path, key: str) -> np.ndarray:
    # Opened anew for each tensor: pages of the file that were read count as memory until then.
    with safe_open(file, "np") as opened:
        return opened.get_tensor(key)


def _torch_open(file: Path) -> dict:
    try:
        import torch
    except ModuleNotFoundError:
        raise ValueError(
            f"reading {file} needs torch; pip install 'biomedlm-jax[hf]', or convert it elsewhere "
            "to model.safetensors"
        ) from None
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and torch each raise their own
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{file} cannot be loaded by torch with weights_only=True and mmap=True: {reason}"
        ) from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{file} holds a {type(loaded).__name__}; expected names with tensors")
    for key, value in loaded.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{file} has {key!r} as a {type(value).__name__}; expected a tensor")
    return loaded


def _torch_headers(file: Path):
    return {
        key: (tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for key, value in _torch_open(file).items()
    }


def _torch_read(file: Path, key: str) -> np.ndarray:
    # `copy`: the tensor must not keep the file's pages in memory.
    return _torch_open(file)[key].float().numpy().copy()


_FORMATS = {
    ".safetensors": Format(_safetensors_headers, _safetensors_read),
    ".bin": Format(_torch_headers, _torch_read),
}


def _format(file: Path) -> Format:
    if file.suffix not in _FORMATS:
        raise ValueError(f"{file} is of no known format; known are {', '.join(_FORMATS)}")
    return _FORMATS[file.suffix]


def _find(directory: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files of tensors, and where an index says that each tensor is."""
    if not directory.is_dir():
        raise FileNotFoundError(f"no such directory: {directory}")
    name = next((name for name in CANDIDATES if (directory / name).exists()), None)
    if name is None:
        raise FileNotFoundError(f"{directory} has none of {', '.join(CANDIDATES)}")
    if not name.endswith(".json"):
        return [directory / name], None
    try:
        index = json.loads((directory / name).read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(index.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        wanted = "expected JSON with a weight_map of files"
        raise ValueError(f"{directory / name} is no index; {wanted}") from None
    for shard in shards:
        # Only a plain name surely stays inside; links are the download cache's own.
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(
                f"{directory / name} points to {shard!r}; expected names of files in {directory}"
            )
        if not (directory / shard).exists():
            raise FileNotFoundError(f"{directory / name} names {shard}, which is not there")
    return [directory / shard for shard in shards], index
