"""Several processes of one run: they start together, with time limits, and leave together."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

import jax
from jax._src import distributed as jax_distributed

FAILED = "biomedlm/failed"  # where the first process that fails says so: "CODE TEXT"
LOOK_EVERY = 1.0  # seconds


def start_processes(
    coordinator: str | None,
    *,
    process_id: int,
    process_count: int,
    start_timeout: int = 300,
    silence_timeout: int = 60,
) -> None:
    """Join the other processes of a run; call it before any other use of jax.

    With a coordinator (host:port, where process 0 listens) the processes are counted by the
    caller, and CPUs exchange arrays through gloo; without one, jax finds them in the environment
    (TPU pod, Slurm, Open MPI). A process gives up after `start_timeout` seconds without the others,
    and takes one for dead that says nothing for `silence_timeout` seconds. Raises ValueError for
    numbers that do not fit together, an environment that names nobody, and a time limit reached.
    """
    if min(start_timeout, silence_timeout) < 1:
        raise ValueError(
            f"got start_timeout={start_timeout} and silence_timeout={silence_timeout} seconds; "
            "both are at least 1"
        )
    counted = {}
    if coordinator is not None:
        counted = _counted(coordinator, process_id, process_count)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    where = coordinator or "the coordinator that the environment names"
    late = (
        f"not all processes met at {where} within {start_timeout} s; is process 0 running there, "
        "is its port reachable, and were all processes started?"
    )
    # jax aborts at its own limit with a stack trace, so ours comes first.
    limit = threading.Timer(start_timeout, _leave, (2, late))
    limit.daemon = True
    limit.start()
    try:
        jax.distributed.initialize(
            **counted,
            initialization_timeout=start_timeout + 30,
            heartbeat_timeout_seconds=silence_timeout,
            shutdown_timeout_seconds=silence_timeout,
        )
    except ValueError as error:
        raise ValueError(
            f"nothing in the environment names the other processes ({error}); start on a TPU pod "
            "or under Slurm, or give --coordinator, --process_id and --process_count"
        ) from error
    finally:
        limit.cancel()


def _counted(coordinator: str, process_id: int, process_count: int) -> dict:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"got coordinator={coordinator!r}; it is HOST:PORT of process 0")
    if not 0 <= process_id < process_count:
        raise ValueError(
            f"got process_id={process_id} with process_count={process_count}; it counts from 0 to "
            f"{process_count - 1}"
        )
    return {
        "coordinator_address": coordinator,
        "num_processes": process_count,
        "process_id": process_id,
        "cluster_detection_method": "deactivate",
    }


@contextlib.contextmanager
def leaving_together(*, silence_timeout: int = 60) -> Iterator[None]:
    """End every process of the run with one exit code as soon as one of them fails.

    The process whose body raises tells the others and ends with 2 for what a user can cause (a
    ValueError or an OSError) and 1 for anything else; they end with the same code, in the middle of
    whatever they wait for. One that is killed cannot tell: jax misses it within `silence_timeout`
    seconds and aborts all others (SIGABRT, exit code 134 in a shell). Nothing is saved on this way;
    the last finished checkpoint stays. Alone, a process just raises.
    """
    if jax.process_count() == 1:
        yield
        return
    client = jax_distributed.global_state.client  # jax has no public way to its store of messages
    over = threading.Event()
    threading.Thread(target=_watch, args=(client, over), daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:  # agreed on by all: each has saved and leaves by itself
        raise
    except Exception as error:
        if isinstance(error, jax.errors.JaxRuntimeError):
            # Most likely an exchange with a process that is gone: let the cause speak first.
            print(f"biomedlm: {' '.join(str(error).split())[:300]}", file=sys.stderr, flush=True)
            over.wait(silence_timeout + 10)
        code = 2 if isinstance(error, (ValueError, OSError)) else 1
        text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        text = f"process {jax.process_index()}: {text}"
        with contextlib.suppress(Exception):  # refused if another process was faster
            client.key_value_set(FAILED, f"{code} {text}")
        code, text = _failure(client) or (code, text)
        if jax.process_index() == 0:
            time.sleep(3 * LOOK_EVERY)  # it keeps the message: let the others read it
        _leave(code, f"the run ends, because of {text}")
    finally:
        over.set()


def _failure(client) -> tuple[int, str] | None:
    """The exit code and the message of the process that failed first, if one said so."""
    try:
        code, _, text = client.key_value_try_get(FAILED).partition(" ")
    except Exception:  # none did, or the store is gone
        return None
    return int(code), text


def _watch(client, over: threading.Event) -> None:
    while not over.wait(LOOK_EVERY):
        failed = _failure(client)
        if failed:
            if jax.process_index() == 0:
                time.sleep(3 * LOOK_EVERY)
            _leave(failed[0], f"the run ends, because of {failed[1]}")


def _leave(code: int, text: str) -> None:
    print(f"biomedlm: error: {text}", file=sys.stderr, flush=True)
    os._exit(code)  # no farewell to the others: they may be gone, and waiting would hang
