"""Progress of long work: a report every few seconds."""

import contextlib
import datetime
import threading
import time
from collections.abc import Callable, Generator

from rich import progress
from rich.console import Console

SECONDS = 5.0


@contextlib.contextmanager
def progress_line() -> Generator[Callable[[str], None]]:
    """Yield a function that prints a line to standard error; on a terminal it replaces the last."""
    console = Console(stderr=True)
    with console.status("starting") as status:

        def show(line: str) -> None:
            if console.is_terminal:
                status.update(line)
            else:
                console.print(line, soft_wrap=True, highlight=False)

        yield show


class Remaining:
    """The time that is left, by the speed of the last half minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._bar = progress.Progress(disable=True, get_time=clock)
        self._task = self._bar.add_task("")

    def text(self, done: int, total: int) -> str:
        """Return ", 0:12:30 left" for so much of a total; "" before the speed is known."""
        self._bar.update(self._task, completed=done, total=total)
        seconds = self._bar.tasks[0].time_remaining
        return f", {datetime.timedelta(seconds=seconds)} left" if seconds else ""


@contextlib.contextmanager
def report_regularly(report: Callable[[], None]) -> Generator[None]:
    """Call `report` in a thread every `SECONDS` while the block runs."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(SECONDS):
            report()

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
