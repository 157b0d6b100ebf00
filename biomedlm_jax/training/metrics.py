"""Figures of a run (FLOPs, MFU, bits per byte) and the writers that keep them."""

import contextlib
import io
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from biomedlm_jax.buckets import is_bucket
from biomedlm_jax.chips import chip
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import AppendedText, write_text
from biomedlm_jax.model.language_model import LanguageModel, parameter_count
from biomedlm_jax.training.trackers import TENSORBOARD, TensorBoard, Tracker, start_tracker

EVENTS = "events.jsonl"
QUIET_SECONDS = 30.0  # after so long without a line, the next step prints one


def flops_per_token(model: LanguageModel, length: int) -> int:
    """Return the FLOPs of one training token: 6 N + 12 * layers * heads * head_dim * length.

    N counts parameters of matrix products, not of lookups. Recomputation is not counted (PaLM,
    arXiv 2204.02311, appendix B). `model` may be abstract.
    """
    config = model.config
    attention = 12 * config.layers * config.heads * config.head_dim * length
    return 6 * parameter_count(model, lookups=False) + attention


def peak_flops(device_kind: str) -> float | None:
    """Return the peak bf16 FLOP/s of a jax device, or None where no peak is known (a CPU)."""
    known = chip(device_kind)
    return known.device_flops if known else None


def validation_metrics(loss: float, *, tokens: int, text_bytes: int) -> dict[str, float]:
    """Return loss in nats per token, perplexity and bits per byte.

    `tokens` (separators included) are those that `loss` is the mean of, and `text_bytes` is the
    length of their text. Raises InputError if that is 0.
    """
    if not text_bytes:
        raise InputError(
            f"the {tokens:,} validation tokens are all special ones, without text to evaluate; "
            "raise training.evaluate_batches, or build rows with more validation text"
        )
    return {
        "validation_loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "bits_per_byte": loss / math.log(2) * tokens / text_bytes,
    }


class StepTimer:
    """Seconds per step, tokens per second and MFU between two readings at one place of the loop."""

    def __init__(self, tokens_per_step: float, flops_per_token: float):
        self._tokens, self._flops = tokens_per_step, flops_per_token
        peak = peak_flops(jax.devices()[0].device_kind)
        self._peak = peak * jax.device_count() if peak else None
        self._last: tuple[int, float] | None = None

    def read(self, step: int) -> dict[str, float]:
        """Return figures of the steps since the last reading; none at the first one."""
        now, last = time.perf_counter(), self._last
        self._last = step, now
        if last is None:
            return {}
        seconds = (now - last[1]) / (step - last[0])
        speed = self._tokens / seconds
        mfu = {"mfu": speed * self._flops / self._peak} if self._peak else {}
        return {"step_seconds": seconds, "tokens_per_second": speed, **mfu}

    @property
    def restarted(self) -> bool:
        """Whether timing begins anew with the next reading, which then measures nothing."""
        return self._last is None

    def restart(self) -> None:
        """Forget the last reading, because something other than steps took time since."""
        self._last = None


