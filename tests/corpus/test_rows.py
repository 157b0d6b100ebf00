"""rows.py: random access equals what TFDS reads; every damage is one line that names the file."""

import errno
import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from corpus.conftest import flip, forget_files, make_documents, shard_of, value_or_line

from biomedlm_jax.corpus import tokens
from biomedlm_jax.corpus.rows import Rows
from biomedlm_jax.corpus.tokens import build_tokens
from biomedlm_jax.errors import InputError


def test_rows_are_read_in_any_order_and_by_tfds_alone(build, out):
    manifest = build()
    rows = Rows(out, "train")
    everything = np.stack(list(rows))
    assert rows.manifest == manifest
    assert everything.shape == (len(rows), 16) == (manifest["splits"]["train"]["rows"], 16)
    order = random.Random(0).choices(range(len(rows)), k=50)
    assert np.array_equal(rows.__getitems__(order), everything[order])
    assert np.array_equal(rows[-1], everything[-1])
    assert rows.__getitems__([]).shape == (0, 16)
    for index in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            rows[index]
    builder: Any = tfds.builder_from_directory(str(out / "rows"))
    source = builder.as_data_source("train")
    assert np.array_equal([record["tokens"] for record in source], everything)


def test_a_split_without_rows(build, out):
    build(validation_fraction=0)
    assert list(Rows(out, "validation")) == []


def read_all(out: Path, *splits: str) -> dict[str, np.ndarray]:
    """All rows of the splits (none: both), opened anew."""
    rows = {split: Rows(out, split) for split in splits or ("train", "validation")}
    return {split: some.__getitems__(range(len(some))) for split, some in rows.items()}


def refused(out: Path, file: Path, *, reason: str = "") -> str:
    """Check that reading ends with the one line of damage, about this file."""
    with pytest.raises(InputError) as error:
        read_all(out)
    line = str(error.value)
    assert line.startswith(str(file)), line
    assert "\n" not in line
    assert line.endswith(("; copy it again, or build the token rows again", "; remove it"))
    assert re.search(reason, line), line
    return line


def edit(file: Path, change) -> None:
    file.write_text(change(file.read_text()))


def test_an_unknown_split_and_an_id_beyond_the_vocabulary(build, out):
    build()
    with pytest.raises(InputError, match="got the split 'test'; expected one of train, validation"):
        Rows(out, "test")
    rows = Rows(out, "train")
    rows.manifest["vocab_size"] = 299  # the rows hold 299, the end of text
    with pytest.raises(InputError, match="token id 299, but its vocabulary has 299 entries"):
        rows.__getitems__(range(len(rows)))


BLOCK = 1 << 16
REGIONS = {  # of a shard: a block header each 64 KiB, then chunks, each with a header of 40 bytes
    "hash of the first chunk's header": lambda content: 64,
    "first chunk's size": lambda content: 64 + 9,
    "first record": lambda content: 64 + 40 + 20,
    "a record in the middle": lambda content: len(content) // 2 + 1000,
    "hash of a block's header in the middle": lambda content: 3 * BLOCK,
    "index of the records": lambda content: len(content[:-BLOCK].rstrip(b"\0")) - 300,
    "postscript": lambda content: len(content) - BLOCK + 64 + 45,
}


@pytest.mark.parametrize("bit", [0, 5])
@pytest.mark.parametrize("region", REGIONS)
def test_a_flipped_bit_in_each_region_of_a_shard(damageable, region, bit):
    shard = shard_of(damageable)
    content = shard.read_bytes()
    assert len(content) == 8 * BLOCK
    flip(shard, REGIONS[region](content), bit)
    refused(damageable, shard, reason="is (damaged|not the file)")


def test_no_flipped_bit_is_a_wrong_row(damageable):
    """Bits that no reader needs (padding, signature) may be flipped; no other may."""
    before = read_all(damageable)["validation"]
    shard = shard_of(damageable, "validation")
    content, rng, refusals = shard.read_bytes(), random.Random(0), 0
    used = len(content[:-BLOCK].rstrip(b"\0"))
    for _ in range(60):
        byte = rng.choice((rng.randrange(used), len(content) - BLOCK + rng.randrange(200)))
        flip(shard, byte, rng.randrange(8))
        got, line = value_or_line(lambda: read_all(damageable, "validation")["validation"])
        assert line.startswith(str(shard)) or np.array_equal(got, before)
        refusals += bool(line)
        shard.write_bytes(content)
    assert refusals > 40


