import os
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from biomedlm_jax.benchmarks.caches import cold_caches


@pytest.fixture
def cache(tmp_path):
    """A persistent cache of jax that is empty."""
    earlier = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", earlier)
    compilation_cache.reset_cache()


def compile_anew() -> None:
    jax.jit(lambda x: x * 3 + 1)(2.0)


def test_what_an_earlier_run_compiled_is_compiled_again(cache):
    read = []

    def record(event, **_):
        if event.endswith("cache_hits"):
            read.append(event)

    jax.monitoring.register_event_listener(record)
    compile_anew()
    compile_anew()
    assert len(read) == 1
    files = len(list(cache.iterdir()))
    with cold_caches():
        compile_anew()
        jax.jit(lambda x: x * 5 + 2)(2.0)
    assert len(read) == 1
    assert len(list(cache.iterdir())) == files
    compile_anew()
    assert len(read) == 2  # as before the block


def test_torch_compiles_into_an_empty_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    with cold_caches():
        folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        folder.mkdir()
        assert folder != tmp_path
        assert Path(os.environ["TRITON_CACHE_DIR"]).parent == folder.parent
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)
    assert "TRITON_CACHE_DIR" not in os.environ
    assert not folder.parent.exists()
