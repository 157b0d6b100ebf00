import jax
import pytest
from jax.sharding import PartitionSpec

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.gpt2 import GPT2Config


def test_minus_one_takes_the_rest():
    assert dict(meshes.make_mesh(data=2, fsdp=-1, tensor=2).shape) == {
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
    }


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 16, "fsdp": 1},
        {"data": 3, "fsdp": -1},
        {"data": -1, "fsdp": -1},
        {"data": 0},
        {"data": 1, "fsdp": 4},
    ],
)
def test_a_mesh_that_does_not_make_the_devices(sizes):
    with pytest.raises(ValueError, match="mesh data="):
        meshes.make_mesh(**sizes)


def test_rules_map_logical_axes():
    assert meshes.spec("batch", "length", None) == PartitionSpec(("data", "fsdp"), None, None)


def test_a_batch_that_does_not_divide():
    mesh = meshes.make_mesh(fsdp=8)
    with pytest.raises(ValueError, match=r"batch_size=12; expected a multiple of .* = 8$"):
        meshes.check_fits(mesh, batch_size=12)
    with pytest.raises(ValueError, match="1 x 8 x 4 = 32"):
        meshes.check_fits(mesh, batch_size=8, accumulation=4)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 1, "tensor": 8}, r"mesh.tensor=8, which does not divide .* heads of 20"),
        ({"fsdp": 8}, r"mesh.fsdp=8, which does not divide the model's width of 60"),
        ({"fsdp": 2, "tensor": 4}, r"mesh.tensor=4, .* MLP width of 30; choose one of \[1, 2, 3"),
    ],
)
def test_a_model_that_does_not_divide(sizes, message):
    mesh = meshes.make_mesh(**sizes)
    config = GPT2Config(vocab_size=300, width=60, heads=20, layers=1, mlp_width=30)
    with pytest.raises(ValueError, match=message):
        meshes.check_fits(mesh, batch_size=8, model=abstract_model(config))


def test_constrain_without_a_mesh_is_the_identity():
    x = jax.numpy.ones((2, 3))
    assert meshes.constrain(x, "batch", None) is x
