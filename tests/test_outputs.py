"""outputs.py: a directory appears whole, and no failure loses the old one."""

import gc
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import run_process

from biomedlm_jax.errors import InputError
from biomedlm_jax.outputs import (
    atomic_directory,
    atomic_file,
    check_output,
    exit_on_sigterm,
    recover_directory,
)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "SHA256SUMS")


def fill(path: Path, content: str = "old") -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


def replaceable(path: Path) -> bool:
    return (path / "file").exists()


def test_a_directory_appears_whole(tmp_path):
    path = tmp_path / "deep" / "new"
    with atomic_directory(path, replaceable=replaceable, overwrite=False) as new:
        (new / "file").write_text("x")
        assert not path.exists()
    assert names(path) == ["file"]
    assert names(path.parent) == ["new"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_lost_after_an_error(tmp_path, error):
    path = fill(tmp_path / "old")

    def fail(target):
        with atomic_directory(target, replaceable=replaceable, overwrite=True) as new:
            (new / "half").write_text("x")
            raise error

    for target in (path, tmp_path / "new"):
        with pytest.raises(error):
            fail(target)
    assert names(tmp_path) == ["old"]
    assert names(path) == ["file"]


def test_the_old_directory_is_restored_when_the_last_rename_fails(tmp_path, monkeypatch):
    path = fill(tmp_path / "old")
    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(".new"):
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    build = atomic_directory(path, replaceable=replaceable, overwrite=True)
    with pytest.raises(OSError, match="disk gone"), build:
        pass
    assert names(tmp_path) == ["old"]
    assert (path / "file").read_text() == "old"


def test_a_directory_killed_between_the_renames_is_recovered(tmp_path):
    path = fill(tmp_path / "run[1]")
    recover_directory(path)  # nothing to do
    path.rename(tmp_path / ".run[1].123.old")
    recover_directory(path)
    assert names(tmp_path) == ["run[1]"]
    assert (path / "file").read_text() == "old"
    recover_directory(tmp_path / "nowhere")
    assert names(tmp_path) == ["run[1]"]


def test_only_a_replaceable_directory_is_overwritten(tmp_path):
    path, other = fill(tmp_path / "old"), tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    for target, overwrite, error, message in (
        (path, False, InputError, "exists; name another directory, or pass --overwrite"),
        (other, True, InputError, "something else, which is never overwritten"),
        (other / "thesis.txt", True, InputError, "is a file; name a directory"),
    ):
        with pytest.raises(error, match=message):
            check_output(target, replaceable=replaceable, overwrite=overwrite)
        with pytest.raises(error, match=message):
            atomic_directory(target, replaceable=replaceable, overwrite=overwrite).__enter__()
    with atomic_directory(path, replaceable=replaceable, overwrite=True) as new:
        (new / "only").write_text("x")
    assert names(path) == ["only"]
    assert names(tmp_path) == ["old", "other"]


def test_what_appears_in_the_meantime_is_not_replaced(tmp_path):
    path = tmp_path / "new"
    build = atomic_directory(path, replaceable=replaceable, overwrite=False)
    with pytest.raises(InputError), build:
        fill(path, "another process")
    assert (path / "file").read_text() == "another process"
    assert names(tmp_path) == ["new"]


def test_an_empty_directory_and_the_target_of_a_link_are_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with atomic_directory(tmp_path / "link", replaceable=replaceable, overwrite=False) as new:
        (new / "file").write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "empty") == ["file"]


KILLED = """
import os, pathlib, signal, sys
from biomedlm_jax.outputs import atomic_directory
with atomic_directory(sys.argv[1], replaceable=lambda path: True, overwrite=True) as new:
    (new / "half").write_text("x")
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""


def killed(path, name: str) -> int:
    return run_process(["-c", KILLED, path, name]).returncode


def test_sigterm_cleans_up_and_the_next_build_removes_what_sigkill_left(tmp_path):
    path = fill(tmp_path / "old")
    assert killed(path, "SIGTERM") == 128 + 15
    assert names(tmp_path) == ["old"]
    assert killed(path, "SIGKILL") == -9
    assert len(list(tmp_path.iterdir())) == 2
    mine = tmp_path / ".old.1.new"  # of a process that lives
    mine.mkdir()
    (tmp_path / ".old.x.new").mkdir()  # not one of ours
    with atomic_directory(path, replaceable=replaceable, overwrite=True) as new:
        (new / "file").write_text("new")
    assert sorted(names(tmp_path)) == [".old.1.new", ".old.x.new", "old"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_build_killed_between_its_renames_is_restored_by_the_next(tmp_path):
    path = fill(tmp_path / "rows")
    child = subprocess.Popen(["true"])
    child.wait()  # a process that lives no more
    path.rename(tmp_path / f".rows.{child.pid}.old")
    (tmp_path / f".rows.{child.pid}.new").mkdir()
    build = atomic_directory(path, replaceable=replaceable, overwrite=False)
    with pytest.raises(InputError, match="pass --overwrite"), build:
        pass
    assert names(tmp_path) == ["rows"]
    assert (path / "file").read_text() == "old"


def write_file(path, content, *, overwrite=False, then=lambda: None) -> None:
    with atomic_file(path, overwrite=overwrite) as new:
        new.write_bytes(content)
        then()


def test_a_file_is_replaced_in_one_step(tmp_path):
    path, other, link = (tmp_path / name for name in ("x.gguf", "other", "link"))
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = tmp_path / f".x.gguf.{process.pid}.new"  # of a process that was killed
    left.write_bytes(b"half")

    def nothing_yet():
        assert not path.exists()
        assert not left.exists()

    def interrupted():
        raise KeyboardInterrupt

    write_file(path, b"one", then=nothing_yet)
    with pytest.raises(InputError, match="exists; name another file, or pass --overwrite"):
        write_file(path, b"two", then=interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, b"two", overwrite=True, then=interrupted)
    with pytest.raises(InputError, match="exists"):
        write_file(other, b"three", then=lambda: other.write_bytes(b"another process's"))
    with pytest.raises(InputError, match="is a directory; name a file"):
        write_file(tmp_path, b"four", overwrite=True)
    left = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    assert left == {"x.gguf": b"one", "other": b"another process's"}
    link.symlink_to(path)
    write_file(link, b"four", overwrite=True)
    assert link.is_symlink()
    assert path.read_bytes() == b"four"


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_in_a_callback_of_the_collector_is_not_lost(number, error):
    signals = [number]

    def callback(*_):
        if signals:
            signal.raise_signal(signals.pop())  # Python ignores what a callback raises

    def work():
        gc.collect()
        assert not signals
        time.sleep(9)

    # A shell that starts a command with & lets it ignore SIGINT, which Python inherits.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.callbacks.append(callback)
    try:
        with pytest.raises(error), exit_on_sigterm():
            work()
    finally:
        gc.callbacks.remove(callback)
        signal.signal(signal.SIGINT, before)
