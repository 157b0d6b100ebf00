"""Narrowing: float32 weights that are read as bfloat16, and what the rounding changes."""

import warnings

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np

from biomedlm_jax.errors import InputError

AT_ONCE = 2**22  # numbers that are compared


class Narrowing:
    """`cast(array, dtype)` returns the array in a dtype, and counts the numbers that change.

    `where` is the directory of the weights, for messages.
    """

    def __init__(self, where: object):
        self._where = where
        self._numbers, self._changed, self._largest = 0, 0, 0.0

    def cast(self, array: np.ndarray, dtype) -> np.ndarray:
        """Return `array` in `dtype`; raises InputError for a number too large for it."""
        self._numbers += array.size
        if array.dtype == dtype:
            return array
        with np.errstate(over="ignore"):
            rounded = array.astype(dtype)
        changed, largest = rounding_changes(array, rounded)
        if not np.isfinite(largest):
            raise InputError(
                f"{self._where} has {np.abs(array).max():.6g}, more than {np.dtype(dtype)} can "
                "hold; set --config.lora.frozen_dtype=float32"
            )
        self._changed, self._largest = self._changed + changed, max(self._largest, largest)
        return rounded

    def warn(self) -> None:
        """Warn of the numbers that changed, if any did."""
        if self._changed:
            share = f"{self._changed:,} of {self._numbers:,} numbers of {self._where}"
            keep = "lora.frozen_dtype=float32 keeps all bits"
            line = f"bfloat16 rounds {share}, by {self._largest:.2g} at most; {keep}"
            warnings.warn(line, RuntimeWarning, stacklevel=2)


def rounding_changes(array: np.ndarray, rounded: np.ndarray) -> tuple[int, float]:
    """Return how many numbers of `array` differ from those of `rounded`, and by how much at most.

    That is infinite for a finite number that became infinite.
    """
    changed, largest = 0, 0.0
    rows = max(1, AT_ONCE // max(1, array[:1].size))
    for first in range(0, len(array), rows):
        part = slice(first, first + rows)
        with np.errstate(invalid="ignore"):  # inf - inf
            difference = np.abs(rounded[part].astype(np.float32) - array[part])
        if number := int(np.count_nonzero(difference)):
            changed += number
            largest = max(largest, float(np.nanmax(difference, initial=0.0)))
    return changed, largest
