"""fit(): the only training loop. A recipe gives it data, a loss, an evaluation and a start.

It restores, steps, accumulates, evaluates, saves, logs, stops and resumes; it knows no recipe.
"""

import contextlib
import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from biomedlm_jax import mesh as meshes
from biomedlm_jax.agreement import check_agreement, from_first_process, versions
from biomedlm_jax.allocator import keep_freed_memory, return_freed_memory
from biomedlm_jax.errors import InputError
from biomedlm_jax.training.checkpoint import MODEL, TRAINED, Checkpointer, choose_step
from biomedlm_jax.training.config import RunSettings
from biomedlm_jax.training.goodput import Stopwatch
from biomedlm_jax.training.lock import lock_run
from biomedlm_jax.training.metrics import (
    NullRecorder,
    Recorder,
    StepTimer,
    has_saved,
    plot_losses,
    was_evaluated,
)
from biomedlm_jax.training.optimizer import make_optimizer
from biomedlm_jax.training.provenance import changes, check_run, run_record, write_run
from biomedlm_jax.training.replay import replay_update, skipped_step
from biomedlm_jax.training.skips import SkippedUpdates
from biomedlm_jax.training.spikes import SpikeDetector
from biomedlm_jax.training.state import (
    TrainState,
    adapted,
    adapted_loss,
    frozen_part,
    init_state,
    jit_step,
    train_step,
)
from biomedlm_jax.training.stopping import (
    Interrupted,
    Stopped,
    Votes,
    interrupted_by_signals,
    most_of_all,
    stop_signals,
    wait_for_all,
)
from biomedlm_jax.training.watchdog import watch


class Data(Protocol):
    """An iterator of placed batches whose position is JSON."""

    def __next__(self) -> Any: ...

    def position(self) -> dict:
        """Return where the iterator stands."""
        ...

    def restore(self, position: dict) -> None:
        """Continue after `position`; raises InputError if it is of other data."""
        ...

    def at(self, step: int) -> Any:
        """Return the batch of a step, from 0, and leave the iterator where it stands."""
        ...

    def rows_of(self, step: int) -> list[int]:
        """Return the numbers of the rows, or questions, of that batch."""
        ...

    def close(self) -> None:
        """End reading threads."""
        ...


class StepData:
    """Batches that are functions of the step alone, each process building all of a batch."""

    def __init__(
        self,
        make_batch: Callable[[int], Any],
        layout,
        rows_of: Callable[[int], Iterable[int]] = lambda step: (),
    ):
        self._make_batch, self._layout, self._rows_of = make_batch, layout, rows_of
        self._step = 0

    def __next__(self) -> Any:
        self._step += 1
        return self.at(self._step - 1)

    def at(self, step: int) -> Any:
        """Return the batch of a step."""
        batch = self._make_batch(step)
        return jax.tree.map(lambda array: meshes.place(array, self._layout), batch)

    def rows_of(self, step: int) -> list[int]:
        """Return the numbers of what that batch consists of."""
        return [int(number) for number in self._rows_of(step)]

    def position(self) -> dict:
        """Return the number of batches handed out."""
        return {"step": self._step}

    def restore(self, position: dict) -> None:
        """Continue after that many batches."""
        self._step = position["step"]

    def close(self) -> None:
        """Nothing to close."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `fit` trains.

    `make_model(*base)` is traced and returns the starting model (a LanguageModel or a Scorer).
    `loss(model, batch, dropout_key=...)` is a scalar in nats. `evaluate(model, step, check_stop)`
    returns figures, every `evaluate_every` steps (0: never) and after the last; it calls
    `check_stop()` between its batches, in every process, and lets pass what that raises.
    `started_from` identifies the start by content. A resumed run may differ in `may_change`, names
    such as training.steps. `write(first_time)` writes the recipe's own files, in process 0.
    """

    name: str
    settings: RunSettings
    steps: int
    make_model: Callable[..., Any]
    base: list[Any] = dataclasses.field(default_factory=list)  # emptied; its arrays are reused
    added_tokens: int = 0  # vocabulary rows that are trained beside LoRA's factors
    saves_merged: bool = False  # checkpoints hold the model with LoRA's factors merged, too
    data: Data
    loss: Callable[..., jax.Array]
    evaluate: Callable[[Any, int, Callable[[], None]], dict[str, float]] | None = None
    evaluate_every: int = 0
    tokens_per_step: float
    flops_per_token: float
    started_from: Mapping[str, Any]
    may_change: Sequence[str] = ()
    history: Sequence[Mapping[str, Any]] = ()  # of such changes, for run.json
    write: Callable[[bool], None] = lambda first_time: None
    introduction: Sequence[str] = ()


