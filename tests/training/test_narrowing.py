import warnings

import numpy as np
import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.training import narrowing
from biomedlm_jax.training.narrowing import Narrowing, rounding_changes

ARRAYS = [
    np.random.default_rng(0).standard_normal((7, 5), np.float32),
    np.array([1, 2.5, -3], np.float32),  # exact in bfloat16
]


@pytest.mark.parametrize("at_once", [1, 12, 2**22])
def test_numbers_are_rounded_and_counted_as_torch_does(at_once, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(narrowing, "AT_ONCE", at_once)
    some, changed, largest = Narrowing("DIR"), 0, 0.0
    for array in ARRAYS:
        theirs = torch.from_numpy(array.copy()).to(torch.bfloat16).float().numpy()
        rounded = some.cast(array, np.dtype("bfloat16"))
        np.testing.assert_array_equal(rounded.astype(np.float32), theirs)
        differ = int((theirs != array).sum()), float(np.abs(theirs - array).max())
        assert rounding_changes(array, rounded) == differ
        changed, largest = changed + differ[0], max(largest, differ[1])
    assert some.cast(ARRAYS[0], np.float32) is ARRAYS[0]
    with pytest.warns(RuntimeWarning) as caught:
        some.warn()
    assert str(caught[0].message) == (
        f"bfloat16 rounds {changed} of 73 numbers of DIR, by {largest:.2g} at most; "
        "lora.frozen_dtype=float32 keeps all bits"
    )


def test_nothing_is_told_of_exact_numbers():
    exact = Narrowing("DIR")
    assert exact.cast(ARRAYS[1], np.dtype("bfloat16")).dtype.name == "bfloat16"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact.warn()


def test_too_large_numbers_are_refused():
    huge = np.array([1, -3.4e38], np.float32)
    with pytest.raises(InputError, match=r"DIR has 3\.4e\+38, more than bfloat16 can hold; set"):
        Narrowing("DIR").cast(huge, np.dtype("bfloat16"))
