"""Functions that spawned processes can import, for the tests of process pools."""

import os
import signal
import time

from biomedlm_jax.errors import InputError


def slow_square(number: int) -> int:
    time.sleep(0.05 * (number % 2 == 0))
    return number * number


def fail_at(number: int, bad: int) -> int:
    if number == bad:
        raise InputError(f"{number} is bad")
    return os.getpid()


def kill_itself(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