def fit(
    recipe: Recipe,
    workdir: Path,
    mesh: Mesh,
    *,
    fallback: bool = False,
    replay: Path | None = None,
) -> tuple[Any, dict]:
    """Train until the recipe's last step, or resume the run in `workdir`.

    Writes `run.json`, `checkpoints/`, `metrics.jsonl`, `events.jsonl` and TensorBoard events. A
    signal (`stopping.SIGNALS`) ends the step or the evaluation's batch, saves and raises
    Interrupted; an evaluation that was not finished is the first thing that a resumed run does. The
    state is saved before it is evaluated. An update that is not finite is skipped and counted.
    Call it under `jax.set_mesh(mesh)`. Returns the model (LoRA merged) and {"step": ..., and the
    last evaluation's figures if this call evaluated}.

    Args:
      fallback: if the newest checkpoint is damaged, resume from the newest whole one.
      replay: a file in `skipped/`: compute that update again, print where the first value that is
        not finite arises, and raise Replayed.

    Raises:
      InputError: before anything is written, if settings, data and directory do not fit together,
        processes differ, or a checkpoint is damaged; later, if too many updates in a row were
        skipped, or an evaluation is not finite.
      LockError: another group of processes writes into `workdir`.
      SaveError: a checkpoint could not be written.
    """
    stopwatch = Stopwatch()
    keep_freed_memory()
    settings, steps = recipe.settings, recipe.steps
    faults = settings.faults
    tx, schedule = make_optimizer(settings.optimizer, steps=steps)
    make_state = functools.partial(_initial_state, recipe, tx)
    make_frozen = functools.partial(_frozen, recipe)
    abstract, abstract_frozen = (
        meshes.abstract_sharded(make, mesh, *recipe.base) for make in (make_state, make_frozen)
    )
    start = recipe.started_from
    record = run_record(recipe.name, settings, start, history=recipe.history)
    may_change = [*recipe.may_change, *([] if settings.has_dropout else ["training.accumulation"])]
    checked = functools.partial(
        check_run, workdir, recipe.name, settings, start, may_change=may_change
    )
    with contextlib.ExitStack() as resources:
        # Released in the reverse order: the lock last, after the checkpoint is written.
        resources.callback(recipe.data.close)
        watchdog = resources.enter_context(watch(faults.hang_minutes))
        check_agreement({**record, "versions": versions()})
        checked()
        resources.enter_context(interrupted_by_signals())  # the lock is released, then
        resources.enter_context(lock_run(workdir))
        resuming = checked()  # again: nobody else writes it now
        newest = math.inf if replay is None else skipped_step(replay) - 1
        begin = choose_step(workdir, fallback=fallback, newest=newest)
        lost = resuming and begin is None and replay is None
        if lost and from_first_process(lambda: has_saved(workdir)):
            raise InputError(
                f"{workdir} has saved checkpoints, and {workdir / 'checkpoints'} has none; restore "
                "or mount them, or choose another --workdir"
            )
        if replay is not None and begin is None and "weights" in start and not recipe.base:
            fix = f"give --init={start.get('path')} again"
            raise InputError(f"{workdir} keeps no checkpoint before step {newest + 1}; {fix}")
        changed = from_first_process(lambda: changes(workdir, record) if resuming else {})
        if jax.process_index() == 0 and replay is None:
            write_run(workdir, record)  # first: it marks the directory as this run's
            recipe.write(not resuming)
        wait_for_all("written")
        checkpointer = Checkpointer(
            workdir, keep=settings.checkpoint.keep, keep_every=settings.checkpoint.keep_every
        )
        resources.callback(checkpointer.close)

        # ---- State: abstract -> shardings -> restored or initialised, never unsharded.
        losses = {"sum": 0.0, "count": 0}  # since the last evaluation
        past: dict[str, Any] = {}
        if begin is not None and not abstract_frozen:
            recipe.base.clear()  # a checkpoint follows it
        merges = recipe.saves_merged and bool(abstract_frozen)
        if begin is not None:
            item = TRAINED if merges else MODEL
            state, past = checkpointer.restore(abstract, begin, item=item)
            recipe.data.restore(past["data"])
            losses = past["losses"]
        else:
            state = _sharded(make_state, abstract, recipe.base, donate=not abstract_frozen)
        frozen = ()
        if abstract_frozen:
            frozen = _sharded(make_frozen, abstract_frozen, recipe.base, donate=True)
        recipe.base.clear()
        watchdog.beat()
        loss_fn = functools.partial(adapted_loss, recipe.loss)
        if replay is not None:
            replay_update(
                replay,
                state,
                recipe.data,
                *frozen,
                loss_fn=loss_fn,
                seed=settings.training.seed,
                accumulation=settings.training.accumulation,
            )
        step = begin = int(state.step)
        recorder = NullRecorder()
        if jax.process_index() == 0:
            board = settings.logging.tensorboard
            recorder = Recorder(workdir, first_step=begin, steps=steps, tensorboard=board)
        resources.callback(recorder.close)
        wait_for_all("open")
        for line in recipe.introduction:
            recorder.print_line(line)
        if abstract_frozen:
            parts = abstract.model, abstract_frozen
            trained, fixed = (sum(x.size for x in jax.tree.leaves(part)) for part in parts)
            recorder.print_line(f"LoRA trains {trained:,} of {trained + fixed:,} parameters")
        if begin:
            recorder.print_line(f"resuming after step {begin} of {steps}")
        devices = {"processes": jax.process_count(), "devices": jax.device_count()}
        facts = {**devices, "versions": versions(), "changed": changed}
        stopwatch.lap("start")
        recorder.event("start", step=begin, seconds=stopwatch.rounded(), **facts)

        # ---- Steps.
        update = jit_step(
            train_step,
            abstract=abstract,
            tx=tx,
            seed=settings.training.seed,
            loss_fn=loss_fn,
            accumulation=settings.training.accumulation,
        )
        rates = np.asarray(jax.vmap(schedule)(np.arange(steps)))
        timer = StepTimer(recipe.tokens_per_step, recipe.flops_per_token)
        signals, votes = resources.enter_context(stop_signals(recorder)), Votes(mesh)
        spikes = SpikeDetector(faults.spike_deviations, past.get("spikes", ()))
        skips = SkippedUpdates(workdir, recorder, faults, checkpointer, **past.get("skips", {}))
        # One step may run ahead of its figures, so that devices never wait for the host; on a CPU
        # that would only delay Ctrl-C.
        run_ahead = 0 if meshes.platform() == "cpu" else 1
        result, pending, owed = {}, [], False  # owed: an evaluation
        saved, saved_at = begin, time.monotonic()
        wanted = {"stop": 0, "save": 0}  # by any process: a signal's number, a save by the clock

        def read(how_many: int, timed: bool) -> None:
            """Fetch the figures of all but the newest `how_many` steps."""
            while len(pending) > how_many:
                done, metrics, limit, vote = pending.pop(0)
                stop, save = map(int, np.asarray(vote))
                wanted.update(stop=max(wanted["stop"], stop), save=max(wanted["save"], save))
                figures = {name: float(metrics[name]) for name in ("loss", "grad_norm")}
                applied = bool(metrics["applied"])
                if applied:
                    losses["sum"] += figures["loss"]
                    losses["count"] += 1
                spikes.add(figures["loss"])
                rate = float(rates[done - 1 - skips.count])
                skips.check(done, figures, applied, limit, recipe.data)
                stopwatch.stepped = True
                due = done % settings.logging.every == 0 or done == begin + 1
                due = due or recorder.is_overdue()
                if timed and (due or timer.restarted):
                    figures |= timer.read(done)
                if due or not timed:
                    recorder.write(done, {**figures, "learning_rate": rate})
                    checkpointer.prune()

        def is_evaluated(step: int) -> bool:
            return recipe.evaluate is not None and _due(step, recipe.evaluate_every, steps)

        def evaluate() -> bool:
            """Evaluate; return False if a signal stopped it."""
            assert recipe.evaluate is not None
            try:
                with stopwatch.count("evaluate"):
                    figures = recipe.evaluate(_merged(state.model, frozen), step, check_stop)
            except Stopped:
                return False
            result.clear()
            if bad := {name: x for name, x in figures.items() if not np.isfinite(x)}:
                raise InputError(
                    f"the evaluation after step {step} has {bad}: the run diverged; start a new "
                    "one with a lower optimizer.learning_rate or a longer warmup"
                )
            if losses["count"]:
                result.update(train_loss=losses["sum"] / losses["count"])
            result.update(figures)
            losses.update(sum=0.0, count=0)
            return_freed_memory()
            recorder.write(step, result)
            return True

        def check_stop() -> None:
            watchdog.beat()
            wanted["stop"] = max(wanted["stop"], most_of_all(signals.number))
            if wanted["stop"]:
                raise Stopped

        def save() -> None:
            nonlocal saved, saved_at
            if saved == step:
                return
            position = {"data": recipe.data.position(), "losses": {**losses}}
            position |= {"spikes": spikes.losses(), "skips": skips.counts()}
            merged = _merged(state.model, frozen) if merges else None
            recorder.flush()  # a resume does not repeat the lines before a checkpoint
            with stopwatch.count("save"):
                checkpointer.save(state, position, merged=merged)
            saved, saved_at, wanted["save"] = step, time.monotonic(), 0
            recorder.event("save", step=step, seconds=stopwatch.rounded())

        if begin and is_evaluated(begin) and losses["count"]:
            if from_first_process(lambda: was_evaluated(workdir, begin)):
                losses.update(sum=0.0, count=0)
            else:
                owed = not evaluate()
        stopwatch.lap("start")
        while step < steps and not wanted["stop"]:
            with stopwatch.count("data"):
                batch = next(recipe.data)
            limit = math.inf if faults.spike == "off" else spikes.limit(unread=len(pending))
            bound = limit if faults.spike == "skip" else math.inf
            state, metrics = update(state, batch, *frozen, loss_limit=bound)
            step += 1
            late = 60 * settings.checkpoint.minutes
            late = 0 < late < time.monotonic() - saved_at
            pending.append((step, metrics, limit, votes.cast(signals.number, late)))
            read(run_ahead, timed=True)
            watchdog.beat()
            if jax.process_count() == 1:
                wanted["stop"] = wanted["stop"] or signals.number
            due = _due(step, settings.checkpoint.every, steps) or wanted["save"]
            if not (wanted["stop"] or due or is_evaluated(step)):
                continue
            read(0, timed=run_ahead == 0)
            save()  # before an evaluation, which may fail
            if is_evaluated(step):
                owed = bool(wanted["stop"]) or not evaluate()
            timer.restart()
            watchdog.beat()
        checkpointer.wait()
        stopwatch.lap("save")
        if step < steps or owed:
            recorder.event("stop", step=step, seconds=stopwatch.rounded())
            recorder.print_line(f"stopped at step {step} and saved; run the same command to resume")
            raise Interrupted(wanted["stop"], saved=True)
        recorder.event("finish", step=step, seconds=stopwatch.rounded())
        if jax.process_index() == 0:
            try:
                plot_losses(workdir)
            except OSError as error:  # a full disk
                recorder.print_line(f"cannot draw loss.png ({error})")
        recorder.print_line(f"finished {steps:,} {'step' if steps == 1 else 'steps'}: {workdir}")
        return _merged(state.model, frozen), {"step": step, **result}


def _initial_state(recipe: Recipe, tx, *base) -> TrainState:
    seed, added = recipe.settings.training.seed, recipe.added_tokens
    model = adapted(recipe.make_model(*base), recipe.settings.lora, seed=seed, added=added)
    return init_state(model, tx)


def _frozen(recipe: Recipe, *base) -> tuple:
    return frozen_part(recipe.make_model(*base), recipe.settings.lora)


def _sharded(make: Callable, abstract, base: list, *, donate: bool):
    """Return `make(*base)` sharded as `abstract`: no device ever holds more than its part.

    With `donate` the result takes over the arrays of `base` that it keeps, without a copy.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    donated = range(len(base)) if donate else ()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers")  # a vocabulary that grows
        return jax.jit(make, out_shardings=shardings, donate_argnums=donated)(*base)


def _merged(trained, frozen: tuple):
    return trained.merged(*frozen) if frozen else trained


def _due(step: int, every: int, steps: int) -> bool:
    """Return whether something done `every` steps (0: never), and after the last, is due now."""
    return bool(every) and (step % every == 0 or step == steps)