@pytest.mark.parametrize(
    "size", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK, 7 * BLOCK + 100, -1, BLOCK * 9]
)
def test_a_shard_of_another_size(damageable, size):
    shard = shard_of(damageable)
    content = shard.read_bytes()
    shard.write_bytes((content + bytes(BLOCK))[:size])
    line = refused(damageable, shard)
    if "files" in json.loads((damageable / "manifest.json").read_text()):
        assert f"has {shard.stat().st_size:,} bytes instead of 524,288;" in line
        with pytest.raises(InputError, match="bytes instead of"):
            Rows(damageable, "validation")  # of the other split, on opening


def test_a_missing_and_an_additional_file(damageable):
    directory = damageable / "rows"
    for file in sorted(directory.iterdir()):
        content = file.read_bytes()
        file.unlink()
        refused(damageable, file, reason="is missing")
        with pytest.raises(InputError, match=f"{file.name} is missing"):
            Rows(damageable, "train")
        file.write_bytes(content)
    more = shutil.copy(shard_of(damageable), directory / "token_rows-train.array_record-00001")
    refused(damageable, more, reason="is not a file of these token rows; remove it")
    more.unlink()
    (directory / ".nfs0001").touch()  # of the file system and of tools that copy
    (directory / ".token_rows-train.array_record-00000.x7f").touch()
    read_all(damageable)
    shutil.rmtree(directory)
    refused(damageable, directory, reason="is missing")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dataset_info.json", lambda text: ""),
        ("dataset_info.json", lambda text: text[:-5]),
        ("dataset_info.json", lambda text: "[]"),
        ("dataset_info.json", lambda text: "{}"),
        ("dataset_info.json", lambda text: text.replace('"2558"', '"2559"')),
        ("dataset_info.json", lambda text: text.replace('"2558"', '"2557"')),
        ("dataset_info.json", lambda text: text.replace('"2558"', '"x"')),
        ("dataset_info.json", lambda text: text.replace('"train"', '"trainx"')),
        ("dataset_info.json", lambda text: text.replace("array_record", "tfrecord")),
        ("features.json", lambda text: ""),
        ("features.json", lambda text: text[:-5]),
        ("features.json", lambda text: text.replace("uint16", "uint32")),
        ("features.json", lambda text: text.replace('"64"', '"32"')),
        ("features.json", lambda text: text.replace('"tokens"', '"token"')),
        ("features.json", lambda text: text.replace("tensor_feature.Tensor", "no.Tensor")),
    ],
)
def test_changed_metadata(damageable, name, change):
    file = damageable / "rows" / name
    assert change(file.read_text()) != file.read_text()
    edit(file, change)
    line = refused(damageable, damageable / "rows")
    assert name in line


def test_other_metadata_of_equal_size_is_refused_if_the_manifest_lists_it(large_rows, tmp_path):
    out = shutil.copytree(large_rows, tmp_path / "tokens")
    edit(out / "rows" / "dataset_info.json", lambda text: text.replace("1.0.0", "1.0.1"))
    line = refused(out, out / "rows" / "dataset_info.json", reason="is not the file that was built")
    assert line.endswith("; copy it again, or build the token rows again")


def test_a_shard_of_another_build(build, out, documents, tmp_path):
    build(tmp_path / "other", texts=documents[:100], validation_fraction=0)
    build(validation_fraction=0)
    shutil.copy(shard_of(tmp_path / "other"), shard_of(out))
    refused(out, shard_of(out), reason="bytes instead of|is not the file")
    forget_files(out)
    assert "is damaged" in refused(out, shard_of(out))  # it has fewer rows


