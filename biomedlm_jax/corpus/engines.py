"""Engines: what runs the tasks of a `Map`: processes of this machine, or a pipeline of Apache Beam.

With Beam, each call of the `Map` is a pipeline Create, Reshuffle, Map. Its workers may be on other
machines: what a task reads and writes is on a file system that all of them share, its result as
well, as JSON. Runners repeat tasks, even at the same time; therefore a task gives the same files
whenever it runs, and each appears in one step.
"""

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biomedlm_jax.corpus.process_pool import KILLED, Map, worker_processes
from biomedlm_jax.errors import InputError

DIRECT, DASK = "DirectRunner", "apache_beam.runners.dask.dask_runner.DaskRunner"
DEFAULTS = {  # flags of the runners that run here
    # An error is reported once, by the parent.
    DIRECT: ("--default_sdk_harness_log_level=CRITICAL",),
    # Otherwise 128 tasks are one partition, and run one after the other.
    DASK: ("--dask_partition_size=1",),
}
REFUSED, FAILED = ".refused", ".failed"  # tasks that raised InputError or OSError
BEAM_THREADS = (
    "run_worker",
    "beam_control_read",
    "read_grpc_client_inputs",
)  # that wait for a process of DirectRunner
_lock = threading.Lock()


@contextlib.contextmanager
def open_engine(workers: int, folder: Path, beam: Sequence[str] | None = None) -> Generator[Map]:
    """Yield a `Map` over so many processes, or one over the runner that flags of Beam choose.

    Args:
      folder: exists, and all workers of the runner can read and write it.
      beam: flags such as --runner=DirectRunner; None: without Beam.

    Raises InputError if Beam is not installed or does not know a flag.
    """
    if beam is None:
        with worker_processes(workers) as run:
            yield run
        return
    yield _BeamMap(_options(beam), folder / "beam")


@dataclass
class _Task:
    """A task, which Beam pickles: its coders of tuples refuse numbers of more than 63 bits."""

    number: int
    function: Callable[..., Any]
    arguments: tuple


class _BeamMap:
    """A `Map` whose calls are pipelines; the calls of one thread, one after the other."""

    def __init__(self, options: Any, folder: Path):
        from apache_beam.options.pipeline_options import StandardOptions

        self._options, self._folder = options, folder
        # DirectRunner tries a task once, and its processes print the traceback of an error.
        self._repeats = options.view_as(StandardOptions).runner not in (None, DIRECT)

    def __call__(self, function: Callable[..., Any], tasks: Iterable[tuple]) -> Iterator[Any]:
        """Run the tasks, and yield their results, which are JSON, in order."""
        elements = [_Task(number, function, task) for number, task in enumerate(tasks)]
        if len(elements) < 2:  # a pipeline takes seconds to start, or minutes
            for task in elements:
                yield function(*task.arguments)
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        try:
            self._run(elements)
            if refusal := next(iter(sorted(self._folder.glob(f"*{REFUSED}"))), None):
                raise InputError(json.loads(refusal.read_bytes()))
            if failure := self._failure():
                raise failure
            for number in range(len(elements)):
                try:
                    text = _result(self._folder, number).read_bytes()
                except FileNotFoundError:
                    raise InputError(
                        f"the workers of Beam did not write to {self._folder.parent}; "
                        "expected a directory that all of them share"
                    ) from None
                yield json.loads(text)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, elements: list[_Task]) -> None:
        import apache_beam as beam

        pipeline = beam.Pipeline(options=self._options)
        _ = (
            pipeline
            | beam.Create(elements, reshuffle=False)
            | beam.Reshuffle()
            | beam.Map(_run_task, str(self._folder), repeats=self._repeats)
        )
        result = None
        try:
            with _fails_with_its_workers():
                result = pipeline.run()
            state = result.wait_until_finish()
            if state != "DONE":
                raise RuntimeError(f"the state is {state}")
        except BaseException as error:
            if result is not None:
                with contextlib.suppress(Exception):
                    result.cancel()
            if isinstance(error, Exception):
                raise self._failure() or _pipeline_failure(error) from error
            raise
        finally:
            if client := getattr(result, "client", None):  # of Dask, with processes of its own
                client.close()

    def _failure(self) -> OSError | None:
        """Return the error of the first task that failed."""
        for file in sorted(self._folder.glob(f"*{FAILED}")):
            return OSError(*json.loads(file.read_bytes()))
        return None


