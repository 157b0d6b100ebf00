import json

import numpy as np
import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.rounding import Rounding, most_frequent, recorded, source_dtypes
from biomedlm_jax.interop.tensorfiles import TensorFiles
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.training import narrowing

TENSORS = {
    "a": np.random.default_rng(0).standard_normal((7, 5), np.float32).T,
    "b": np.array([1, 2.5, -3], np.float32),  # exact in every dtype
}


@pytest.mark.parametrize("at_once", [1, 12, 2**22])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_numbers_are_rounded_and_counted_as_torch_does(dtype, at_once, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(narrowing, "AT_ONCE", at_once)
    cast = Rounding(TENSORS.__getitem__, dict.fromkeys(TENSORS, dtype))
    changed, largest = 0, 0.0
    for name, tensor in TENSORS.items():
        theirs = torch.from_numpy(tensor.copy()).to(getattr(torch, dtype)).float().numpy()
        assert cast(name).dtype.name == dtype
        np.testing.assert_array_equal(cast(name).astype(np.float32), theirs)
        changed += 2 * int((theirs != tensor).sum())
        largest = max(largest, float(np.abs(theirs - tensor).max()))
    wanted = f"{dtype} rounds {changed} of 76 numbers, by {largest:.2g} at most"
    assert cast.line().startswith(wanted)


def test_nothing_is_told_of_exact_numbers():
    cast = Rounding(TENSORS.__getitem__, {"a": "float32", "b": "bfloat16"})
    assert cast("a") is TENSORS["a"]
    assert cast("b").dtype.name == "bfloat16"
    assert cast.line() == ""


def test_too_large_numbers_are_refused():
    cast = Rounding(lambda name: np.array([1, -65_520], np.float32), {"a": "float16"})
    with pytest.raises(InputError, match="tensor a has 65520, more than float16 can hold"):
        cast("a")


def test_the_dtype_of_most_numbers():
    shapes = {"a": (3,), "b": (2,), "c": (2,)}
    assert most_frequent({"a": "float32", "b": "float16", "c": "float16"}, shapes) == "float16"


@pytest.mark.parametrize("mixed", [False, True])
def test_a_run_records_the_dtypes_of_its_source(mixed, model, release, rewrite, tmp_path):
    def halve(tensors):
        tensors.update({k: v.astype("float16") for k, v in tensors.items() if "ln" not in k})
        if not mixed:
            tensors.update({k: v.astype("float16") for k, v in tensors.items()})
        tensors["transformer.ln_f.bias"] = tensors["transformer.ln_f.bias"].astype("float64")

    rewrite(release, halve)
    wanted = source_dtypes(release, model)
    assert wanted["wte.weight"] == "float16"
    assert wanted["ln_f.weight"] == ("float32" if mixed else "float16")
    assert wanted["ln_f.bias"] == "float32"  # nobody trains in float64
    facts = {"source": recorded(TensorFiles(release, model.config))}
    run = tmp_path / "run"
    run.mkdir()
    fields = {"model": model.config.to_json(), "facts": json.loads(json.dumps(facts))}
    (run / "config.json").write_text(json.dumps(fields))
    assert source_dtypes(run, abstract_model(model.config)) == wanted
    (run / "config.json").write_text(json.dumps({**fields, "facts": {}}))
    with pytest.raises(InputError, match="was not imported"):
        source_dtypes(run, model)
