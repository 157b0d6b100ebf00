"""Stopping together: signals that end a run after its step, and barriers between processes."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class Stopped(Exception):
    """A signal arrived during an evaluation, which is not finished."""


@contextlib.contextmanager
def stop_signals(recorder: Any) -> Iterator[Any]:
    """Yield stop(agree) -> whether to stop now; a second signal ends the process at once.

    Several processes stop only where `agree` is true, which must be at the same steps in all.
    """
    received = []

    def receive(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)
        recorder.print_line("stopping after this step, then saving (again: stop at once)")

    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread, where no signal arrives
        before = {n: signal.signal(n, receive) for n in (signal.SIGINT, signal.SIGTERM)}

    def stop(agree: bool) -> bool:
        if jax.process_count() == 1:
            return bool(received)
        if not agree:
            return False
        return bool(multihost_utils.process_allgather(np.array(bool(received))).any())

    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for_all(state: str) -> None:
    """Block until every process arrives, so that none sees a half-made run directory."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"the run directory is {state}")
