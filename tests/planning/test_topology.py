import importlib.util
from collections import Counter

import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.families import abstract_model, make_config
from biomedlm_jax.planning import topology


def abstract(**changes):
    fields = {"vocab_size": 28896, "context_length": 1024, "layers": 1, "width": 2560, "heads": 20}
    return abstract_model(make_config({"model_type": "gpt2", **fields, **changes}))


def test_meshes_worth_compiling():
    sensible = topology.sensible_meshes(256, abstract(), 1024)
    assert {"data": 8, "fsdp": 32, "tensor": 1} in sensible
    assert {"data": 16, "fsdp": 8, "tensor": 2} in sensible
    assert all(mesh["data"] * mesh["fsdp"] * mesh["tensor"] == 256 for mesh in sensible)
    assert not [mesh for mesh in sensible if mesh["fsdp"] > 64]  # 2560 / 128 is no multiple of 8
    sharded = topology.sensible_meshes(256, abstract(), 1024, least_shards=100.5)
    assert {mesh["fsdp"] * mesh["tensor"] for mesh in sharded} == {128, 256}
    most = topology.sensible_meshes(256, abstract(), 1024, least_shards=1000)
    assert most == [{"data": 1, "fsdp": 64, "tensor": 4}]
    slices = topology.sensible_meshes(256, abstract(), 1024, slices=16)
    assert {mesh["data"] for mesh in slices} == {16, 32, 64, 128, 256}


@pytest.mark.parametrize(
    "uneven", [{"mlp_width": 130}, {"vocab_size": 90, "vocab_multiple": 6}], ids=["mlp", "vocab"]
)
def test_a_mesh_that_cuts_the_mlp_or_the_vocabulary_unevenly_is_skipped(uneven):
    model = abstract(width=64, heads=4, **uneven)
    sensible = topology.sensible_meshes(8, model, 8)
    assert {mesh["tensor"] for mesh in sensible} == {1, 2}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "v9:2x2",
            "local, or v4, v5e, v5p, v6e, TPU7x: and a shape, such as v5e:16x16 or 2xv5e:16x16",
        ),
        ("2x", "local, or v4, v5e"),
        ("0xv5e:2x2", "local, or v4, v5e"),
        ("2xv5e:3x3", "expected v5e: with one of 1x1, 2x2"),
        ("2xlocal", "local, or v4, v5e"),
        ("v5e:3x3", "expected v5e: with one of 1x1, 2x2"),
        ("v5e", "expected v5e: with one of"),
    ],
)
def test_an_unknown_topology_lists_the_known_ones(name, expected):
    with pytest.raises(ValueError, match=expected):
        topology.topology_devices(name)


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="install the extra `tpu`"):
        topology.topology_devices.__wrapped__("v5e:2x2")


def test_a_lock_of_another_process_is_named(monkeypatch):
    def refuse(**options):
        raise RuntimeError("ABORTED: The TPU is already in use by process 7: libtpu_lockfile")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(topology.topologies, "get_topology_desc", refuse)
    with pytest.raises(ValueError, match=r"another process locks libtpu; .*ALLOW_MULTIPLE"):
        topology.topology_devices.__wrapped__("v5e:2x2")


@pytest.mark.parametrize(
    ("name", "slices"), [("2xv5e:2x2", 2), ("4xv5e:2x4", 4), ("2xv4:2x2x1", 2)]
)
def test_slices_of_one_shape(libtpu, name, slices):
    one, several = map(topology.topology_devices, (name.split("x", 1)[1], name))
    assert len(several) == slices * len(one)
    assert Counter(map(meshes.slice_index, one)) == {0: len(one)}
    assert Counter(map(meshes.slice_index, several)) == dict.fromkeys(range(slices), len(one))
    assert [device.coords for device in several] == slices * [device.coords for device in one]


@pytest.mark.parametrize(
    ("name", "data", "fsdp"),
    [
        ("v5e:16x16", 8, 32),
        ("2xv5e:16x16", 16, 32),
        ("v6e:16x16", 8, 32),
        ("v5p:4x4x4", 2, 32),
        ("v4:4x4x4", 2, 32),
    ],
)
def test_the_meshes_of_the_guide_can_be_made_as_a_run_makes_them(libtpu, name, data, fsdp):
    mesh = meshes.make_mesh(data=data, fsdp=fsdp, devices=topology.topology_devices(name))
    assert dict(mesh.shape) == {"data": data, "fsdp": fsdp, "tensor": 1}
