"""Several processes of one run: start together, with time limits, and end together."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Generator
from typing import Any

import jax
from jax._src import distributed as jax_distributed

from biomedlm_jax.errors import BAD_INPUT, FAILED, InputError

FAILURE = "biomedlm/failure"  # key of the first failure: "CODE TEXT"
KEY_VALUE = ("key_value_set", "key_value_try_get")
POLL_SECONDS = 1.0


def start_processes(
    coordinator: str | None,
    *,
    process_id: int,
    process_count: int,
    start_timeout: int = 300,
    silence_timeout: int = 60,
) -> None:
    """Connect to the other processes of a run; call it before any other use of jax.

    With a coordinator (host:port, where process 0 listens) the caller numbers the processes, and
    CPU collectives use gloo; without one, jax reads the environment (TPU pod, Slurm, Open MPI). A
    process without heartbeat for `silence_timeout` seconds counts as dead. Raises InputError for
    inconsistent numbers and for an environment that names no processes; if the others do not
    connect within `start_timeout` seconds, the process ends with exit code 1.
    """
    if min(start_timeout, silence_timeout) < 1:
        raise InputError(
            f"got start_timeout={start_timeout} and silence_timeout={silence_timeout} seconds; "
            "expected at least 1"
        )
    numbers = {}
    if coordinator is not None:
        numbers = _numbers(coordinator, process_id, process_count)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    where = coordinator or "the coordinator in the environment"
    late = (
        f"not all processes connected to {where} within {start_timeout} s; check that process 0 "
        "runs there, that its port is reachable, and that all processes were started"
    )
    # jax aborts at its own limit with a stack trace, so ours is shorter.
    limit = threading.Timer(start_timeout, _exit, (FAILED, late))
    limit.daemon = True
    limit.start()
    try:
        jax.distributed.initialize(
            **numbers,
            initialization_timeout=start_timeout + 30,
            heartbeat_timeout_seconds=silence_timeout,
            shutdown_timeout_seconds=silence_timeout,
        )
    except ValueError as error:
        raise InputError(
            f"the environment does not name the other processes ({error}); start on a TPU pod or "
            "under Slurm, or set --coordinator, --process_id and --process_count"
        ) from error
    finally:
        limit.cancel()


def _numbers(coordinator: str, process_id: int, process_count: int) -> dict:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"got coordinator={coordinator!r}; expected HOST:PORT of process 0")
    if not 0 <= process_id < process_count:
        raise InputError(
            f"got process_id={process_id} with process_count={process_count}; expected 0 to "
            f"{process_count - 1}"
        )
    return {
        "coordinator_address": coordinator,
        "num_processes": process_count,
        "process_id": process_id,
        "cluster_detection_method": "deactivate",
    }


@contextlib.contextmanager
def fail_together(*, silence_timeout: int = 60) -> Generator[None]:
    """End every process of the run with one exit code as soon as one of them fails.

    The process whose body raises ends with 2 for bad input (an InputError) and 1 for anything else;
    the others end with the same code, even inside a collective. If a process is killed, jax notices
    within `silence_timeout` seconds and aborts the others (SIGABRT, exit code 134 in a shell).
    Nothing is saved; the last finished checkpoint stays. A single process raises.
    """
    if jax.process_count() == 1:
        yield
        return
    client: Any = jax_distributed.global_state.client  # jax has no public key-value store
    lacking = [name for name in KEY_VALUE if not hasattr(client, name)]
    if lacking:  # a private part of jax: without it failures would go unnoticed
        raise RuntimeError(
            f"this jax ({jax.__version__}) has no {', '.join(lacking)} between hosts"
        )
    finished = threading.Event()
    threading.Thread(target=_watch, args=(client, finished), daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:  # all processes agreed to stop, have saved, and end by themselves
        raise
    except Exception as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Most likely a collective with a process that has ended: its own message comes first.
            print(f"biomedlm: {' '.join(str(error).split())[:300]}", file=sys.stderr, flush=True)
            finished.wait(silence_timeout + 10)
        code = BAD_INPUT if isinstance(error, InputError) else FAILED
        name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        text = " ".join(f"process {jax.process_index()}: {name}{error}".split())[:500]
        with contextlib.suppress(Exception):  # another process failed earlier
            client.key_value_set(FAILURE, f"{code} {text}")
        _leave(*(_failure(client) or (code, text)))
    finally:
        finished.set()


def _failure(client) -> tuple[int, str] | None:
    """Return the exit code and message of the process that failed first, None without a failure."""
    try:
        code, _, text = client.key_value_try_get(FAILURE).partition(" ")
    except Exception:  # no failure, or no store
        return None
    return int(code), text


def _watch(client, finished: threading.Event) -> None:
    while not finished.wait(POLL_SECONDS):
        failed = _failure(client)
        if failed:
            _leave(*failed)


def _leave(code: int, text: str) -> None:
    if jax.process_index() == 0:
        time.sleep(3 * POLL_SECONDS)  # it stores the message: the others must read it
    _exit(code, f"the run ends because of {text}")


def _exit(code: int, text: str) -> None:
    print(f"biomedlm: error: {text}", file=sys.stderr, flush=True)
    os._exit(code)  # a normal exit would wait for processes that may have ended
