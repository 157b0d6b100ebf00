"""fit(): the only training loop. A recipe gives it data, a loss, an evaluation and a start.

It restores, steps, accumulates, evaluates, saves, logs, stops and resumes; it knows no recipe.
"""

import contextlib
import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from biomedlm_jax import mesh as meshes
from biomedlm_jax.agreement import check_agreement, from_first_process, versions
from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.training.checkpoint import MODEL, TRAINED, Checkpointer
from biomedlm_jax.training.goodput import Stopwatch
from biomedlm_jax.training.lock import lock_run
from biomedlm_jax.training.loop import Loop
from biomedlm_jax.training.metrics import (
    NullRecorder,
    Recorder,
    has_saved,
    plot_losses,
)
from biomedlm_jax.training.optimizer import make_optimizer
from biomedlm_jax.training.provenance import changes, check_run, run_record, write_run
from biomedlm_jax.training.recipe import Recipe
from biomedlm_jax.training.replay import replay_update, skipped_step
from biomedlm_jax.training.saved_steps import choose_step
from biomedlm_jax.training.state import (
    TrainState,
    adapted,
    adapted_loss,
    frozen_part,
    init_state,
    interned,
    jit_step,
    train_step,
)
from biomedlm_jax.training.stopping import (
    Votes,
    interrupted_by_signals,
    stop_signals,
    wait_for_all,
)
from biomedlm_jax.training.trackers import check_trackers
from biomedlm_jax.training.watchdog import watch


def fit(
    recipe: Recipe,
    workdir: Path,
    mesh: Mesh,
    *,
    fallback: bool = False,
    replay: Path | None = None,
) -> tuple[Any, dict]:
    """Train until the recipe's last step, or resume the run in `workdir`.

    Writes `run.json`, `checkpoints/`, `metrics.jsonl`, `events.jsonl` and, for trackers, what
    they write. A
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
    settings, steps = recipe.settings, recipe.steps
    faults = settings.faults
    tx, schedule = make_optimizer(settings.optimizer, steps=steps)
    parts = {"make_model": recipe.make_model, "lora": settings.lora}
    trained = {"seed": settings.training.seed, "added": recipe.added_tokens, "tx": tx}
    make_state = interned(functools.partial(_initial_state, **parts, **trained))
    make_frozen = interned(functools.partial(_frozen, **parts))
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
        from_first_process(lambda: check_trackers(settings.logging.trackers))
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
            recipe.write()
        wait_for_all("written")
        checkpointer = Checkpointer(
            workdir, keep=settings.checkpoint.keep, keep_every=settings.checkpoint.keep_every
        )
        resources.callback(checkpointer.close)

        # ---- State: abstract -> shardings -> restored or initialised, never unsharded.
        past: dict[str, Any] = {}
        if begin is not None and not abstract_frozen:
            recipe.base.clear()  # a checkpoint follows it
        merges = recipe.saves_merged and bool(abstract_frozen)
        if begin is not None:
            item = TRAINED if merges else MODEL
            state, past = checkpointer.restore(abstract, begin, item=item)
            recipe.data.restore(past["data"])
        else:
            state = _sharded(make_state, abstract, recipe.base, donate=not abstract_frozen)
        frozen = ()
        if abstract_frozen:
            frozen = _sharded(make_frozen, abstract_frozen, recipe.base, donate=True)
        recipe.base.clear()
        watchdog.reset()
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
        begin = int(state.step)
        recorder = NullRecorder()
        if jax.process_index() == 0:
            names, facts = settings.logging.trackers, {**record, "versions": versions()}
            about = {"trackers": names, "facts": facts}
            recorder = Recorder(workdir, first_step=begin, steps=steps, **about)
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

        update = jit_step(
            train_step,
            abstract=abstract,
            tx=tx,
            seed=settings.training.seed,
            loss_fn=loss_fn,
            accumulation=settings.training.accumulation,
        )
        loop = Loop(
            recipe,
            workdir,
            state,
            past,
            update=functools.partial(_updated, update, frozen),
            merge=functools.partial(
                _merged, frozen=frozen, view=settings.lora.frozen_dtype != "float32"
            ),
            merges=merges,
            rates=np.asarray(jax.vmap(schedule)(np.arange(steps))),
            votes=Votes(mesh),
            signals=resources.enter_context(stop_signals(recorder)),
            recorder=recorder,
            checkpointer=checkpointer,
            watchdog=watchdog,
            stopwatch=stopwatch,
        )
        del state  # the loop's, which an update takes over
        result = loop.run()
        if jax.process_index() == 0:
            try:
                plot_losses(workdir)
            except OSError as error:  # a full disk
                recorder.print_line(f"cannot draw loss.png ({error})")
        recorder.print_line(f"finished {counted(steps, 'step')}: {workdir}")
        return loop.model, {"step": loop.step, **result}


def _initial_state(*base, make_model: Callable, lora, seed: int, added: int, tx) -> TrainState:
    return init_state(adapted(make_model(*base), lora, seed=seed, added=added), tx)


def _frozen(*base, make_model: Callable, lora) -> tuple:
    return frozen_part(make_model(*base), lora)


def _sharded(make: Callable, abstract, base: list, *, donate: bool):
    """Return `make(*base)` sharded as `abstract`: no device ever holds more than its part.

    With `donate` the result takes over the arrays of `base` that it keeps, without a copy.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    donated = range(len(base)) if donate else ()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers")  # a vocabulary that grows
        return jax.jit(make, out_shardings=shardings, donate_argnums=donated)(*base)


def _updated(update: Callable, frozen: tuple, state, batch, **options):
    return update(state, batch, *frozen, **options)


def _merged(trained, *, frozen: tuple, view: bool):
    """Return the model: with `view` its factors stay apart, for float32 kernels may not fit."""
    if not frozen:
        return trained
    return trained.view(*frozen) if view else trained.merged(*frozen)
