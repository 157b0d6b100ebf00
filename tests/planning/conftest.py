import importlib.metadata
import importlib.util
import runpy
from pathlib import Path

import pytest

from biomedlm_jax.planning import planner

# The size of a real model's parts, so that the TPU compiler treats it as one: heads of 128, rows
# of 256, two rows for each device.
SLICE = {
    "model.width": 256,
    "model.heads": 2,
    "model.mlp_width": 1024,
    "model.layers": 3,
    "model.context_length": 256,
    "model.compute_dtype": "bfloat16",
    "model.reduce_dtype": "float32",
    "model.remat": "query,key,value,attention,residual,norm,mlp_input",
    "training.batch_size": 16,
}


def tiny():
    """The tiny run, for all eight devices."""
    path = Path(__file__).parents[2] / "configs" / "pretrain.py"
    config = runpy.run_path(str(path))["get_config"]("tiny")
    config.model.update(vocab_size=512, context_length=32, eos_token_id=511)
    config.mesh.update(data=2, fsdp=4)
    return config


@pytest.fixture
def config():
    return tiny()


@pytest.fixture(scope="session")
def local_plan():
    """The tiny run's training step, compiled for the devices here."""
    return planner.plan(tiny(), "local")


@pytest.fixture(scope="session")
def libtpu() -> str:
    """The version of libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: it is in the extra `tpu`")
    return importlib.metadata.version("libtpu")


def plan_slice(topology, folder):
    config = tiny()
    config.update_from_flattened_dict(SLICE)
    made = planner.plan(config, topology, hlo=folder)
    (path,) = folder.iterdir()
    assert path.name == f"{topology.replace(':', '-')}_train_data2xfsdp4.hlo"
    return made, path.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def slice_plan(libtpu, tmp_path_factory):
    """A small training step compiled for v5e:2x4, and its HLO text. It takes some 10 s."""
    return plan_slice("v5e:2x4", tmp_path_factory.mktemp("hlo"))


@pytest.fixture(scope="session")
def two_slices_plan(libtpu, tmp_path_factory):
    """The same step compiled for two slices of v5e:2x2, with `data` between them."""
    return plan_slice("2xv5e:2x2", tmp_path_factory.mktemp("hlo"))
