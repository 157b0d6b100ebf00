"""Trackers: writers of a run's figures for TensorBoard, Weights & Biases, MLflow and trackio.

Training never waits for a tracker's disk or network, and never ends because of one: all but
TensorBoard run in a thread of their own, behind a queue that drops what it cannot hold.
"""

import contextlib
import importlib.util
import os
import queue
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from biomedlm_jax.buckets import is_bucket
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import flatten, read_json, write_json
from biomedlm_jax.outputs import upload

TENSORBOARD = "tensorboard"
PROJECT = "biomedlm"  # also the experiment of MLflow, unless the tracker's own variable names one
FOLDER = "trackers"  # of a run: <name>.json has the id that a resumed run continues
QUEUE = 10_000  # lines that may wait
CLOSE_SECONDS = 15.0  # that the end of a run waits for each of them


class Tracker(Protocol):
    """What a run writes its figures to."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the figures of a step; steps never fall, but one may come twice."""

    def close(self, *, finished: bool) -> None:
        """Write what is left; `finished`: the run took its last step."""


class TensorBoard:
    """Event files in the run directory. Raises OSError and ImportError."""

    def __init__(self, run_directory: Path, *, first_step: int):
        from tensorboardX import SummaryWriter  # it imports torch if that is there: 2 s

        self._directory, self._local = run_directory, None
        if is_bucket(run_directory):  # tensorboardX could block there after an error
            self._local = tempfile.TemporaryDirectory()
        folder = self._local.name if self._local else run_directory
        self._board = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Pass the figures to the writer's thread."""
        for name, value in metrics.items():
            self._check()
            self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Copy the events to a bucket; on a disk they are there already."""
        if self._local:
            self._board.flush()
            upload(Path(self._local.name), self._directory)

    def close(self, *, finished: bool) -> None:
        """Write the last events."""
        try:
            self._check()
            self.flush()
            self._board.close()
        finally:
            if self._local:
                self._local.cleanup()

    def _check(self) -> None:
        """Raise OSError if the writer's thread has ended: its queue, once full, would block."""
        writer = getattr(self._board.file_writer, "event_writer", None)
        worker = getattr(writer, "_worker", None)  # private, so it may be absent
        if worker is not None and not worker.is_alive():
            raise OSError("its thread ended with an error")


class Wandb:
    """A run of Weights & Biases: WANDB_MODE=offline writes to the run directory only."""

    def __init__(self, run_directory: Path, id: str, facts: Mapping[str, Any]):
        wandb = import_module("wandb")
        offline = wandb.setup().settings.mode in ("offline", "disabled", "dryrun")
        if not offline and not wandb.login(prompt=False, verify=False):
            raise OSError("no API key; fix: wandb login, or WANDB_MODE=offline")
        self.id = id or secrets.token_hex(4)
        folder = os.environ.get("WANDB_DIR")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            dir=folder or (None if is_bucket(run_directory) else str(run_directory)),
            name=run_directory.name,
            id=self.id,
            resume=None if offline else "allow",
            config=None if id else dict(facts),
            settings=wandb.Settings(console="off", finish_timeout=CLOSE_SECONDS),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the figures; those of a step that ran before are ignored there."""
        self._run.log(dict(metrics), step=step)

    def close(self, *, finished: bool) -> None:
        """Wait for the upload."""
        self._run.finish(exit_code=int(not finished))


class MLflow:
    """A run of MLflow where MLFLOW_TRACKING_URI says, or in its default store."""

    def __init__(self, run_directory: Path, id: str, facts: Mapping[str, Any]):
        self._client = import_module("mlflow").MlflowClient()
        self._entities = import_module("mlflow.entities")
        if id:
            self._client.update_run(id, status="RUNNING")
            self.id = id
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self.id = self._client.create_run(number, run_name=run_directory.name).info.run_id
        known = [
            self._entities.Param(name, str(value)[:500]) for name, value in flatten(facts).items()
        ]
        for first in range(0, len(known), 100):  # MLflow takes no more at once
            self._client.log_batch(self.id, params=known[first : first + 100])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the figures in one call."""
        metric, now = self._entities.Metric, int(1000 * time.time())
        values = [metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self.id, metrics=values)

    def close(self, *, finished: bool) -> None:
        """Set the status of the run."""
        self._client.set_terminated(self.id, status="FINISHED" if finished else "KILLED")


class Trackio:
    """A run of trackio: a local database, or the Space that TRACKIO_SPACE_ID names."""

    def __init__(self, run_directory: Path, id: str, facts: Mapping[str, Any]):
        trackio = import_module("trackio")
        self.id = id or f"{run_directory.name}-{secrets.token_hex(4)}"
        self._run = trackio.init(
            project=PROJECT,
            name=self.id,
            resume="allow",
            config=None if id else dict(facts),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Pass the figures to trackio's thread."""
        self._run.log(dict(metrics), step=step)

    def close(self, *, finished: bool) -> None:
        """Write what waits."""
        self._run.finish()


# Names in logging.trackers, with the package of each, which is also the name of its extra.
EXTERNAL: dict[str, Callable[..., Any]] = {"wandb": Wandb, "mlflow": MLflow, "trackio": Trackio}
TRACKERS = (TENSORBOARD, *EXTERNAL)


class Background:
    """A tracker that `make` starts in a thread; `report` prints its first problem only."""

    def __init__(self, name: str, make: Callable[[], Tracker], report: Callable[[str], None]):
        self._name, self._make, self._report = name, make, report
        self._queue: queue.Queue = queue.Queue(QUEUE)
        self._warned = self._finished = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Leave the figures to the thread."""
        try:
            if self._thread.is_alive():
                self._queue.put_nowait((step, dict(metrics)))
        except queue.Full:
            self._warn(f"{QUEUE:,} lines wait for it; further ones are dropped")

    def close(self, *, finished: bool) -> None:
        """Wait for the thread, CLOSE_SECONDS at most."""
        self._finished = finished
        end = time.monotonic() + CLOSE_SECONDS
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            self._warn(f"it did not end within {CLOSE_SECONDS:.0f} s; its last lines may be lost")

    def _run(self) -> None:
        try:
            tracker = self._make()
            while (item := self._queue.get()) is not None:
                tracker.log(*item)
            tracker.close(finished=self._finished)
        except (Exception, SystemExit) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._warn(f"{lines[0]}; training continues without")

    def _warn(self, text: str) -> None:
        with self._lock:
            if not self._warned:
                self._warned = True
                self._report(f"tracker {self._name}: {text}")


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError for a tracker whose package is not installed."""
    for name in names:
        if name in EXTERNAL and not _is_installed(name):
            got = f"got {name} in logging.trackers, and the package {name} is not installed"
            raise InputError(f"{got}; fix: pip install 'biomedlm-jax[{name}]'")


def _is_installed(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    return importlib.util.find_spec(name) is not None


def start_tracker(
    name: str,
    run_directory: Path,
    *,
    first_step: int,
    facts: Mapping[str, Any],
    report: Callable[[str], None],
) -> Tracker:
    """Start one of TRACKERS, or continue the one that the run directory names.

    `facts` (settings, versions) are logged with a new tracker only. `first_step` is the one that
    the run resumes after.
    """
    if name == TENSORBOARD:
        return TensorBoard(run_directory, first_step=first_step)
    file = run_directory / FOLDER / f"{name}.json"

    def make() -> Tracker:
        id = str(read_json(file)["id"]) if file.exists() else ""
        tracker = EXTERNAL[name](run_directory, id, facts)
        if not id:
            write_json(file, {"id": tracker.id})
        return tracker

    return Background(name, make, report)
