import json
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file

from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.shards import parse_size, plan_shards, write_safetensors, write_tensors


def test_file_reads_back_with_the_safetensors_package(tmp_path):
    random = np.random.default_rng(0)
    tensors = {f"t{i}": random.standard_normal((i + 1, 7), np.float32) for i in range(5)}
    shapes = {name: t.shape for name, t in tensors.items()}
    write_safetensors(tmp_path / "x.safetensors", shapes, tensors.__getitem__)
    back = load_file(tmp_path / "x.safetensors")
    assert list(back) == list(tensors)
    assert all(back[name].tobytes() == t.tobytes() for name, t in tensors.items())


def test_arrays_that_are_not_contiguous_are_written_right(tmp_path):
    whole = np.arange(60, dtype=np.float32).reshape(6, 10)
    tensors = {
        "transposed": whole.T,
        "strided": whole[::2, 1::3],
        "fortran": np.asfortranarray(whole),
    }
    shapes = {name: t.shape for name, t in tensors.items()}
    write_safetensors(tmp_path / "x.safetensors", shapes, tensors.__getitem__)
    for name, back in load_file(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(back, tensors[name])


def test_shards_keep_the_order_and_the_limit():
    shapes = {"a": 40, "b": 40, "c": 400, "d": 20, "e": 20}
    assert plan_shards(shapes, 80) == [["a", "b"], ["c"], ["d", "e"]]
    assert plan_shards(shapes, 10**9) == [list(shapes)]


def test_index_names_the_file_of_every_tensor(tmp_path):
    tensors = {name: np.full((8,), i, np.float32) for i, name in enumerate("abcd")}
    shapes = {name: t.shape for name, t in tensors.items()}
    write_tensors(tmp_path, shapes, tensors.__getitem__, max_shard_size=64)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 128}
    assert index["weight_map"]["d"] == "model-00002-of-00002.safetensors"
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(load_file(tmp_path / file)[name], tensors[name])


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    shapes = {f"t{i}": (1 << 18,) for i in range(32)}  # 1 MiB each
    tracemalloc.start()
    write_tensors(
        tmp_path, shapes, lambda name: np.ones(shapes[name], np.float32), max_shard_size="9MB"
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20


@pytest.mark.parametrize(
    ("size", "value"), [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("64K", 64_000), (77, 77)]
)
def test_sizes(size, value):
    assert parse_size(size) == value


@pytest.mark.parametrize("size", ["", "big", "-5GB", "0", "5 GiB"])
def test_bad_sizes(size):
    with pytest.raises(ValueError, match="such as 5GB"):
        parse_size(size)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_by_torch(dtype, tmp_path):
    safetensors_torch = pytest.importorskip("safetensors.torch", reason="reads bfloat16")
    tensor = np.linspace(-3, 3, 35, dtype=np.float32).reshape(5, 7).T.astype(dtype)
    plain = np.ones((3,), np.float32)
    tensors, shapes = {"a": tensor, "b": plain}, {"a": (7, 5), "b": (3,)}
    dtypes = {"a": dtype, "b": "float32"}
    options = {"max_shard_size": 72, "dtypes": dtypes}
    write_tensors(tmp_path, shapes, tensors.__getitem__, **options)
    assert [path.name for path in sorted(tmp_path.iterdir())][-1] == "model.safetensors.index.json"
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 2
    back = safetensors_torch.load_file(files[0])["a"]
    assert str(back.dtype) == f"torch.{dtype}"
    np.testing.assert_array_equal(back.float().numpy(), tensor.astype(np.float32))
    wrong = {"a": tensor.astype(np.float32), "b": plain}
    with pytest.raises(InputError, match="got a of dtype and shape"):
        write_tensors(tmp_path, shapes, wrong.__getitem__, **options)
