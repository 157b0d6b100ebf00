"""Progress of long work: a report every few seconds."""

import contextlib
import threading
from collections.abc import Callable, Iterator

SECONDS = 5.0


@contextlib.contextmanager
def report_regularly(report: Callable[[], None]) -> Iterator[None]:
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
