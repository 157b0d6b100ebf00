"""Eight fake CPU devices for every test, set before jax is imported; real data by a variable."""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real articles and question sets that BIOMEDLM_DATA names."""
    path = os.environ.get("BIOMEDLM_DATA")
    if not path:
        pytest.skip("BIOMEDLM_DATA is not set: it names the folder with real data")
    return Path(path)
