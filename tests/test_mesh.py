import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental import mesh_utils
from jax.sharding import PartitionSpec

from biomedlm_jax import mesh as meshes
from biomedlm_jax.errors import InputError
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.gpt2 import GPT2Config


def test_minus_one_takes_the_rest():
    assert dict(meshes.make_mesh(data=2, fsdp=-1, tensor=2).shape) == {
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
    }


def test_freed_memory_is_kept_before_there_are_devices(monkeypatch):
    calls, devices = [], jax.devices()
    monkeypatch.setattr(meshes, "keep_freed_memory", lambda: calls.append("memory"))
    monkeypatch.setattr(jax, "devices", lambda: calls.append("devices") or devices)
    meshes.make_mesh()
    assert calls == ["memory", "devices"]


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


@dataclasses.dataclass(frozen=True)
class Device:
    """A device as jax describes it; a single slice on libtpu has the slice index None."""

    id: int
    coords: tuple[int, ...]
    slice_index: int | None
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    process_index: int = 0


def slices(number, *, side, platform="tpu", none=False):
    """Devices of `number` slices of side x side chips, one after the other."""
    return [
        Device(1000 * one + y * side + x, (x, y, 0), None if none else one, platform)
        for one in range(number)
        for y in range(side)
        for x in range(side)
    ]


@pytest.mark.parametrize(
    ("number", "side", "sizes", "shape"),
    [
        (2, 16, {"data": -1, "fsdp": 32}, (16, 32, 1)),  # 32 splits a ring of the torus
        (4, 4, {"data": 4, "fsdp": 16}, (4, 16, 1)),
        (2, 4, {"data": 4, "fsdp": -1, "tensor": 2}, (4, 4, 2)),
        (3, 2, {"data": 12, "fsdp": 1}, (12, 1, 1)),
    ],
)
def test_only_data_leaves_a_slice(number, side, sizes, shape):
    devices = slices(number, side=side)
    shuffled = np.random.default_rng(0).permutation(np.array(devices, dtype=object)).tolist()
    for given in (devices, shuffled):
        mesh = meshes.make_mesh(**sizes, devices=given)
        assert mesh.devices.shape == shape
        assert set(mesh.devices.flat) == set(devices)
        owner = np.vectorize(lambda device: device.slice_index)(mesh.devices)
        # Index i of `data` is in slice i // (data / slices), whatever the other indices are.
        expected = np.arange(shape[0]) // (shape[0] // number)
        np.testing.assert_array_equal(owner, np.broadcast_to(expected[:, None, None], shape))
    # The same places in every slice: the program is one for all slices.
    places = np.vectorize(lambda device: device.id % 1000)(
        meshes.make_mesh(**sizes, devices=devices).devices
    )
    places = places.reshape(number, shape[0] // number, *shape[1:])
    np.testing.assert_array_equal(places, np.broadcast_to(places[0], places.shape))


@pytest.mark.parametrize("none", [False, True])
def test_one_slice_keeps_its_order(none):
    devices = slices(1, side=16, none=none)
    mesh = meshes.make_mesh(data=8, fsdp=32, devices=devices)
    plain = mesh_utils.create_device_mesh((8, 32, 1), devices, allow_split_physical_axes=True)
    assert mesh.devices.tolist() == plain.tolist()


def test_hosts_of_gpus_are_not_slices():
    """jax gives the GPUs of each host their own slice index; fsdp may cross hosts."""
    mesh = meshes.make_mesh(fsdp=8, devices=slices(2, side=2, platform="gpu"))
    assert dict(mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 1}


def test_a_mesh_that_cannot_lie_on_the_slices():
    devices = slices(2, side=4)
    with pytest.raises(InputError) as refused:
        meshes.make_mesh(data=1, fsdp=-1, devices=devices)
    assert str(refused.value) == (
        "got mesh data=1, fsdp=32, tensor=1 on 2 TPU slices; expected data of a multiple of 2, the "
        "only axis between slices; set data=-1 and an fsdp x tensor that divides 16"
    )
    with pytest.raises(InputError, match=r"slices of 16, 8 devices; use slices of one size"):
        meshes.make_mesh(data=2, fsdp=12, devices=devices[:24])


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
