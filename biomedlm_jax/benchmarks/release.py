"""A random model as a Hugging Face directory, from which all sides read equal weights."""

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax

from biomedlm_jax.benchmarks.own_process import measure_alone
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import make_config, make_model

APART = "export on the CPU"


@contextlib.contextmanager
def random_release(config: ModelConfig, *, apart: bool = False) -> Generator[Path]:
    """Yield a temporary Hugging Face directory with random weights.

    With `apart` another process makes it, on the CPU: this one leaves the GPU to the sides. It is
    removed after the block with all that is beside it; after Ctrl-C or SIGTERM once more at the end
    of this process, as threads that save a checkpoint still write.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder, "model")
        work = {"config": config.to_json(), "path": str(path)}
        if apart:
            measure_alone("release", APART, work)
        else:
            make_side(APART, **work)["export"]()
        try:
            yield path
        except BaseException:
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            raise


def execution_of(config: ModelConfig) -> dict[str, Any]:
    """Return the settings of a config that a Hugging Face directory does not have."""
    return {name: getattr(config, name) for name in type(config).free_names()}


def weight_bytes(path: Path) -> int:
    """Return the size of the weights of a Hugging Face directory."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def make_side(name: str, *, config: dict, path: str):
    """Return the call that writes the directory; it does nothing where that exists."""

    def export() -> None:
        model = make_model(make_config(config), key=jax.random.key(0))
        if not Path(path).exists():
            export_hf(model, None, path)

    return {"export": export}