class Recorder:
    """Writes figures to the console, `metrics.jsonl` and trackers, events to `events.jsonl`.

    A resumed run drops what it wrote of steps after `first_step`, which run again; events only
    grow. Training does not end because a line cannot be written: the console says so once, and the
    line is written with a later one. In a bucket, lines wait for some seconds, and TensorBoard's
    for the next event. `facts` (settings, versions) are for the trackers. Close it.
    """

    def __init__(
        self,
        run_directory: Path,
        *,
        first_step: int,
        steps: int,
        trackers: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
    ):
        self._printed = time.monotonic()
        self._progress: Any = None
        self._trackers: dict[str, Tracker] = {}
        self._finished = False
        self._failed: set[str] = set()
        path, self._reached = run_directory / "metrics.jsonl", first_step
        with self._survive(path.name):
            self._reached = _drop_later(path, first_step)
        self._metrics, self._events = AppendedText(path), AppendedText(run_directory / EVENTS)
        self._steps = steps
        self._timed: tuple[int, float] | None = None  # the first step, which compiled, and its end
        given = {"first_step": first_step, "facts": facts or {}, "report": self.print_line}
        for name in trackers:
            with self._survive(_label(name)):
                self._trackers[name] = start_tracker(name, run_directory, **given)
        self._began = time.monotonic()
        if sys.stderr.isatty():
            columns = ("[bold]step", MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
            console = Console(stderr=True)
            self._progress = Progress(*columns, "{task.description}", console=console)
            self._task = self._progress.add_task("", total=steps, completed=first_step)
            self._progress.start()

    @contextlib.contextmanager
    def _survive(self, what: str) -> Generator[None]:
        """Print the first error of writing `what`, and continue."""
        try:
            yield
        except (OSError, ImportError) as error:
            if what not in self._failed:
                self._failed.add(what)
                self.print_line(f"cannot write {what} ({error}); training continues without")

    def event(self, name: str, **facts: Any) -> None:
        """Record that something happened, with the time; `inspect` reads it."""
        if name == "start":
            facts["reached"] = self._reached  # before a kill
        self._finished = name == "finish"
        with self._survive(EVENTS):
            self._events.append(json.dumps({"time": round(time.time(), 3), "event": name, **facts}))
        self.flush()

    def flush(self) -> None:
        """Write what waits, in a bucket; call it before a checkpoint, which a resume relies on."""
        for file in (self._metrics, self._events):
            with self._survive(file.path.name):
                file.flush()
        board = self._trackers.get(TENSORBOARD)
        if isinstance(board, TensorBoard):
            with self._survive(_label(TENSORBOARD)):
                board.flush()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record one line of figures of `step`."""
        with self._survive("metrics.jsonl"):
            self._metrics.append(json.dumps({"step": step, **values}))
        for name, tracker in self._trackers.items():
            with self._survive(_label(name)):
                tracker.log(step, values)
        if self._progress and "loss" in values:
            brief = f"loss {values['loss']:.3f}  {values.get('tokens_per_second', 0):,.0f} tokens/s"
            self._progress.update(self._task, completed=step, description=brief)
            return
        figures = "  ".join(
            f"{name} {value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{name} {value:.4g}"
            for name, value in values.items()
        )
        now = time.monotonic()
        clock = f"elapsed {_duration(now - self._began)}"
        if self._timed is None and "loss" in values:
            self._timed = step, now
        elif self._timed and step > self._timed[0]:
            pace = (now - self._timed[1]) / (step - self._timed[0])
            clock += f"  remaining {_duration(pace * (self._steps - step))}"
        self.print_line(f"step {step}/{self._steps}  {figures}  {clock}")

    def print_line(self, text: str) -> None:
        """Print a line for the person at the terminal, or in a file on a full disk."""
        self._printed = time.monotonic()
        try:
            if self._progress:
                self._progress.console.print(text, highlight=False, markup=False)
            else:
                print(text, file=sys.stderr, flush=True)
        except (OSError, RuntimeError):  # a closed terminal; a signal while another line is printed
            pass

    def is_overdue(self) -> bool:
        """Return whether the last line is so old that a person waits for the next."""
        return time.monotonic() - self._printed > QUIET_SECONDS

    def close(self) -> None:
        """Flush and close the files, and leave the terminal in order."""
        if self._progress:
            self._progress.stop()
        for name, tracker in self._trackers.items():
            with self._survive(_label(name)):
                tracker.close(finished=self._finished)
        for file in (self._metrics, self._events):
            with self._survive(file.path.name):
                file.close()


def _label(tracker: str) -> str:
    return "TensorBoard's events" if tracker == TENSORBOARD else tracker


class NullRecorder:
    """The recorder of every process but the first, which drops everything."""

    def write(self, *arguments: Any, **facts: Any) -> None:
        """Do nothing."""

    print_line = close = event = flush = write

    def is_overdue(self) -> bool:
        """Return False."""
        return False


def read_metrics(run_directory: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`; one that a crash cut off is left out."""
    return [
        line
        for line in _lines(run_directory / "metrics.jsonl")
        if isinstance(line.get("step"), int)
    ]


def read_events(run_directory: Path) -> list[dict[str, Any]]:
    """Return what a run's `events.jsonl` recorded; a damaged line is left out."""
    return [
        line
        for line in _lines(run_directory / EVENTS)
        if isinstance(line.get("time"), float | int) and isinstance(line.get("step", 0), int)
        if isinstance(line.get("event"), str)
    ]


def _drop_later(path: Path, last_step: int) -> int:
    """Drop the lines of later steps at the end of a file; return the last step that it had.

    A file is cut, which a full disk allows; a bucket's is written anew.
    """
    content = path.read_bytes() if path.is_file() else b""
    end, size, reached = 0, 0, last_step
    for line in content.splitlines(keepends=True):
        end += len(line)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            step = json.loads(line)["step"]
            reached = max(reached, step)
            if step > last_step:
                continue
            size = end  # what is cut off or damaged goes with the lines after it
    if is_bucket(path):
        write_text(path, content[:size].decode())
    elif path.is_file():
        os.truncate(path, size)
    return reached


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def was_evaluated(run_directory: Path, step: int) -> bool:
    """Return whether a run's `metrics.jsonl` has the evaluation of `step`."""
    return any(
        line["step"] == step and "train_loss" in line for line in read_metrics(run_directory)
    )


def has_saved(run_directory: Path) -> bool:
    """Return whether a run finished a checkpoint: a save is recorded when it begins.

    The next event then, but a start, comes after its end.
    """
    names = [event["event"] for event in read_events(run_directory)]
    pairs = itertools.pairwise(names)
    return any(name == "save" and after in ("save", "stop", "finish") for name, after in pairs)


def plot_losses(run_directory: Path) -> Path:
    """Draw a run's losses over its steps as `loss.png` in its directory; return the file."""
    from matplotlib.figure import Figure  # slow to import

    lines, figure = read_metrics(run_directory), Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    labels = {"loss": "training", "validation_loss": "validation", "dev_loss": "dev"}
    for name, label in labels.items():
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            marker = "" if name == "loss" else "o"
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=label)
    starts = {e["step"] for e in read_events(run_directory) if e["event"] == "start"} - {0}
    for step in sorted(starts):
        axes.axvline(
            step, color="0.7", linewidth=0.8, label="restart" if step == min(starts) else None
        )
    axes.set(xlabel="step", ylabel="loss (nats)", title=run_directory.name)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    file, image = run_directory / "loss.png", io.BytesIO()
    figure.savefig(image, dpi=120, format="png")
    file.write_bytes(image.getvalue())
    return file


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
