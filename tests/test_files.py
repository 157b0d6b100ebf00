"""files.py: what is written reads back, errors name the place, and no failure loses data."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pytest
import zstandard

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import (
    content_hash,
    parse_object,
    read_json,
    read_jsonl,
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
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path, value):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, {"a": value})
    assert read_json(path) == {"a": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json"]


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "link"]


def test_write_text_writes_to_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe"]


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


def test_content_hashes_follow_the_content():
    assert content_hash({"a": [1, 2], "b": 3}) == content_hash({"b": 3, "a": [1, 2]})
    assert content_hash([[1], [2]]) != content_hash([[1, 2]])
