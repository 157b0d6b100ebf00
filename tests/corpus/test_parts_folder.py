import fcntl
import json
import os

import pytest

from biomedlm_jax.corpus.parts_folder import (
    locked_parts_folder,
    make_once,
    parts_folder,
    remove_other_parts,
    unfinished,
)
from biomedlm_jax.errors import InputError


def interrupt(finished, out):
    with locked_parts_folder(out, "it") as folder:
        for number in range(finished):
            make_once(folder / f"{number}", {}, lambda new: {})
        (folder / ".other").mkdir()  # of a process that was killed
        raise KeyboardInterrupt


def test_the_folder_is_beside_the_output_until_that_is_complete(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert parts_folder(tmp_path / "link") == tmp_path / ".real.parts"
    with locked_parts_folder(tmp_path / "deep" / "a", "it") as folder:
        make_once(folder / "part", {}, lambda new: {})
    assert list((tmp_path / "deep").iterdir()) == []
    for finished, note in ((0, None), (1, "1 finished part in"), (2, "2 finished parts in")):
        folder = parts_folder(tmp_path / "a")
        with pytest.raises(KeyboardInterrupt) as caught:
            interrupt(finished, tmp_path / "a")
        notes = [f"kept: {note} {folder}; the same command continues with them"]
        assert getattr(caught.value, "__notes__", []) == notes * bool(note)
        assert folder.exists() == bool(note)
        assert not (folder / ".other").exists()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    message = r"another process builds these rows; .*\.a\.parts is locked"
    with (
        pytest.raises(InputError, match=message),
        locked_parts_folder(tmp_path / "a", "these rows"),
    ):
        pytest.fail("two processes have the folder")
    os.close(descriptor)


def test_a_part_is_made_once_and_again_if_it_is_damaged_or_of_something_else(tmp_path):
    made = []

    def write(folder):
        made.append(folder)
        (folder / "data").write_bytes(b"abc")
        return {"count": len(made)}

    part = make_once(tmp_path / "part", {"of": [1, 2]}, write)
    assert (
        part == {"of": [1, 2], "count": 1} == json.loads((tmp_path / "part/part.json").read_text())
    )
    assert make_once(tmp_path / "part", {"of": [1, 2]}, write) == part
    (tmp_path / "part" / "data").write_bytes(b"abd")
    assert make_once(tmp_path / "part", {"of": [1, 2]}, write)["count"] == 2
    (tmp_path / "part" / "SHA256SUMS").unlink()
    assert make_once(tmp_path / "part", {"of": [1, 2]}, write)["count"] == 3
    assert make_once(tmp_path / "part", {"of": [1, 3]}, write)["count"] == 4
    with pytest.raises(KeyboardInterrupt):
        make_once(tmp_path / "other", {}, lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_two_processes_may_make_the_same_part(tmp_path):
    def write(folder):
        assert list(unfinished(tmp_path)) == [folder]
        make_once(tmp_path / "part", {}, lambda other: {"by": "the other"})
        return {"by": "this one"}

    assert make_once(tmp_path / "part", {}, write) == {"by": "this one"}
    assert json.loads((tmp_path / "part/part.json").read_text()) == {"by": "the other"}
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_other_parts_are_removed(tmp_path):
    for name in ("kept", "old", ".kept.0"):
        (tmp_path / name).mkdir()
    (tmp_path / ".documents.0").touch()  # of a shard that was being written
    remove_other_parts(tmp_path, {"kept"})
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
