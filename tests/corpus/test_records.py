"""records.py: an array is cut into the items that json.loads returns, in linear time."""

import json
import random
import time

import pytest

from biomedlm_jax.corpus.records import read_json_records, read_whole


def test_items_are_those_of_json_loads_wherever_the_blocks_end(tmp_path, monkeypatch):
    rng = random.Random(0)
    values = [
        {"k": "".join(rng.choices('a"\\\\[]{},é漢\n', k=rng.randrange(60))), "n": [i, {}]}
        for i in range(300)
    ]
    path = tmp_path / "a.json"
    for indent in (None, 1):
        path.write_text(json.dumps(values, indent=indent, ensure_ascii=False), encoding="utf-8")
        for block in (1, 7, 1000):
            monkeypatch.setattr("biomedlm_jax.streams._BLOCK", block)
            records = list(read_json_records(path, limit=1000, on_long=None))
            assert [json.loads(raw) for _, raw in records] == values
            whole = path.read_text(encoding="utf-8").split("\n")
            assert all(indent is None or whole[line - 1] == " {" for line, _ in records)


def test_a_large_item_takes_linear_time(tmp_path):
    path, seconds = tmp_path / "a.json", []
    for size in (4_000_000, 40_000_000):
        path.write_text(json.dumps([{"text": "x" * size}]))
        times = []
        for _ in range(3):  # the shortest: other processes disturb
            start = time.process_time()
            ((line, raw),) = read_json_records(path, limit=1 << 28, on_long=None)
            times.append(time.process_time() - start)
            assert (line, len(raw)) == (1, size + 12)
        seconds.append(min(times))
    assert seconds[1] < 30 * max(seconds[0], 0.01)


def test_the_whole_of_a_file_has_a_limit(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"12345")
    assert read_whole(path, limit=5) == b"12345"
    with pytest.raises(ValueError, match=r"a\.txt:1: the document is longer than 4 bytes"):
        read_whole(path, limit=4)
