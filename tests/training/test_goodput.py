import contextlib

import pytest

from biomedlm_jax.training import goodput as module
from biomedlm_jax.training.goodput import PARTS, Stopwatch, goodput


@pytest.fixture
def clock(monkeypatch):
    """clock(s) lets s seconds pass."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def let_pass(seconds):
        now[0] += seconds

    return let_pass


def test_every_second_counts_once(clock):
    stopwatch = Stopwatch()
    clock(3)
    stopwatch.lap("start")
    stopwatch.stepped = True
    for _ in range(2):
        clock(1)
        with stopwatch.count("data"):
            clock(0.5)
    clock(10)
    with contextlib.suppress(KeyError), stopwatch.count("evaluate"):
        clock(4)
        raise KeyError
    clock(0.25)
    stopwatch.lap("save")
    expected = {"start": 3.0, "step": 12.0, "data": 1.0, "save": 0.25, "evaluate": 4.0}
    assert stopwatch.rounded() == expected
    assert sum(expected.values()) == 20.25
    assert {*expected} == {*PARTS}


def event(time, name, step, /, **seconds):
    parts = {"seconds": {**dict.fromkeys(PARTS, 0.0), **seconds}} if seconds else {}
    return {"time": time, "event": name, "step": step, **parts}


def test_a_run_that_was_never_disturbed():
    events = [
        event(1000.0, "start", 0),
        event(1060.0, "save", 50, start=10.0, step=45.0, save=5.0),
        event(1100.0, "finish", 100, start=10.0, step=80.0, save=10.0),
    ]
    assert goodput(events) == {
        "starts": 1,
        "wall_seconds": 100.0,
        "seconds": {"start": 10.0, "step": 80.0, "data": 0.0, "save": 10.0, "evaluate": 0.0},
        "steps_repeated": 0,
        "goodput": pytest.approx(0.8),
    }


def test_steps_that_ran_again_and_pauses_are_no_good_time():
    events = [
        event(0.0, "start", 0),
        event(60.0, "save", 50, start=10.0, step=50.0),
        event(120.0, "save", 100, start=10.0, step=100.0),  # killed before it was complete
        event(400.0, "start", 50),
        event(460.0, "finish", 100, start=5.0, step=50.0),
    ]
    result = goodput(events)
    assert (result["starts"], result["steps_repeated"]) == (2, 50)
    assert result["wall_seconds"] == 460.0
    assert result["seconds"]["start"] == 15.0
    assert result["seconds"]["step"] == 150.0
    assert result["goodput"] == pytest.approx(100 / 460)  # 100 steps of one second


def test_steps_that_no_checkpoint_kept_ran_again():
    """The run was killed 30 steps after it was saved; their seconds are not recorded."""
    events = [
        event(0.0, "start", 0),
        event(60.0, "save", 50, start=10.0, step=50.0),
        {**event(200.0, "start", 50), "reached": 80},
        event(260.0, "finish", 100, start=10.0, step=50.0),
    ]
    result = goodput(events)
    assert result["steps_repeated"] == 30
    assert result["goodput"] == pytest.approx(100 / 260)


def test_no_events_and_one():
    nothing = goodput([])
    assert (nothing["starts"], nothing["goodput"], nothing["wall_seconds"]) == (0, None, 0.0)
    assert goodput([event(5.0, "start", 0)])["goodput"] is None


def test_the_first_step_compiles_and_is_start(clock):
    stopwatch = Stopwatch()
    clock(3)
    stopwatch.lap("step")
    assert (stopwatch.seconds["start"], stopwatch.seconds["step"]) == (3.0, 0.0)


def test_time_after_the_end_does_not_count():
    end = event(100.0, "finish", 100, start=10.0, step=90.0)
    events = [event(10.0, "start", 0, start=10.0), end]
    assert goodput(events)["wall_seconds"] == 100.0
    again = event(9_005.0, "start", 100, start=5.0), event(9_006.0, "finish", 100, start=6.0)
    result = goodput([*events, *again])
    assert result["wall_seconds"] == 106.0
    assert result["goodput"] == pytest.approx(90 / 106)
