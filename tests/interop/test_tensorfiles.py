import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from biomedlm_jax.errors import InputError
from biomedlm_jax.interop import tensorfiles
from biomedlm_jax.model.gpt2 import GPT2Config

torch = pytest.importorskip("torch", reason="torch reads and writes pytorch_model.bin")


def open_files(directory):
    return tensorfiles.TensorFiles(directory, GPT2Config())


def error_of(directory, *, error=ValueError, read=None) -> str:
    with pytest.raises(error) as caught:
        open_files(directory).read(read)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(name="release")
def _release(release):
    """A Hugging Face directory whose files may be changed."""
    (release / "SHA256SUMS").unlink()
    return release


@pytest.fixture
def bin_directory(release):
    """The same weights as pytorch_model.bin."""
    tensors = load_file(release / "model.safetensors")
    torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, release / "pytorch_model.bin")
    (release / "model.safetensors").unlink()
    return release


def test_bin_holds_what_safetensors_holds(release, bin_directory, model):
    files = open_files(bin_directory)
    assert [file.name for file in files.files] == ["pytorch_model.bin"]
    expected = np.asarray(model.wpe[...])
    np.testing.assert_array_equal(files.read("wpe.weight"), expected)


def test_bin_with_transposed_storage_reads_right(bin_directory):
    file = bin_directory / "pytorch_model.bin"
    tensors = torch.load(file)
    key = "transformer.h.0.mlp.c_fc.weight"
    expected = tensors[key].numpy().copy()
    torch.save({**tensors, key: tensors[key].T.contiguous().T}, file)
    read = open_files(bin_directory).read("h.0.mlp.c_fc.weight")
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, expected)


def test_bin_may_not_run_code(bin_directory):
    (bin_directory / "pytorch_model.bin").write_bytes(pickle.dumps({"wte.weight": print}))
    assert "weights_only=True" in error_of(bin_directory)


def test_bin_without_torch_names_the_extra(bin_directory, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert "pip install 'biomedlm-jax[hf]'" in error_of(bin_directory)


def test_sharded_bin(bin_directory, model):
    tensors = torch.load(bin_directory / "pytorch_model.bin")
    (bin_directory / "pytorch_model.bin").unlink()
    names, weight_map = list(tensors), {}
    for i, part in enumerate((names[:9], names[9:])):
        torch.save({name: tensors[name] for name in part}, bin_directory / f"part{i}.bin")
        weight_map |= dict.fromkeys(part, f"part{i}.bin")
    index = {"weight_map": weight_map}
    (bin_directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(open_files(bin_directory).read("wpe.weight"), model.wpe[...])


def test_prefix_masks_and_head_are_understood(release, rewrite):
    def old_style(tensors):
        for key in list(tensors):
            tensors[key.removeprefix("transformer.")] = tensors.pop(key)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 24, 24), np.uint8)
        tensors["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
        tensors["lm_head.weight"] = tensors["wte.weight"]

    before = open_files(release).shapes
    rewrite(release, old_style)
    files = open_files(release)
    assert files.shapes == before
    assert set(files.dropped) == {"h.0.attn.bias", "h.0.attn.masked_bias", "lm_head.weight"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_become_float32(release, dtype, rewrite):
    np.dtype(dtype)  # bfloat16 is numpy's since ml_dtypes was imported
    before = open_files(release).read("wpe.weight")
    rewrite(release, lambda t: t.update({k: v.astype(dtype) for k, v in t.items()}))
    files = open_files(release)
    assert files.dtypes == [dtype]
    after = files.read("wpe.weight")
    assert after.dtype == np.float32
    np.testing.assert_array_equal(after, before.astype(dtype).astype(np.float32))


def test_integers_are_refused(release, rewrite):
    rewrite(release, lambda t: t.update({"transformer.wpe.weight": np.zeros((24, 32), np.int8)}))
    assert "tensor wpe.weight of dtype I8; expected one of float64" in error_of(release)


def test_doubled_tensor_is_refused(release, rewrite):
    rewrite(release, lambda t: t.update({"wpe.weight": t["transformer.wpe.weight"]}))
    message = error_of(release)
    assert "wpe.weight occurs twice: as " in message
    assert "as transformer.wpe.weight" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(release, value, rewrite):
    def spoil(tensors):
        tensors["transformer.h.1.ln_2.bias"][5] = value

    rewrite(release, spoil)
    message = error_of(release, read="h.1.ln_2.bias")
    assert f"has {value} in tensor h.1.ln_2.bias at [5] (1 such values)" in message


def test_head_that_is_not_the_embedding_is_refused(release, rewrite):
    rewrite(release, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1}))
    assert "lm_head.weight differs from wte.weight" in error_of(release)


def test_truncated_file_is_refused(release):
    file = release / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "not a complete safetensors file" in error_of(release)


def test_a_pointer_is_not_the_file(release):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (release / "model.safetensors").write_text(text)
    assert "is a Git LFS pointer, not the data; run `git lfs pull`" in error_of(release)


def test_no_weights_at_all(release):
    (release / "model.safetensors").unlink()
    assert "has none of model.safetensors" in error_of(release, error=InputError)


@pytest.fixture
def sharded(release):
    """The same weights in two shards, the index a dict that may be spoilt: (directory, write)."""
    tensors = load_file(release / "model.safetensors")
    (release / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: f"s{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in ("s0.safetensors", "s1.safetensors"):
        save_file({n: tensors[n] for n in names if weight_map[n] == file}, release / file)

    def write(index):
        (release / "model.safetensors.index.json").write_text(json.dumps(index))

    write({"weight_map": weight_map})
    return release, weight_map, write


def test_index_leads_to_every_shard(sharded, model):
    np.testing.assert_array_equal(open_files(sharded[0]).read("wpe.weight"), model.wpe[...])


@pytest.mark.parametrize("target", ["../s0.safetensors", "/etc/s.safetensors", "sub/s.safetensors"])
def test_index_may_not_point_outside(sharded, target):
    directory, weight_map, write = sharded
    write({"weight_map": {**weight_map, "transformer.wpe.weight": target}})
    assert f"points to '{target}'" in (error := error_of(directory))
    assert "expected names of .safetensors or .bin files in" in error


def test_index_that_does_not_fit_its_files(sharded):
    directory, weight_map, write = sharded
    write({"weight_map": {**weight_map, "transformer.extra": "s0.safetensors"}})
    assert "puts tensor transformer.extra into s0.safetensors" in error_of(directory)
    key = min(weight_map)
    write({"weight_map": {k: v for k, v in weight_map.items() if k != key}})
    assert f"puts tensor {key} into no file, and the files have it in s0" in error_of(directory)
    write({"weight_map": {**weight_map, key: "s7.safetensors"}})
    assert "names s7.safetensors, which is not there" in error_of(directory, error=InputError)
    for bad in ({"weights": {}}, {"weight_map": {"a": ["s0"]}}):
        write(bad)
        assert "is no index" in error_of(directory)
