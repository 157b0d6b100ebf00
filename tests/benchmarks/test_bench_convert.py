import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from biomedlm_jax.benchmarks import bench_convert, own_process
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.model.families import make_model
from biomedlm_jax.model.gpt2 import GPT2Config

CONFIG = GPT2Config(layers=1, width=16, heads=2, vocab_size=32, context_length=8)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [None, 1])
def test_both_sides_return_every_bit(on_gpu, monkeypatch, blocks):
    pytest.importorskip("torch")
    monkeypatch.setattr(own_process, "on_gpu", lambda: False)
    result = bench_convert.measure(CONFIG, rounds=1, blocks=blocks, details=False)
    assert len(on_gpu) == (2 if blocks else 0)
    (sides,) = result["tables"].values()
    assert list(sides) == ["biomedlm_jax", bench_convert.PEER]
    assert [side["changed_tensors"] for side in sides.values()] == [0, 0]
    assert result["errors"] == []


def test_a_changed_bit_is_found(tmp_path):
    model = export_hf(make_model(CONFIG, key=jax.random.key(0)), None, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    (tmp_path / "other").mkdir()
    first, second, *_ = tensors
    tensors[first] = np.nextafter(tensors[first], np.float32(9))
    tensors["other"] = tensors.pop(second)
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    assert bench_convert.changed_tensors(model, model) == 0
    assert bench_convert.changed_tensors(model, tmp_path / "other") == 3
