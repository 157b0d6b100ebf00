"""Stopping together: signals that end a run after its step, votes of processes, barriers."""

import contextlib
import signal
import time
from collections.abc import Generator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Ctrl-C, preemption, Slurm's warning before a time limit, a terminal that is closed.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
SAME_SECONDS = 1.0  # signals so close together have one cause


class Stopped(Exception):
    """A signal arrived during an evaluation, which is not finished."""


class Interrupted(KeyboardInterrupt):
    """A signal ended a run, `saved` or before its first step; `code` is 128 plus its number."""

    def __init__(self, number: int, *, saved: bool = False):
        super().__init__(signal.Signals(number).name)
        self.saved = saved
        self.code = 128 + number


class StopSignals:
    """The first signal that this process received: `number`, or 0."""

    def __init__(self, recorder: Any):
        self.number, self._received, self._recorder = 0, 0.0, recorder

    def receive(self, number: int, frame: Any) -> None:
        """Note the first signal; Ctrl-C some time after it ends the process at once."""
        if not self.number:
            self.number, self._received = number, time.monotonic()
            # Whatever the print raises would come out of the step.
            with contextlib.suppress(Exception):
                line = "stopping after this step, then saving (again: stop at once)"
                self._recorder.print_line(line)
        elif number == signal.SIGINT and time.monotonic() - self._received > SAME_SECONDS:
            raise KeyboardInterrupt


@contextlib.contextmanager
def stop_signals(recorder: Any) -> Generator[StopSignals]:
    """Yield the signals of the block; after it they do what they did before."""
    signals, before = StopSignals(recorder), {}
    with contextlib.suppress(ValueError):  # not in the main thread, where no signal arrives
        for number in SIGNALS:
            ignored = signal.getsignal(number) is signal.SIG_IGN
            if not (number == signal.SIGHUP and ignored):  # nohup
                before[number] = signal.signal(number, signals.receive)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interrupted_by_signals() -> Generator[None]:
    """Raise Interrupted in the block for a signal that would end the process at once."""

    def interrupt(number: int, frame: Any) -> None:
        raise Interrupted(number)

    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread, where no signal arrives
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Votes:
    """Small numbers whose maximum over all processes every process reads, without waiting.

    A vote is cast with a step and read with the step's figures. So all processes read the same, and
    after the same step, while no device waits for a host.
    """

    def __init__(self, mesh: Mesh):
        self._rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._most = jax.jit(lambda rows: rows.max(axis=0), out_shardings=everywhere)

    def cast(self, *numbers: int) -> Any:
        """Return the vote, which `np.asarray` reads."""
        mine = np.array([numbers], np.int32)
        if jax.process_count() == 1:
            return mine[0]
        shape = (self._rows.mesh.size, len(numbers))
        return self._most(jax.make_array_from_callback(shape, self._rows, lambda _: mine))


def most_of_all(number: int) -> int:
    """Return the maximum over all processes; every process calls it, and waits."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.array(number)).max())


def wait_for_all(state: str) -> None:
    """Block until every process arrives, so that none sees a half-made run directory."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"the run directory is {state}")
