"""Dtypes of exported tensors: those of the source, and what rounding to another one changes."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np

from biomedlm_jax.errors import InputError
from biomedlm_jax.interop import directories
from biomedlm_jax.interop.shards import WRITTEN
from biomedlm_jax.interop.tensorfiles import TensorFiles
from biomedlm_jax.interop.weights import tensor_shapes
from biomedlm_jax.settings import check_object
from biomedlm_jax.training.narrowing import rounding_changes

SOURCE = "source"
DTYPES = (*WRITTEN, SOURCE)


class Rounding:
    """`cast(name)` returns a tensor of `read` in its dtype, and counts the numbers that change.

    Raises InputError for a number that is too large for its dtype.
    """

    def __init__(self, read: Callable[[str], np.ndarray], dtypes: Mapping[str, str]):
        self._read, self._dtypes = read, dtypes
        self._numbers, self._changed, self._largest = 0, 0, 0.0
        self._lossy: set[str] = set()

    def __call__(self, name: str) -> np.ndarray:
        """Return the tensor `name`."""
        tensor, dtype = self._read(name), self._dtypes[name]
        self._numbers += tensor.size
        if dtype == "float32":
            return tensor
        with np.errstate(over="ignore"):
            rounded = tensor.astype(dtype)
        changed, largest = rounding_changes(tensor, rounded)
        if not np.isfinite(largest):
            got = f"tensor {name} has {np.abs(tensor).max():.6g}, more than {dtype} can hold"
            raise InputError(f"{got}; choose bfloat16 or float32")
        if changed:
            self._lossy.add(dtype)
            self._changed += changed
            self._largest = max(self._largest, largest)
        return rounded

    def line(self) -> str:
        """Return one line about the numbers that changed since the start; empty if none did."""
        if not self._changed:
            return ""
        share = f"{self._changed:,} of {self._numbers:,} numbers"
        names = " and ".join(sorted(self._lossy))
        return f"{names} rounds {share}, by {self._largest:.2g} at most; float32 keeps all bits"


def most_frequent(dtypes: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the dtype of most numbers, the one to load all of them in."""
    count: Counter[str] = Counter()
    for name, dtype in dtypes.items():
        count[dtype] += int(np.prod(shapes[name]))
    return count.most_common(1)[0][0]


def recorded(files: TensorFiles) -> dict[str, Any]:
    """Return what a run directory records of the dtypes in the files that it was made from."""
    dtypes = {name: entry.dtype for name, entry in files.entries.items()}
    if len(files.dtypes) == 1:
        return {"dtypes": files.dtypes}
    usual = most_frequent(dtypes, files.shapes)
    others = {name: dtype for name, dtype in dtypes.items() if dtype != usual}
    return {"dtypes": files.dtypes, "usual_dtype": usual, "other_dtypes": others}


def source_dtypes(directory: Path, model: Any) -> dict[str, str]:
    """Return the dtype of each tensor of `model` in the source of its directory.

    The source is the Hugging Face directory itself, or that which a run was imported from. A tensor
    that it lacks, or has in float64, gets float32. Raises InputError for another run.
    """
    if directories.is_hugging_face(directory):
        entries = TensorFiles(directory, model.config).entries
        usual, others = None, {name: entry.dtype for name, entry in entries.items()}
    else:
        facts = directories.read_config(directory).get("facts") or {}
        source = check_object(facts.get("source"), f"{directory} has facts.source")
        stated = source.get("dtypes") or []
        usual = source.get("usual_dtype", stated[0] if len(stated) == 1 else None)
        others = check_object(source.get("other_dtypes"), f"{directory} has other_dtypes")
        if usual is None:
            got = f"{directory} was not imported, so that no dtype of a source is known"
            raise InputError(f"{got}; choose a dtype from {', '.join(WRITTEN)}")
    dtypes = {name: others.get(name, usual) for name in tensor_shapes(model)}
    return {name: dtype if dtype in WRITTEN else "float32" for name, dtype in dtypes.items()}
