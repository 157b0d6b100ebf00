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
