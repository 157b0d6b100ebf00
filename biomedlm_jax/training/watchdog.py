"""Watchdog: end a process that hangs, so that a launcher can start it again."""

import contextlib
import faulthandler
import sys
from collections.abc import Generator
from typing import Any


class Watchdog:
    """Ends the process with exit code 1, and the stacks of all threads, if the time is not reset.

    The timer is the interpreter's own: it also ends a process that hangs in C code. `seconds` is
    the longest time between two calls of `reset`; 0 never ends the process.
    """

    def __init__(self, seconds: float, file: Any = None):
        self._seconds = seconds
        self._file = file or sys.__stderr__ or 2

    def reset(self) -> None:
        """Start the time anew."""
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def stop(self) -> None:
        """Stop the time."""
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def watch(minutes: float) -> Generator[Watchdog]:
    """Yield a Watchdog that has begun, and stop it after the block."""
    watchdog = Watchdog(60 * minutes)
    watchdog.reset()
    try:
        yield watchdog
    finally:
        watchdog.stop()
