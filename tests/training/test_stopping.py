import signal

import jax
import numpy as np
import pytest

from biomedlm_jax.mesh import make_mesh
from biomedlm_jax.training import stopping
from biomedlm_jax.training.stopping import SIGNALS, Votes, stop_signals


class Lines(list):
    def print_line(self, text):
        self.append(text)


@pytest.fixture
def without_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("without_nohup")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_after_the_step_and_is_not_two(number):
    lines, before = Lines(), signal.getsignal(number)
    with stop_signals(lines) as signals:
        assert not signals.number
        signal.raise_signal(number)
        for again in SIGNALS:  # of the same cause, milliseconds later
            signal.raise_signal(again)
        assert signals.number == number
        assert lines == ["stopping after this step, then saving (again: stop at once)"]
    assert signal.getsignal(number) is before


def test_ctrl_c_some_time_after_the_first_signal_ends_at_once(monkeypatch):
    monkeypatch.setattr(stopping, "SAME_SECONDS", 0.0)
    with stop_signals(Lines()) as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # whoever sends it twice will send SIGKILL
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signals.number == signal.SIGTERM


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals(Lines()) as signals:
            signal.raise_signal(signal.SIGHUP)
            assert not signals.number
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_during_the_start_ends_it_in_order(number):
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(stopping.Interrupted) as caught, stopping.interrupted_by_signals():
            signal.raise_signal(number)
        assert caught.value.code == 128 + number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_the_exit_code_is_that_of_the_signal():
    assert stopping.Interrupted(signal.SIGTERM).code == 143
    assert str(stopping.Interrupted(signal.SIGUSR1)) == "SIGUSR1"


def test_votes_are_the_maximum(monkeypatch):
    votes = Votes(make_mesh(data=2, fsdp=2, tensor=2))
    assert np.asarray(votes.cast(15, False)).tolist() == [15, 0]
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # as if: here all devices are this one's
    assert np.asarray(votes.cast(0, True)).tolist() == [0, 1]