def test_a_shard_of_another_build_of_equal_size(small_tokenizer, out, tmp_path):
    """Its records are whole, and there are as many: only the manifest's list refuses it."""
    texts = [document for document in make_documents(300) if len(document.text) > 50]
    for path, order in ((out, texts), (tmp_path / "other", texts[::-1])):
        build_tokens(order, small_tokenizer, path, length=16, validation_fraction=0)
    ours, theirs = shard_of(out), shard_of(tmp_path / "other")
    assert ours.stat().st_size == theirs.stat().st_size
    shutil.copy(theirs, ours)
    rows = Rows(out, "train")  # reads no shard
    for _ in range(2):
        with pytest.raises(InputError, match=f"{ours.name} is not the file that was built with"):
            rows[0]


def storage_error(out: Path, file: Path) -> int:
    """Check that reading ends with an OSError about this file, and return its number."""
    with pytest.raises(OSError, match=re.escape(f"{file}")) as error:
        read_all(out)
    assert error.value.filename == str(file)
    return error.value.errno


def test_errors_of_the_storage_are_os_errors(damageable, monkeypatch):
    """A restart may help, so they are no InputError."""
    shard = shard_of(damageable)
    kept = shard.rename(shard.with_name(".kept"))
    shard.symlink_to(shard)
    assert storage_error(damageable, shard) == errno.ELOOP
    shard.unlink()
    shard.mkdir()  # no restart makes a file of it
    refused(damageable, shard, reason="is missing|instead of")
    shard.rmdir()
    kept.rename(shard)

    rows = Rows(damageable, "train")
    for times, error, message in (
        (1, OSError(errno.ESTALE, "stale"), r"rows could not be read at first \(.*stale\), but th"),
        (2, RuntimeError("pread() failed"), r"rows could not be read at first \(pread"),
        (9, OSError(errno.ENOTCONN, "not connected"), "not connected"),
        (9, TimeoutError("late"), "late"),
    ):
        left = iter(range(times))
        fail_while(left, error, monkeypatch)
        with pytest.raises(OSError, match=message) as caught:
            rows[0]
        assert caught.value.filename == str(damageable / "rows" if times < 3 else shard)
        monkeypatch.undo()
        assert len(rows[0]) == 64  # it works again


def fail_while(left: Iterator, error: Exception, monkeypatch) -> None:
    """Let ArrayRecord raise `error` as long as `left` has elements."""
    for name in ("__getitem__", "__getitems__"):
        original = getattr(ArrayRecordDataSource, name)

        def failing(self, keys, read=original):
            if next(left, None) is not None:
                raise error
            return read(self, keys)

        monkeypatch.setattr(ArrayRecordDataSource, name, failing)


@pytest.mark.parametrize("name", ["manifest.json", "rows/features.json", "shard"])
def test_a_file_that_the_kernel_cannot_read(large_rows, tmp_path, name):
    """/proc/self/mem gives EIO for its first byte, as a bad disk does."""
    out = shutil.copytree(large_rows, tmp_path / "tokens")
    forget_files(out)  # which would refuse its size
    file = shard_of(out) if name == "shard" else out / name
    file.unlink()
    file.symlink_to("/proc/self/mem")
    assert storage_error(out, file) == errno.EIO


def test_only_the_shard_that_fails_is_read_again(build, out, monkeypatch):
    monkeypatch.setattr(tokens, "SHARD_BYTES", 64 * 32)
    build(validation_fraction=0)
    shards = sorted((out / "rows").glob("*train*"))
    assert len(shards) > 5
    flip(shards[3], 150)
    with pytest.raises(InputError, match=f"{shards[3].name} is not the file"):
        read_all(out)
    forget_files(out)
    rows, opened, open_ = Rows(out, "train"), [], Path.open
    monkeypatch.setattr(Path, "open", lambda file, *a: opened.append(file) or open_(file, *a))
    with pytest.raises(InputError, match=f"{shards[3].name} is damaged"):
        rows.__getitems__(range(len(rows)))
    assert opened == [shards[3]]


def test_a_shard_that_vanishes_and_comes_back(damageable):
    rows, shard = Rows(damageable, "train"), shard_of(damageable)
    kept = shard.rename(shard.with_name(".kept"))
    with pytest.raises(InputError, match=f"{shard.name} is missing; copy it again"):
        rows[0]
    kept.rename(shard)
    assert np.array_equal(rows[0], read_all(damageable)["train"][0])
