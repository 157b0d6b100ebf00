"""fit(): the only training loop. A recipe gives it data, a loss, an evaluation and a start.

It restores, steps, accumulates, evaluates, saves, logs, stops and resumes; it knows no recipe.
"""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from biomedlm_jax import mesh as meshes
from biomedlm_jax.allocator import keep_freed_memory, return_freed_memory
from biomedlm_jax.errors import InputError
from biomedlm_jax.training.checkpoint import MODEL, TRAINED, Checkpointer, latest_step
from biomedlm_jax.training.config import RunSettings
from biomedlm_jax.training.metrics import (
    NullRecorder,
    Recorder,
    StepTimer,
    check_finite,
    plot_losses,
    was_evaluated,
)
from biomedlm_jax.training.optimizer import make_optimizer
from biomedlm_jax.training.provenance import check_run, write_run
from biomedlm_jax.training.state import (
    TrainState,
    adapted,
    adapted_loss,
    frozen_part,
    init_state,
    jit_step,
    train_step,
)
from biomedlm_jax.training.stopping import Stopped, stop_signals, wait_for_all


class Data(Protocol):
    """An iterator of placed batches whose position is JSON."""

    def __next__(self) -> Any: ...

    def position(self) -> dict:
        """Return where the iterator stands."""
        ...

    def restore(self, position: dict) -> None:
        """Continue after `position`; raises InputError if it is of other data."""
        ...

    def close(self) -> None:
        """End reading threads."""
        ...


class StepData:
    """Batches that are functions of the step alone, each process building all of a batch."""

    def __init__(self, make_batch: Callable[[int], Any], layout):
        self._make_batch, self._layout, self._step = make_batch, layout, 0

    def __next__(self) -> Any:
        batch = self._make_batch(self._step)
        self._step += 1
        return jax.tree.map(lambda array: meshes.place(array, self._layout), batch)

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


def fit(recipe: Recipe, workdir: Path, mesh: Mesh) -> tuple[Any, dict]:
    """Train until the recipe's last step, or resume the run in `workdir`.

    Writes `run.json`, `checkpoints/`, `metrics.jsonl` and TensorBoard events. Ctrl-C (or SIGTERM)
    ends the step or the evaluation's batch, saves and raises KeyboardInterrupt; an evaluation that
    was not finished is the first thing that a resumed run does. Call it under
    `jax.set_mesh(mesh)`. Returns the model (LoRA merged) and {"step": ..., and the last
    evaluation's figures if this call evaluated}. Raises InputError, before anything is written, if
    settings, data and directory do not fit together, and if a loss is not finite.
    """
    keep_freed_memory()
    settings, steps = recipe.settings, recipe.steps
    tx, schedule = make_optimizer(settings.optimizer, steps=steps)
    make_state = functools.partial(_initial_state, recipe, tx)
    make_frozen = functools.partial(_frozen, recipe)
    abstract, abstract_frozen = (
        meshes.abstract_sharded(make, mesh, *recipe.base) for make in (make_state, make_frozen)
    )
    start = recipe.started_from
    resuming = check_run(workdir, recipe.name, settings, start, may_change=recipe.may_change)
    with contextlib.ExitStack() as resources:
        resources.callback(recipe.data.close)
        wait_for_all("checked")
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            recipe.write(not resuming)
            write_run(workdir, recipe.name, settings, start, history=recipe.history)
        wait_for_all("written")
        checkpointer = Checkpointer(workdir, keep=settings.checkpoint.keep)
        resources.callback(checkpointer.close)

        # ---- State: abstract -> shardings -> restored or initialised, never unsharded.
        losses = {"sum": 0.0, "count": 0}  # since the last evaluation
        if latest_step(workdir) is not None and not abstract_frozen:
            recipe.base.clear()  # a checkpoint follows it
        merges = recipe.saves_merged and bool(abstract_frozen)
        if restored := checkpointer.restore(abstract, item=TRAINED if merges else MODEL):
            state, position = restored
            recipe.data.restore(position["data"])
            losses = position["losses"]
        else:
            state = _sharded(make_state, abstract, recipe.base, donate=not abstract_frozen)
        frozen = ()
        if abstract_frozen:
            frozen = _sharded(make_frozen, abstract_frozen, recipe.base, donate=True)
        recipe.base.clear()
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

        # ---- Steps.
        update = jit_step(
            train_step,
            abstract=abstract,
            tx=tx,
            seed=settings.training.seed,
            loss_fn=functools.partial(adapted_loss, recipe.loss),
            accumulation=settings.training.accumulation,
        )
        timer = StepTimer(recipe.tokens_per_step, recipe.flops_per_token)
        stop = resources.enter_context(stop_signals(recorder))
        # One step may run ahead of its figures, so that devices never wait for the host; on a CPU
        # that would only delay Ctrl-C.
        run_ahead = 0 if meshes.platform() == "cpu" else 1
        result, pending, stopping, owed = {}, [], False, False  # owed: an evaluation

        def read(how_many: int, timed: bool) -> None:
            """Fetch the figures of all but the newest `how_many` steps."""
            while len(pending) > how_many:
                done, metrics = pending.pop(0)
                figures = check_finite(done, metrics, workdir)
                losses["sum"] += figures["loss"]
                losses["count"] += 1
                due = done % settings.logging.every == 0 or done == begin + 1
                due = due or recorder.is_overdue()
                if timed and (due or timer.restarted):
                    figures |= timer.read(done)
                if due or not timed:
                    figures["learning_rate"] = float(np.asarray(schedule(done - 1)))
                    recorder.write(done, figures)

        def is_evaluated(step: int) -> bool:
            return recipe.evaluate is not None and _due(step, recipe.evaluate_every, steps)

        def evaluate() -> bool:
            """Evaluate; return False if a signal stopped it."""
            assert recipe.evaluate is not None
            try:
                figures = recipe.evaluate(_merged(state.model, frozen), step, check_stop)
            except Stopped:
                return False
            result.clear()
            if bad := {name: x for name, x in figures.items() if not np.isfinite(x)}:
                raise InputError(
                    f"the evaluation after step {step} has {bad}: the run diverged; start a new "
                    "one with a lower optimizer.learning_rate or a longer warmup"
                )
            result.update(train_loss=losses["sum"] / losses["count"], **figures)
            losses.update(sum=0.0, count=0)
            return_freed_memory()
            recorder.write(step, result)
            return True

        def check_stop() -> None:
            if stop(True):
                raise Stopped

        if begin and is_evaluated(begin) and losses["count"]:
            if was_evaluated(workdir, begin):
                losses.update(sum=0.0, count=0)
            else:
                owed = not evaluate()
                stopping = stop(True)
        while step < steps and not stopping:
            state, metrics = update(state, next(recipe.data), *frozen)
            step += 1
            pending.append((step, metrics))
            read(run_ahead, timed=True)
            stopping = stop(_due(step, settings.logging.every, steps))
            due = _due(step, settings.checkpoint.every, steps)
            if not (stopping or due or is_evaluated(step)):
                continue
            read(0, timed=run_ahead == 0)
            if is_evaluated(step):
                owed = stopping or not evaluate()
                stopping = stopping or stop(True)
            if stopping or due:
                position = {"data": recipe.data.position(), "losses": {**losses}}
                merged = _merged(state.model, frozen) if merges else None
                checkpointer.save(state, position, merged=merged)
            timer.restart()
        checkpointer.wait()
        if step < steps or owed:
            recorder.print_line(f"stopped at step {step} and saved; run the same command to resume")
            raise KeyboardInterrupt
        if jax.process_index() == 0:
            plot_losses(workdir)
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
