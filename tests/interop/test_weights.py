import numpy as np
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.interop.weights import (
    check_tensors,
    folded,
    read_model,
    tensor_reader,
    tensor_shapes,
)
from biomedlm_jax.mesh import one_device
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.gpt2 import FAMILY, GPT2Config
from biomedlm_jax.model.language_model import named_leaves


def test_table_names_every_leaf_once(model):
    leaves = [leaf for tensor in FAMILY.tensors.values() for leaf in tensor.leaves]
    assert sorted(leaves) == sorted(named_leaves(model))


def test_biomedlm_shapes_hold_exactly_its_parameters():
    shapes = tensor_shapes(abstract_model(GPT2Config()))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 2_594_247_680
    assert shapes["wte.weight"] == (28_896, 2_560)
    assert shapes["h.31.attn.c_attn.weight"] == (2_560, 7_680)
    assert len(shapes) == 4 + 32 * 12


@pytest.mark.parametrize("sizes", [None, {"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 4}])
def test_tensors_and_back_on_any_mesh(model, assert_same, sizes):
    shapes, read = tensor_shapes(model), tensor_reader(model)
    tensors = {name: read(name) for name in shapes}
    assert {name: t.shape for name, t in tensors.items()} == shapes
    mesh = meshes.make_mesh(**sizes) if sizes else one_device()
    back = read_model(abstract_model(model.config, mesh), tensors.__getitem__)
    assert_same(model, back)
    assert len(back.wte.sharding.device_set) == (8 if sizes else 1)
    read = tensor_reader(back)
    assert all(read(name).tobytes() == t.tobytes() for name, t in tensors.items())


def test_query_key_value_are_joined_in_that_order(model):
    joined = tensor_reader(model)("h.1.attn.c_attn.weight")
    parts = [getattr(model.h.attn.c_attn, part).kernel[1] for part in ("query", "key", "value")]
    np.testing.assert_array_equal(joined, np.concatenate(parts, axis=1))


def test_fold_divides_the_query_alone(model):
    width = model.config.width
    for name in ("h.2.attn.c_attn.weight", "h.2.attn.c_attn.bias"):
        read = tensor_reader(model)
        plain, divided = read(name), folded(model, read, ".c_attn.query.")(name)
        np.testing.assert_array_equal(divided[..., :width], plain[..., :width] / np.float32(3))
        np.testing.assert_array_equal(divided[..., width:], plain[..., width:])


def test_each_mismatch_is_one_line_with_names_and_shapes(model):
    right = tensor_shapes(model)

    def error_of(**changes):
        shapes = {name: shape for name, shape in {**right, **changes}.items() if shape}
        with pytest.raises(ValueError, match=r"^here ") as caught:
            check_tensors(shapes, model, where="here")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    check_tensors(right, model, where="here")
    assert "h.3.ln_1.weight [32]" in error_of(**{"h.3.ln_1.weight": (32,)})
    assert "lacks tensors of this model: expected ln_f.bias [32]" in error_of(**{"ln_f.bias": ()})
    wrong = error_of(**{"wte.weight": (384, 32)})
    assert "got wte.weight [384, 32], expected [300, 32]" in wrong
    none = dict.fromkeys(right, ())
    assert "and 37 more" in error_of(**none)
