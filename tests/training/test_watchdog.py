"""The end of a process that resets no timer; tests/faults/test_hang.py has that of a run."""

import contextlib
import faulthandler

import pytest
from processes import run_process

from biomedlm_jax.training.watchdog import Watchdog, watch

BEATS = """
import sys, time
from biomedlm_jax.training.watchdog import watch

with watch(float(sys.argv[1]) / 60) as watchdog:
    for _ in range(0 if sys.argv[2] == "C code" else 40):
        time.sleep(0.1)
        watchdog.reset()
    print("was reset", flush=True)
    if sys.argv[2] == "in time":
        sys.exit(0)
    if sys.argv[2] == "python":
        time.sleep(3600)
    {_ for _ in iter(int, 1)}  # C code that holds the interpreter's lock
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["python", pytest.param("C code", marks=pytest.mark.slow)])
def test_a_process_that_hangs_ends_with_the_stacks_of_its_threads(where):
    done = run_process(["-c", BEATS, "3.5", where])
    assert done.stdout == "was reset\n"
    assert done.returncode == 1
    assert "Timeout (0:00:03.5" in done.stderr
    assert "Thread 0x" in done.stderr
    assert 'File "<string>", line' in done.stderr


@pytest.mark.slow
def test_a_process_that_beats_is_not_ended():
    done = run_process(["-c", BEATS, "60", "in time"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "was reset\n", "")


def test_the_time_is_stopped_after_the_block_even_by_an_error(monkeypatch):
    calls = []
    monkeypatch.setattr(
        faulthandler, "dump_traceback_later", lambda seconds, **named: calls.append(seconds)
    )
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: calls.append("stop"))
    with contextlib.suppress(KeyError), watch(2.0) as watchdog:
        watchdog.reset()
        raise KeyError
    assert calls == [120.0, 120.0, "stop"]


def test_no_time_at_all(monkeypatch):
    calls = []
    for name in ("dump_traceback_later", "cancel_dump_traceback_later"):
        monkeypatch.setattr(faulthandler, name, lambda *_, **__: calls.append("timer"))
    watchdog = Watchdog(0)
    watchdog.reset()
    watchdog.stop()
    assert calls == []
