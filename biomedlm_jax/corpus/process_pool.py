"""Call a function for many tasks in several processes; the results come in the order of the tasks.

Processes are spawned: a fork would copy the locks that threads of the parent hold. They ignore
Ctrl-C, which the parent handles, and end with the parent, also if that is killed.
"""

import contextlib
import errno
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Protocol, TypeVar

Result = TypeVar("Result")
AHEAD = 2  # unfinished tasks for each process
KILLED = "a worker process was killed, perhaps for want of memory; run the command again"


class Map(Protocol):
    """Calls a function for each task, a tuple of arguments, and yields the results in order.

    The function is one of a module, and its result small JSON: both may cross to other machines,
    and so may the task. It may run twice, or at the same time in two places, and must then leave
    the same files, each written in one step.
    """

    def __call__(  # noqa: D102
        self, function: Callable[..., Result], tasks: Iterable[tuple]
    ) -> Iterator[Result]:
        raise NotImplementedError


@contextlib.contextmanager
def worker_processes(workers: int) -> Generator[Map]:
    """Yield a `Map` over so many processes; 1 is the calling process.

    It raises what the function raises. When the block ends, by an error or not, all processes end,
    whatever they do. Raises OSError if a process is killed.
    """
    if workers == 1:
        yield lambda function, tasks: (function(*task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)

    def run(function: Callable[..., Result], tasks: Iterable[tuple]) -> Iterator[Result]:
        waiting, unfinished = deque(), set()
        for task in tasks:
            waiting.append(pool.submit(function, *task))
            unfinished.add(waiting[-1])
            if len(unfinished) >= AHEAD * workers:  # not those behind a long task
                unfinished = futures.wait(unfinished, return_when=FIRST_COMPLETED).not_done
            while waiting and waiting[0].done():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield run
    except BrokenProcessPool:
        raise OSError(errno.ECHILD, KILLED) from None
    finally:
        _end(pool)


def _end(pool: ProcessPoolExecutor) -> None:
    """End the processes of a pool now."""
    processes = list((pool._processes or {}).values())  # ends with an `_`, but has no public name
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join()


def _follow_parent() -> None:
    """Ignore Ctrl-C, and end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=follow, name="parent", daemon=True).start()
