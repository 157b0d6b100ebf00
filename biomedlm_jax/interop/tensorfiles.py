"""Read tensors of safetensors and torch files, whole or in shards with an index, one at a time."""

import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, for safetensors
import numpy as np
from safetensors import SafetensorError, safe_open

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import parse_object, read_json
from biomedlm_jax.integrity import SUMS, damage, has_sums
from biomedlm_jax.interop.shards import INDEX, WHOLE
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import family
from biomedlm_jax.streams import open_binary

CANDIDATES = (WHOLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Entry(NamedTuple):
    """A tensor in a file, under the name that the file gives it."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


class TensorFiles:
    """The tensors of a Hugging Face directory: names and shapes at once, values on demand.

    Names lose the family's prefix. `dropped` are constant buffers, and a tensor that equals the one
    it is tied to; if only that is there, it has both names. `heads` are tensors of other known
    heads, left out too. The files are compared with SHA256SUMS, if that is there. Raises InputError
    if a file is missing or damaged, an index does not fit its files, a tensor occurs twice or is
    not float, or a tied one differs.
    """

    def __init__(self, directory: str | Path, config: ModelConfig):
        self.directory, self._family = Path(directory), family(config.model_type)
        self._tied = self._family.tied if config.tie_word_embeddings else {}
        self.entries: dict[str, Entry] = {}
        self.dropped: list[str] = []
        self.heads: list[str] = []
        self._legacy: dict[Path, dict[str, Any]] = {}  # torch files that cannot be mapped
        self.files, index = _find(self.directory)
        check_sums(self.directory, {file.name for file in self.files})
        keys = {}
        for file in self.files:
            for key, (shape, dtype) in self._headers(file).items():
                self._add(Entry(file, key, tuple(shape), dtype))
                keys[key] = file.name
        wrong = {k for k in {*keys, *(index or {})} if index and keys.get(k) != index.get(k)}
        # An index may still list a head that was saved once, with the embedding, and buffers.
        if wrong := {k for k in wrong if k in keys or not self._unneeded(k)}:
            assert index is not None
            key = min(wrong)
            places = index.get(key, "no file"), keys.get(key, "none of them")
            problem = "puts tensor {} into {}, and the files have it in {}".format(key, *places)
            raise InputError(f"{self.directory}: the index {problem}")
        for name, original in self._tied.items():
            if name in self.entries and original not in self.entries:
                self.entries[original] = self.entries.pop(name)
            elif name in self.entries:
                self._drop_tied(name, original)
        self.shapes = {name: entry.shape for name, entry in self.entries.items()}
        self.dtypes = sorted({entry.dtype for entry in self.entries.values()})

    def read(self, name: str) -> np.ndarray:
        """Return one tensor as float32; raises InputError if any of its numbers is not finite."""
        entry = self.entries[name]
        tensor = np.asarray(self._read(entry), np.float32)
        finite = np.isfinite(tensor)
        if not finite.all():
            where = [int(i) for i in np.argwhere(~finite)[0]]
            got = f"{tensor[tuple(where)]} in tensor {name} at {where}"
            count = f"{(~finite).sum()} such values"
            raise InputError(f"{entry.file} has {got} ({count}); expected finite numbers")
        return tensor

    def _add(self, entry: Entry) -> None:
        name = entry.key.removeprefix(self._family.prefix)
        if re.fullmatch(self._family.buffers, name):
            self.dropped.append(name)
            return
        if re.fullmatch(self._family.other_heads, name):
            self.heads.append(name)
            return
        if entry.dtype not in FLOATS.values():
            got, wanted = f"{name} of dtype {entry.dtype}", ", ".join(FLOATS.values())
            raise InputError(f"{entry.file} has tensor {got}; expected one of {wanted}")
        if before := self.entries.get(name):
            both = [f"as {one.key} in {one.file.name}" for one in (before, entry)]
            raise InputError(f"tensor {name} occurs twice: {' and '.join(both)}")
        self.entries[name] = entry

    def _unneeded(self, key: str) -> bool:
        name = key.removeprefix(self._family.prefix)
        return name in self._tied or bool(re.fullmatch(self._family.buffers, name))

    def _drop_tied(self, name: str, original: str) -> None:
        same = original in self.entries and np.array_equal(self.read(name), self.read(original))
        if not same:
            reason = "the config ties the output head to the embedding"
            where = f"{self.entries[name].file}: {name} differs from {original}"
            raise InputError(f"{where}; expected equal tensors: {reason}")
        del self.entries[name]
        self.dropped.append(name)

    def _headers(self, file: Path) -> Mapping[str, tuple[Sequence[int], Any]]:
        """Shape and dtype of every tensor of a file."""
        open_binary(file).close()  # InputError for a pointer to the data
        if file.suffix == ".bin":
            tensors = self._torch_open(file)
            return {k: (v.shape, str(v.dtype).removeprefix("torch.")) for k, v in tensors.items()}
        try:
            with safe_open(file, "np") as opened:
                parts = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
                kinds = {key: part.get_dtype() for key, part in parts.items()}
                dtypes = {key: FLOATS.get(kind, kind) for key, kind in kinds.items()}
                shapes = {key: (part.get_shape(), dtypes[key]) for key, part in parts.items()}
        except SafetensorError as error:
            raise InputError(f"{file} is not a complete safetensors file: {error}") from None
        with file.open("rb") as opened:  # readers differ in which of two equal names they take
            size = int.from_bytes(opened.read(8), "little")
            parse_object(opened.read(size), f"{file}: header")
        return shapes

    def _read(self, entry: Entry) -> np.ndarray:
        if entry.file.suffix == ".bin":
            # `copy`: the tensor must not keep the file's pages in memory.
            return self._torch_open(entry.file)[entry.key].detach().float().numpy().copy()
        # Opened anew for each tensor: pages of the file that were read count as memory until then.
        with safe_open(entry.file, "np") as opened:
            return opened.get_tensor(entry.key)

    def _torch_open(self, file: Path) -> dict[str, Any]:
        """Map a torch file; one of the format before torch 1.6 is read whole, and kept."""
        if file in self._legacy:
            return self._legacy[file]
        if zipfile.is_zipfile(file):
            return _torch_load(file, mmap=True)
        return self._legacy.setdefault(file, _torch_load(file, mmap=False))


def check_sums(directory: Path, names: Collection[str]) -> None:
    """Raise InputError if files of a directory differ from its SHA256SUMS, if that is there."""
    if has_sums(directory) and (of := damage(directory, of=names.__contains__, complete=False)):
        fix = f"copy it again (if the change is intended, remove its line from {SUMS})"
        raise InputError(f"{directory}: {of[0]}; {fix}")


def _torch_load(file: Path, *, mmap: bool) -> dict[str, Any]:
    try:
        import torch
    except ModuleNotFoundError:
        fix = "pip install 'biomedlm-jax[hf]', or convert it elsewhere to model.safetensors"
        raise InputError(f"reading {file} needs torch; {fix}") from None
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # pickle, zip and torch each raise their own
        how = f"weights_only=True and mmap={mmap}"
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{file} cannot be loaded by torch with {how}: {reason}") from None
    values = list(loaded.values()) if isinstance(loaded, dict) else [loaded]
    other = [value for value in values if not isinstance(value, torch.Tensor)]
    if other or not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        got = type((other or [*loaded])[0]).__name__
        raise InputError(f"{file} holds a {got}; expected a dict of tensors only")
    return loaded


def _find(directory: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files of tensors, and the file of each tensor by the index, if there is one."""
    if not directory.is_dir():
        raise InputError(f"no such directory: {directory}")
    name = next((name for name in CANDIDATES if (directory / name).exists()), None)
    if name is None:
        raise InputError(f"{directory} has none of {', '.join(CANDIDATES)}")
    if not name.endswith(".json"):
        return [directory / name], None
    index = read_json(directory / name).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(v, str) for v in index.values()):
        raise InputError(f"{directory / name} is no index; expected a weight_map of file names")
    shards = sorted(set(index.values()))
    for shard in shards:
        # A plain name stays inside the directory; links are the download cache's own.
        plain = Path(shard).name == shard and len(shard.encode(errors="replace")) < 256
        if not (plain and shard.endswith((".safetensors", ".bin"))):
            wanted = f"names of .safetensors or .bin files in {directory}: move the files there"
            raise InputError(f"{directory / name} points to {shard!r}; expected {wanted}")
        if not (directory / shard).exists():
            raise InputError(f"{directory / name} names {shard}, which is not there")
    return [directory / shard for shard in shards], index
