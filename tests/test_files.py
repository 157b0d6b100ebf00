"""files.py: what is written reads back, errors name the place, and no failure loses data."""

import bz2
import gzip
import json
import lzma
import os
import signal
import subprocess
from pathlib import Path

import pytest
import zstandard
from processes import run_process

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import (
    atomic_directory,
    check_output,
    content_hash,
    parse_object,
    read_json,
    read_jsonl,
    recover_directory,
    write_json,
    write_jsonl,
    write_text,
)
from biomedlm_jax.streams import read_lines

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "SHA256SUMS")


def fill(path: Path, content: str = "old") -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


def replaceable(path: Path) -> bool:
    return (path / "file").exists()


def test_json_reads_back_what_was_written(tmp_path):
    value = {
        "text": "é 漢字\u2028",
        "half": "a\udc80b\ud83e",
        "numbers": [1, 0.1, None],
        "nested": {"a": True},
    }
    path = tmp_path / "new" / "a.json"
    write_json(path, value)
    assert read_json(path) == value
    assert "漢字" in path.read_text(encoding="utf-8")
    assert names(path.parent) == ["a.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path, value):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"a": value})
    assert read_json(path) == {"a": 1}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("options", [{}, {"ensure_ascii": False}])
def test_jsonl_has_one_value_a_line_and_no_nan(tmp_path, options):
    path, rows = tmp_path / "new" / "a.jsonl", [{"a": "line\nbreak \u2028 µ"}, {}, {"b": [1.5]}]
    write_jsonl(path, iter(rows), **options)
    assert path.read_bytes().count(b"\n") == 3
    assert [row for _, row in read_jsonl(path)] == rows
    assert ("µ" in path.read_text(encoding="utf-8")) == bool(options)
    with pytest.raises(ValueError, match="JSON"):
        write_jsonl(path, [{}, {"a": float("nan")}])
    assert [row for _, row in read_jsonl(path)] == rows
    write_jsonl(path, [])
    assert path.read_bytes() == b""


def test_write_text_is_atomic_and_keeps_links(tmp_path, monkeypatch):
    path, link = tmp_path / "a.txt", tmp_path / "link"
    write_text(path, "one\n")
    link.symlink_to("a.txt")
    write_text(link, "two\r\n")
    assert link.is_symlink()
    assert path.read_bytes() == b"two\r\n"

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "three")
    assert path.read_bytes() == b"two\r\n"
    assert names(tmp_path) == ["a.txt", "link"]


def test_write_text_writes_to_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert names(tmp_path) == ["pipe"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"^f:7: expected a JSON object, got '' \(Expecting value\)$"),
        (b"[1]", r"^f:7: expected a JSON object, got JSON of type list$"),
        (b"no JSON", r"^f:7: expected a JSON object, got 'no JSON'"),
        (b'{"a":\n}', r"^f:7: expected .* in line 2 \(Expecting value\)$"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', r"^f:7: got the key 'c' twice"),
        (b'{"a": "\xff"}', r"^f:7: .*can't decode byte 0xff"),
        (b'{"a": ' + b"[" * 100_000, r"^f:7: .*recursion"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"^f:7: .*4300 digits"),
    ],
)
def test_bad_objects_are_one_line_that_names_the_place(raw, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_object(raw, "f:7")
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_allowed():
    assert parse_object(b'\xef\xbb\xbf{"a": 1}', "") == {"a": 1}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_jsonl_reads_back_what_was_written(tmp_path, suffix):
    objects = [{"text": text} for text in ("a", "b\u2028c\x85d", "x" * 300_000)]
    lines = [json.dumps(value, ensure_ascii=False) for value in objects]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix]("\n \r\n".join(lines).encode()))
    places = [f"{path}:{number}" for number in (1, 3, 5)]
    assert list(read_jsonl(path)) == list(zip(places, objects, strict=True))


def test_the_line_with_the_error_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2,}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:3: expected a JSON object"):
        list(read_jsonl(path))


def test_missing_files(tmp_path):
    for read in (read_json, lambda path: list(read_lines(path))):
        with pytest.raises(InputError, match=r"no such file: .*nowhere"):
            read(tmp_path / "nowhere")
        with pytest.raises(InputError, match="is a directory; name a file"):
            read(tmp_path)


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
from biomedlm_jax.files import atomic_directory
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


def test_content_hashes_follow_the_content():
    assert content_hash({"a": [1, 2], "b": 3}) == content_hash({"b": 3, "a": [1, 2]})
    assert content_hash([[1], [2]]) != content_hash([[1, 2]])
