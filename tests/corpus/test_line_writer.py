import json

import pytest
import zstandard

from biomedlm_jax.corpus.line_writer import LineWriter
from biomedlm_jax.errors import InputError
from biomedlm_jax.streams import read_lines


def write(path, rows):
    with LineWriter(path) as lines:
        for row in rows:
            lines.add(row)
    assert lines.lines == len(rows)
    return path.read_bytes()


def test_lines_come_back_and_equal_lines_give_equal_bytes(tmp_path):
    rows = [{"n": n, "text": "é\u2028\ud800" * 30 + "x" * (n % 977)} for n in range(4000)]
    content = write(tmp_path / "a.jsonl.zst", rows)
    assert [json.loads(line) for _, line in read_lines(tmp_path / "a.jsonl.zst")] == rows
    assert write(tmp_path / "b.jsonl.zst", rows) == content
    text = zstandard.ZstdDecompressor().stream_reader(content).read()
    assert text.count(b"\n") == 4000
    assert write(tmp_path / "c.jsonl.zst", [])
    assert [*read_lines(tmp_path / "c.jsonl.zst")] == []


def test_a_file_is_not_complete_after_an_error(tmp_path):
    writer = LineWriter(tmp_path / "a.zst")
    writer.__enter__().add({"n": 1})
    error = OSError("full")
    writer.__exit__(OSError, error, None)
    with pytest.raises(InputError, match=r"a\.zst"):  # it has no end
        list(read_lines(tmp_path / "a.zst"))
