import numpy as np
import pytest

from biomedlm_jax.corpus import sorted_runs
from biomedlm_jax.corpus.sorted_runs import groups, ranges, read_range, repeated, write_run


def test_each_key_is_in_one_range_with_all_its_records(tmp_path, monkeypatch):
    monkeypatch.setattr(sorted_runs, "JOINED", 300)
    random = np.random.default_rng(0)
    keys = random.choice(random.integers(1, 2**64, 900, np.uint64), 2000)
    keys[[5, 700, 1999]] = 2**64 - 1, 2**64 - 1, 0
    records = np.arange(2000, dtype=np.uint32)
    for number, first in enumerate((0, 700, 700, 1500)):  # the second is empty
        end = (700, 700, 1500, 2000)[number]
        rows = {"key": keys[first:end], "record": records[first:end]}
        write_run(tmp_path, "name", number, rows)
    within = ranges(2000)
    assert len(within) == 7
    assert (within[0][0], within[-1][1]) == (0, 2**64)
    parts = [read_range(tmp_path, "name", 4, one, ("record",)) for one in within]
    assert max(len(part["key"]) for part in parts) < 450
    order = np.lexsort((records, keys))
    assert np.concatenate([part["record"] for part in parts]).tolist() == order.tolist()
    assert np.concatenate([part["key"] for part in parts]).tolist() == keys[order].tolist()


def test_an_empty_range_and_no_keys(tmp_path):
    write_run(tmp_path, "x", 0, {"key": np.empty(0, np.uint64), "record": np.empty(0, np.uint32)})
    assert ranges(0) == [(0, 2**64)]
    rows = read_range(tmp_path, "x", 1, (0, 2**64), ("record",))
    assert repeated(rows)["record"].tolist() == []
    assert not list(tmp_path.glob(".*"))


def test_few_keys_have_several_ranges():
    counts = [len(ranges(keys)) for keys in (1 << 18, (1 << 18) + 1, 1 << 22, 1 << 26, 1 << 28)]
    assert counts == [1, 2, 16, 16, 64]


@pytest.mark.parametrize("keys", [[], [3], [3, 3], [1, 2, 2, 5, 7, 7, 7]])
def test_rows_whose_key_another_has(keys):
    keys = np.array(keys, np.uint64)
    got = repeated({"key": keys, "record": np.arange(len(keys))})
    several = [i for i, key in enumerate(keys) if (keys == key).sum() > 1]
    assert got["record"].tolist() == several
    names = np.unique(keys[several]).tolist()
    assert got["group"].tolist() == [names.index(key) for key in got["key"].tolist()]
    assert groups(keys).tolist() == [np.unique(keys).tolist().index(key) for key in keys.tolist()]
