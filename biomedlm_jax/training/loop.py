"""Loop: the steps of a run, with their figures, evaluations, saves and stops."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from biomedlm_jax import mesh as meshes
from biomedlm_jax.agreement import from_first_process
from biomedlm_jax.allocator import return_freed_memory
from biomedlm_jax.errors import InputError
from biomedlm_jax.model.lora import without_factors
from biomedlm_jax.training.checkpoint import Checkpointer
from biomedlm_jax.training.goodput import Stopwatch
from biomedlm_jax.training.metrics import NullRecorder, Recorder, StepTimer, was_evaluated
from biomedlm_jax.training.recipe import Recipe
from biomedlm_jax.training.skips import SkippedUpdates
from biomedlm_jax.training.spikes import SpikeDetector
from biomedlm_jax.training.state import TrainState
from biomedlm_jax.training.stopping import Interrupted, Stopped, StopSignals, Votes, most_of_all
from biomedlm_jax.training.watchdog import Watchdog


class Pending(NamedTuple):
    """A step whose figures were not fetched yet."""

    step: int
    metrics: Mapping[str, jax.Array]
    limit: float  # of the loss
    vote: Any


class Loop:
    """Takes the steps of a run from `state` on, the position that `past` of a checkpoint has.

    `update(state, batch, loss_limit=...)` is a step, `merge` returns the model of what is trained,
    and `merges` says whether checkpoints hold that, too; `rates` are the learning rates of all
    updates. The others are as `fit` made them.
    """

    def __init__(
        self,
        recipe: Recipe,
        workdir: Path,
        state: TrainState,
        past: Mapping[str, Any],
        *,
        update: Callable,
        merge: Callable[[Any], Any],
        merges: bool,
        rates: np.ndarray,
        votes: Votes,
        signals: StopSignals,
        recorder: Recorder | NullRecorder,
        checkpointer: Checkpointer,
        watchdog: Watchdog,
        stopwatch: Stopwatch,
    ):
        self._recipe, self._workdir, self._state = recipe, workdir, state
        self._update, self._merge, self._merges, self._rates = update, merge, merges, rates
        self._votes, self._signals, self._recorder = votes, signals, recorder
        self._checkpointer, self._watchdog, self._stopwatch = checkpointer, watchdog, stopwatch
        settings = recipe.settings
        self._faults, self._checkpoint = settings.faults, settings.checkpoint
        self._logging = settings.logging
        self.step = self._begin = int(state.step)
        # Of the losses since the last evaluation.
        self._losses: dict[str, float] = {"sum": 0.0, "count": 0, **past.get("losses", {})}
        self._timer = StepTimer(recipe.tokens_per_step, recipe.flops_per_token)
        self._spikes = SpikeDetector(self._faults.spike_deviations, past.get("spikes", ()))
        skipped = past.get("skips", {})
        self._skips = SkippedUpdates(workdir, recorder, self._faults, checkpointer, **skipped)
        # One step may run ahead of its figures, so that devices never wait for the host; on a CPU
        # that would only delay Ctrl-C.
        self._run_ahead = 0 if meshes.platform() == "cpu" else 1
        self._pending: list[Pending] = []
        self._figures: dict[str, float] = {}  # of the last evaluation in this loop
        self._saved, self._saved_at = self._begin, time.monotonic()
        self._stop = 0  # the number of a signal that a process received
        self._save_is_due = False  # by the clock of a process

    @property
    def model(self) -> Any:
        """The model as it is now, with LoRA's factors: merged, or applied layer by layer."""
        return self._merge(self._state.model)

    def run(self) -> dict[str, float]:
        """Take all steps, and return the figures of the last evaluation, if there was one.

        Raises Interrupted after a signal, saved.
        """
        steps, owed = self._recipe.steps, False  # owed: an evaluation
        if self._begin and self._is_evaluated() and self._losses["count"]:
            if from_first_process(lambda: was_evaluated(self._workdir, self._begin)):
                self._losses.update(sum=0.0, count=0)
            else:
                owed = not self._evaluate()
        self._stopwatch.lap("start")
        while self.step < steps and not self._stop:
            self._take_step()
            due = _due(self.step, self._checkpoint.every, steps) or self._save_is_due
            if not (self._stop or due or self._is_evaluated()):
                continue
            self._read(0, timed=self._run_ahead == 0)
            self._save()  # before an evaluation, which may fail
            if self._is_evaluated():
                owed = bool(self._stop) or not self._evaluate()
            self._timer.restart()
            self._watchdog.reset()
        self._checkpointer.wait()
        self._stopwatch.lap("save")
        stopped = self.step < steps or owed
        seconds = self._stopwatch.rounded()
        self._recorder.event("stop" if stopped else "finish", step=self.step, seconds=seconds)
        if stopped:
            line = f"stopped at step {self.step} and saved; run the same command to resume"
            self._recorder.print_line(line)
            raise Interrupted(self._stop, saved=True)
        return self._figures

    def _take_step(self) -> None:
        with self._stopwatch.count("data"):
            batch = next(self._recipe.data)
        spike, ahead = self._faults.spike, len(self._pending)
        limit = math.inf if spike == "off" else self._spikes.limit(unread=ahead)
        bound = limit if spike == "skip" else math.inf
        self._state, metrics = self._update(self._state, batch, loss_limit=bound)
        self.step += 1
        longest = 60 * self._checkpoint.minutes
        late = 0 < longest < time.monotonic() - self._saved_at
        vote = self._votes.cast(self._signals.number, late)
        self._pending.append(Pending(self.step, metrics, limit, vote))
        self._read(self._run_ahead, timed=True)
        self._watchdog.reset()
        if jax.process_count() == 1:
            self._stop = self._stop or self._signals.number

    def _read(self, how_many: int, *, timed: bool) -> None:
        """Fetch the figures of all but the newest `how_many` steps."""
        while len(self._pending) > how_many:
            done, metrics, limit, vote = self._pending.pop(0)
            stop, save = map(int, np.asarray(vote))
            self._stop, self._save_is_due = max(self._stop, stop), self._save_is_due or bool(save)
            figures = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
            applied = bool(metrics["applied"])
            if applied:
                self._losses["sum"] += figures["loss"]
                self._losses["count"] += 1
            self._spikes.add(figures["loss"])
            rate = float(self._rates[done - 1 - self._skips.count])
            self._skips.check(done, figures, applied, limit, self._recipe.data)
            self._stopwatch.stepped = True
            due = done % self._logging.every == 0 or done == self._begin + 1
            due = due or self._recorder.is_overdue()
            if timed and (due or self._timer.restarted):
                figures |= self._timer.read(done)
            if due or not timed:
                self._recorder.write(done, {**figures, "learning_rate": rate})
                self._checkpointer.prune()

    def _is_evaluated(self) -> bool:
        recipe = self._recipe
        return recipe.evaluate is not None and _due(self.step, recipe.evaluate_every, recipe.steps)

    def _evaluate(self) -> bool:
        """Evaluate; return False if a signal stopped it."""
        assert self._recipe.evaluate is not None
        try:
            with self._stopwatch.count("evaluate"):
                figures = self._recipe.evaluate(self.model, self.step, self._check_stop)
        except Stopped:
            return False
        if bad := {name: x for name, x in figures.items() if not np.isfinite(x)}:
            raise InputError(
                f"the evaluation after step {self.step} has {bad}: the run diverged; start a new "
                "one with a lower optimizer.learning_rate or a longer warmup"
            )
        total, count = self._losses["sum"], self._losses["count"]
        self._figures = {**({"train_loss": total / count} if count else {}), **figures}
        self._losses.update(sum=0.0, count=0)
        return_freed_memory()
        self._recorder.write(self.step, self._figures)
        return True

    def _check_stop(self) -> None:
        self._watchdog.reset()
        self._stop = max(self._stop, most_of_all(self._signals.number))
        if self._stop:
            raise Stopped

    def _save(self) -> None:
        if self._saved == self.step:
            return
        data, losses = self._recipe.data.position(), {**self._losses}
        position: dict[str, Any] = {"data": data, "losses": losses}
        position |= {"spikes": self._spikes.losses(), "skips": self._skips.counts()}
        merged = without_factors(self.model) if self._merges else None
        self._recorder.flush()  # a resume does not repeat the lines before a checkpoint
        with self._stopwatch.count("save"):
            self._checkpointer.save(self._state, position, merged=merged)
        self._saved, self._saved_at, self._save_is_due = self.step, time.monotonic(), False
        self._recorder.event("save", step=self.step, seconds=self._stopwatch.rounded())


def _due(step: int, every: int, steps: int) -> bool:
    """Return whether something done `every` steps (0: never), and after the last, is due now."""
    return bool(every) and (step % every == 0 or step == steps)
