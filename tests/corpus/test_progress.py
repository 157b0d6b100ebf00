"""progress.py: reports while the block runs, and none afterwards."""

import threading
import time

import pytest

from biomedlm_jax.corpus import progress


def test_reports_while_the_block_runs(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.001)
    three, reports = threading.Event(), []

    def report():
        reports.append(threading.current_thread())
        if len(reports) == 3:
            three.set()

    with progress.report_regularly(report):
        assert three.wait(10)
    count = len(reports)
    time.sleep(0.02)
    assert len(reports) == count
    assert threading.main_thread() not in reports


def test_the_time_that_is_left(monkeypatch):
    clock = iter(range(0, 10_000, 5))
    left = progress.Remaining(clock=lambda: next(clock))
    # What is there at the start, of an earlier call, took no time of this one.
    texts = [left.text(done, 1000) for done in (500, 510, 520, 530, 530)]
    assert texts == ["", *(f", 0:0{n} left" for n in ("4:05", "4:00", "3:55", "3:55"))]
    assert left.text(1000, 1000) == ""


def test_lines_follow_each_other_where_there_is_no_terminal(capsys):
    with progress.progress_line() as show:
        show("5 s  read")
        show("10 s  " + "x" * 200)
    assert capsys.readouterr().err == "5 s  read\n10 s  " + "x" * 200 + "\n"


def test_an_error_ends_the_reports(monkeypatch):
    threads = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt), progress.report_regularly(lambda: None):
        raise KeyboardInterrupt
    assert set(threading.enumerate()) <= threads  # those of other tests may end meanwhile
