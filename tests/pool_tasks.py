"""Functions that other processes can import, for the tests of what runs them."""

import errno
import os
import signal
import time
from pathlib import Path

from biomedlm_jax.errors import InputError

DIRECT = ["--runner=DirectRunner", "--direct_running_mode=multi_processing"]
DIRECT += ["--direct_num_workers=2"]
DASK = ["--runner=DaskRunner"]  # with a local cluster of a process for each core


def slow_square(number: int) -> int:
    time.sleep(0.05 * (number % 2 == 0))
    return number * number


def fail_at(number: int, bad: int) -> int:
    if number == bad:
        raise InputError(f"{number} is bad")
    return os.getpid()


def kill_itself(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def square_and_process(number: int) -> list[int]:
    time.sleep(0.2)
    return [number * number, os.getpid()]


def fail_with_full_disk(number: int) -> int:
    if number == 2:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/disk")
    return number


def wait_for_file(path: str, number: int, last: int) -> bool:
    """Return whether the file appears, for number 0; the last number makes it."""
    if number == last:
        Path(path).touch()
    deadline = time.monotonic() + 30
    while number == 0 and not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return Path(path).exists()


def write_pid_and_wait(folder: str, number: int) -> None:
    Path(folder, f"pid{number}").write_text(str(os.getpid()))
    time.sleep(60)
