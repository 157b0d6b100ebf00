"""integrity.py: SHA256SUMS are those of sha256sum(1), and every change of a file is found."""

import hashlib
import subprocess

import pytest
from gcs import bucket, gcs_server  # noqa: F401

from biomedlm_jax.buckets import as_path
from biomedlm_jax.errors import InputError
from biomedlm_jax.integrity import SUMS, damage, has_sums, read_sums, write_sums

CONTENT = {"a.json": b"{}", "d/b": bytes(2**21 + 5), "d/e/c": b"", "d/é x": b"y\n"}
MARKS = {"_CHECKPOINT_METADATA": b"{}", "commit_success.txt": b"done"}


@pytest.fixture(params=["local", "bucket"])
def directory(request, tmp_path):
    path = tmp_path / "dir"
    if request.param == "bucket":
        path = as_path(request.getfixturevalue("bucket")) / "dir"
    for name, content in {**CONTENT, **MARKS}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    write_sums(path)
    return path


def test_the_hashes_are_those_of_the_files(directory):
    assert has_sums(directory)
    wanted = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    assert read_sums(directory) == wanted
    assert damage(directory) == []


def test_sha256sum_verifies_it(tmp_path):
    for name, content in CONTENT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_sums(tmp_path)
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path, check=True)
    (tmp_path / "d/b").write_bytes(b"")
    assert subprocess.run(["sha256sum", "--check", SUMS], cwd=tmp_path).returncode == 1


def test_marks_that_orbax_writes_later_are_not_hashed(directory):
    for name in MARKS:
        (directory / name).write_bytes(b"changed")
    assert damage(directory) == []


@pytest.mark.parametrize("place", [0, 2**20, 2**21 + 4])
def test_a_flipped_bit_is_named(directory, place):
    content = bytearray(CONTENT["d/b"])
    content[place] ^= 1
    (directory / "d/b").write_bytes(bytes(content))
    assert damage(directory) == ["d/b was changed after it was written"]


def test_what_is_missing_cut_off_or_additional_is_named(directory):
    (directory / "a.json").unlink()
    (directory / "d/b").write_bytes(CONTENT["d/b"][:-1])
    (directory / "d/f").write_bytes(b"new")
    assert damage(directory) == [
        "a.json is missing",
        "d/b was changed after it was written",
        f"d/f is not in {SUMS}",
    ]
    assert len(damage(directory, complete=False)) == 2
    assert damage(directory, of=lambda name: name.startswith("d/e")) == []


def test_processes_share_the_work_and_find_all_of_it(directory):
    for name in CONTENT:
        (directory / name).write_bytes(b"changed")
    shares = [damage(directory, share=(i, 3)) for i in range(3)]
    assert sorted(line.partition(" was")[0] for share in shares for line in share) == [*CONTENT]
    assert max(map(len, shares)) == 2


@pytest.mark.parametrize("damaged", [b"", b"0123  a.json\n", b"x" * 64 + b"  a.json\n", b"\xff\n"])
def test_damaged_hashes_are_damage(directory, damaged):
    (directory / SUMS).write_bytes(damaged)
    (problem,) = damage(directory)
    assert SUMS in problem
    if damaged:
        with pytest.raises(InputError, match="is damaged: got the line"):
            read_sums(directory)


def test_hashes_that_were_cut_off_are_damage(directory):
    lines = (directory / SUMS).read_bytes().splitlines(keepends=True)
    (directory / SUMS).write_bytes(b"".join(lines[:-1]) + lines[-1][:70])
    assert any(SUMS in problem for problem in damage(directory))