def _pipeline_failure(error: Exception) -> OSError:
    """Return the error of a pipeline in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if "Error" in line), (lines or [""])[-1])
    return OSError(f"the pipeline of Beam failed: {reason or type(error).__name__}")


@contextlib.contextmanager
def _fails_with_its_workers() -> Generator[None]:
    """Let a pipeline of DirectRunner fail in the block if one of its processes is killed.

    Beam would wait for it for ever: as if it had reported an error, what it owes is answered here.
    """
    from apache_beam.portability.api import beam_fn_api_pb2
    from apache_beam.runners.portability.fn_api_runner import worker_handlers

    handlers: Any = worker_handlers.SubprocessSdkWorkerHandler
    start, hook, ended = handlers.start_worker, threading.excepthook, threading.Event()

    def start_worker(handler: Any) -> None:
        start(handler)
        threading.Thread(target=watch, args=(handler,), daemon=True).start()

    def watch(handler: Any) -> None:
        handler.worker_thread.join()
        while not ended.wait(0.2):  # it may be asked for more
            for name, future in [*handler.control_conn._futures_by_id.items()]:
                future.set(beam_fn_api_pb2.InstructionResponse(instruction_id=name, error=KILLED))

    def report(failure: Any) -> None:  # threads of Beam that a killed process ends are no news
        if failure.thread is None or failure.thread.name not in BEAM_THREADS:
            hook(failure)

    handlers.start_worker, threading.excepthook = start_worker, report
    try:
        yield
    finally:
        ended.set()
        handlers.start_worker, threading.excepthook = start, hook


def _run_task(task: _Task, folder: str, repeats: bool = True) -> int:
    """Run a task in a worker and write its result, unless it is there; return its number.

    An OSError is raised, for the runner to try again if it `repeats` tasks, or else recorded.
    """
    place = Path(folder)
    if not place.is_dir():
        host = socket.gethostname()
        raise OSError(f"{folder} is not on {host}; use a directory that all workers share")
    result = _result(place, task.number)
    failed_before = not repeats and any(place.glob(f"*{FAILED}"))
    if result.exists() or failed_before or any(place.glob(f"*{REFUSED}")):
        return task.number
    failed = result.with_suffix(FAILED)
    try:
        with _lock:  # a runner may have several threads in a process, and tasks share caches
            _write(result, task.function(*task.arguments))
    except InputError as error:  # which no other attempt would change: the parent raises it
        _write(result.with_suffix(REFUSED), str(error))
    except OSError as error:
        file = None if error.filename is None else str(error.filename)
        _write(failed, [error.errno or 0, error.strerror or str(error), file])
        if repeats:
            raise
        return task.number
    failed.unlink(missing_ok=True)  # of an earlier attempt
    return task.number


def _result(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.json"


def _write(file: Path, value: Any) -> None:
    new = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    new.write_text(json.dumps(value))
    os.replace(new, file)


def _options(flags: Sequence[str]) -> Any:
    """Return Beam's options. Raises InputError for flags that it does not know."""
    for flag in flags:
        if not flag.startswith("--"):
            raise InputError(f"got {flag} among Beam's options; expected --NAME=VALUE")
    # Beam has short names of its other runners only.
    flags = [f"--runner={DASK}" if flag == "--runner=DaskRunner" else flag for flag in flags]
    logging.disable(logging.WARNING)  # for what Beam would like to have installed
    try:
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
        from apache_beam.runners.runner import create_runner

        runner = PipelineOptions(flags).view_as(StandardOptions).runner or DIRECT
        create_runner(runner)  # its module defines its options
        options = PipelineOptions(flags)
        if runner not in DEFAULTS:
            return options  # a job server may know more of them
        retained = options.get_all_options(retain_unknown_options=True)
        if unknown := retained.keys() - options.get_all_options().keys():
            raise InputError(f"got --{min(unknown)}, which Beam's {runner} does not know")
        for logger in ("apache_beam", "distributed"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        mine = {flag.partition("=")[0] for flag in flags}
        if "--dask_npartitions" in mine:  # Beam takes one of the two
            return options
        more = [flag for flag in DEFAULTS[runner] if flag.partition("=")[0] not in mine]
        return PipelineOptions([*flags, *more])
    except SystemExit:
        raise InputError(
            f"got {' '.join(flags)}, which Beam refuses; see the lines above"
        ) from None
    except ImportError as error:
        fix = "pip install 'biomedlm-jax[beam]', and apache-beam[dask] for DaskRunner"
        raise InputError(f"Apache Beam is not installed ({error}); {fix}") from error
    except ValueError as error:  # of an unknown runner
        raise InputError(f"got Beam's options {' '.join(flags)}: {error}") from error
    finally:
        logging.disable(logging.NOTSET)
