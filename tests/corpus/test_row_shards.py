"""row_shards.py: any shard of the rows is written alone, from the ids of several files."""

import errno
import os
import resource

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from biomedlm_jax.corpus.row_shards import make_row_shard, plan_shards, write_dataset

SIZES = (7, 0, 3, 40, 1, 1, 12, 0)  # 64 ids


@pytest.fixture
def units(tmp_path):
    stream = np.random.default_rng(0).integers(0, 2**16, sum(SIZES)).astype("uint16")
    units, parts = [], np.split(stream, np.cumsum(SIZES)[:-1])
    for number, part in enumerate(parts):
        units.append((tmp_path / f"{number}.ids", part.size))
        units[-1][0].write_bytes(part.tobytes())
    return stream, units


@pytest.mark.parametrize("length", [1, 3, 5, 64, 65])
@pytest.mark.parametrize("most_rows", [1, 2, 7, 100])
def test_the_shards_are_consecutive_parts_of_the_stream(units, length, most_rows):
    stream, files = units
    shards = list(plan_shards(files, length=length, most_rows=most_rows))
    rows = stream.size // length
    assert len(shards) == -(-rows // most_rows)
    pieces = [
        np.concatenate([np.fromfile(file, "uint16")[start:stop] for file, start, stop in spans])
        for spans in shards
    ]
    assert all(piece.size == most_rows * length for piece in pieces[:-1])
    assert all(stop > start for spans in shards for _, start, stop in spans)
    joined = np.concatenate(pieces) if pieces else np.empty(0)
    assert np.array_equal(joined, stream[: rows * length])
    assert list(plan_shards([], length=length, most_rows=most_rows)) == []


def test_the_dataset_is_that_of_tfds_own_writer(units, tmp_path):
    stream, files = units
    plan = list(plan_shards(files, length=5, most_rows=4))
    shards = []
    for number, spans in enumerate(plan):
        folder = tmp_path / f"train-{number:05d}"
        part = make_row_shard(folder, spans, 5, "uint16", {"ids": "x"})
        shards.append((folder, part))
    assert [part["rows"] for _, part in shards] == [4, 4, 4]
    out = tmp_path / "rows"
    write_dataset(out, {"train": shards, "validation": []}, length=5, dtype="uint16")

    expected = tmp_path / "expected"
    expected.mkdir()
    row = tfds.features.Tensor(shape=(5,), dtype=np.uint16, encoding="bytes")
    identity = tfds.core.DatasetIdentity(
        name="token_rows",
        version=tfds.core.Version("1.0.0"),
        data_dir=str(expected),
        module_name="biomedlm_jax.corpus.tokens",
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=tfds.features.FeaturesDict({"tokens": row})
    )
    writer = tfds.core.SequentialWriter(info, 4, file_format="array_record")
    writer.initialize_splits(["train", "validation"])
    writer.add_examples({"train": [{"tokens": row} for row in stream[:60].reshape(12, 5)]})
    writer.close_all()
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    assert len(names) == 5
    for name in names:
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.parametrize("length", [2, 110, 1024, 70_000])  # written in 1, 2 and 3 bytes
@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_records_of_any_length_are_those_of_tfds(tmp_path, length, dtype):
    stream = np.random.default_rng(0).integers(0, 2**16, 3 * length).astype(dtype)
    (tmp_path / "ids").write_bytes(stream.tobytes())
    spans = [(tmp_path / "ids", 0, stream.size)]
    part = make_row_shard(tmp_path / "shard", spans, length, dtype, {})
    tensor = tfds.features.Tensor(shape=(length,), dtype=np.dtype(dtype), encoding="bytes")
    features = tfds.features.FeaturesDict({"tokens": tensor})
    records = [features.serialize_example({"tokens": row}) for row in stream.reshape(3, length)]
    reader = ArrayRecordReader(str(tmp_path / "shard" / "rows.array_record"))
    assert reader.read([0, 1, 2]) == records
    assert part["bytes"] == sum(map(len, records))


def test_a_full_disk_is_an_error_of_the_operating_system(units, tmp_path):
    spans = next(plan_shards(units[1], length=5, most_rows=100))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # stands for a full disk
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as raised:
            make_row_shard(tmp_path / "shard", spans, 5, "uint16", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.errno == errno.EFBIG
    assert str(raised.value.filename).startswith(str(tmp_path))
    assert not list(tmp_path.glob("*shard*"))
