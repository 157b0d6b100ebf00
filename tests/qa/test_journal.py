"""journal.py: results that are kept, and the printed time left."""

import numpy as np

from biomedlm_jax.qa import journal
from biomedlm_jax.qa.journal import Journal

PAIR = np.arange(6.0).reshape(2, 3), np.array([[True, False]])


def test_results_are_kept_for_the_same_start_and_content(tmp_path):
    folder, lines = tmp_path / "partial", []
    first = Journal(folder, start=["weights", "float32"])
    first.begin(["prompts"], total=10)
    assert first.read(0) is None
    first.write(0, PAIR, size=5, new=True)
    first.write(1, PAIR[0], size=5, new=True)
    again = Journal(folder, start=["weights", "float32"], notify=lines.append)
    again.begin(["prompts"], total=10)
    for kept, array in zip(again.read(0), PAIR, strict=True):
        np.testing.assert_array_equal(kept, array)
        assert kept.dtype == array.dtype
    np.testing.assert_array_equal(again.read(1), PAIR[0])
    assert again.read(2) is None
    assert lines == ["resuming an interrupted evaluation"]
    for start, content in ((["others", "float32"], ["prompts"]), (["weights", "float32"], ["p"])):
        other = Journal(folder, start=start)
        other.begin(content, total=10)
        assert other.read(0) is None
    again.remove()
    assert not folder.exists()


def test_batches_of_this_run_are_not_resumed(tmp_path):
    lines: list[str] = []
    one = Journal(tmp_path, notify=lines.append)
    for _ in range(2):
        one.begin([], total=1)
        one.write(0, PAIR, size=1, new=one.read(0) is None)
    assert lines == []


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    one = Journal(tmp_path)
    one.begin([], total=1)
    one.write(0, PAIR, size=1, new=True)
    one.remove()
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"


def test_the_time_left(monkeypatch):
    clock, lines = [0.0], []
    monkeypatch.setattr(journal.time, "monotonic", lambda: clock[0])
    one = Journal(notify=lines.append)
    one.begin([], total=100)
    one.write(0, PAIR, size=20, new=False)  # from before: no measure of the speed
    for seconds in (5, 11, 15, 30):
        clock[0] = seconds
        one.write(1, PAIR, size=10, new=True)
    # 20 positions in 11 s: 60 more take 33 s; 40 in 30 s: 40 more take 30 s.
    assert lines == ["40% scored, 0:00:33 left", "60% scored, 0:00:30 left"]


def test_a_damaged_batch_is_scored_again(tmp_path):
    """A file system may lose the content of a renamed file when the machine fails."""
    lines: list[str] = []
    one = Journal(tmp_path, notify=lines.append)
    one.begin([], total=1)
    one.write(0, PAIR, size=1, new=True)
    (file,) = tmp_path.rglob("*.npz")
    whole = file.read_bytes()
    flipped = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], flipped, whole[:4]):
        file.write_bytes(damaged)
        assert one.read(0) is None
        assert str(file) in lines.pop()
    file.write_bytes(whole)
    np.testing.assert_array_equal(one.read(0)[0], PAIR[0])
