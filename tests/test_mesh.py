import jax
import pytest
from jax.sharding import PartitionSpec

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.config import GPTConfig


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
    with pytest.raises(ValueError, match=r"batch_size=12 .* choose a multiple of 8"):
        meshes.check_fits(mesh, batch_size=12)
    with pytest.raises(ValueError, match="choose a multiple of 32"):
        meshes.check_fits(mesh, batch_size=8, accumulation=4)


def test_a_model_that_does_not_divide():
    mesh = meshes.make_mesh(fsdp=1, tensor=8)
    config = GPTConfig(vocab_size=300, width=60, heads=20, layers=1)
    with pytest.raises(ValueError, match=r"mesh.tensor=8 does not divide the model's heads of 20"):
        meshes.check_fits(mesh, batch_size=8, model=config)


def test_constrain_without_a_mesh_is_the_identity():
    x = jax.numpy.ones((2, 3))
    assert meshes.constrain(x, "batch", None) is x
