import signal

import pytest

from biomedlm_jax.training.stopping import stop_signals


class Lines(list):
    def print_line(self, text):
        self.append(text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_and_the_second_at_once(number):
    lines, before = Lines(), signal.getsignal(number)
    with stop_signals(lines) as stop:
        assert not stop(True)
        signal.raise_signal(number)
        assert stop(False)
        assert lines == ["stopping after this step, then saving (again: stop at once)"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before
