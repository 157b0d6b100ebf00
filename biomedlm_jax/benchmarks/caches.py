"""Compilers without what an earlier run compiled, so that the first call of every side is cold."""

import contextlib
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def cold_caches() -> Generator[None]:
    """Let jax and torch.compile use no cache on disk of before the block, and leave none behind.

    jax's persistent cache is off in the block; torch's has an empty directory that is removed.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, no_jax_cache():
        names = torch_caches(folder)
        before = {name: os.environ.get(name) for name in names}
        os.environ.update(names)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                os.environ |= {} if value is None else {name: value}


def torch_caches(folder: str | Path) -> dict[str, str]:
    """Return the environment in which torch keeps what it compiles in `folder`."""
    return {
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "TRITON_CACHE_DIR": f"{folder}/triton",
    }


@contextlib.contextmanager
def no_jax_cache() -> Generator[None]:
    """Let jax compile in the block what its persistent cache has."""
    config: Any = jax.config
    enabled = config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # jax decides once whether it uses it
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()
