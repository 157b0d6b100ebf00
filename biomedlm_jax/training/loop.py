"""pretrain(): one visible loop."""

import contextlib
import functools
import signal
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from biomedlm_jax import mesh as meshes
from biomedlm_jax.allocator import keep_freed_memory, return_freed_memory
from biomedlm_jax.corpus.batches import Batches, check_tokens, validation_batches
from biomedlm_jax.corpus.tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash
from biomedlm_jax.corpus.tokens import read_manifest
from biomedlm_jax.model import attention
from biomedlm_jax.training.checkpoint import Checkpointer
from biomedlm_jax.training.loss import next_token_loss, summed_loss
from biomedlm_jax.training.metrics import (
    Recorder,
    Silent,
    flops_per_token,
    peak_flops,
    step_figures,
    validation_metrics,
)
from biomedlm_jax.training.optimizer import make_optimizer
from biomedlm_jax.training.run import check_config, check_run, write_config, write_json
from biomedlm_jax.training.state import abstract_state, compile_step, init_state, train_step


def pretrain(config: ConfigDict, workdir: str | Path) -> dict:
    """Train the config's GPT on its token rows; called again on the same `workdir`, go on.

    Writes `config.json`, the tokenizer, the rows' `manifest.json`, `checkpoints/`, `metrics.jsonl`
    and TensorBoard events into `workdir`. Ctrl-C (or SIGTERM) ends the step, saves and raises
    KeyboardInterrupt. Returns the step and, if this call evaluated, the last validation metrics.
    Raises ValueError, before anything is compiled or written, if the config, the data or the
    directory do not fit together.
    """
    keep_freed_memory()
    # ---- Check: everything that can be wrong is said now.
    workdir = Path(workdir).absolute()
    model_config = check_config(config)
    first = jax.process_index() == 0
    mesh = meshes.make_mesh(**config.mesh)
    training = config.training
    meshes.check_fits(
        mesh, batch_size=training.batch_size, accumulation=training.accumulation, model=model_config
    )
    if model_config.context_length % training.loss_chunks:
        raise ValueError(
            f"training.loss_chunks={training.loss_chunks} does not divide "
            f"model.context_length={model_config.context_length}"
        )
    kernel = attention.check_training(model_config, mesh)
    tx, schedule = make_optimizer(steps=training.steps, **config.optimizer)
    manifest = read_manifest(config.data.path)
    known = (workdir / "tokenizer.json").exists()  # a run keeps its tokenizer
    tokenizer = load_tokenizer(workdir if known else config.data.path)
    check_tokens(
        manifest,
        vocab_size=model_config.vocab_size,
        length=model_config.context_length,
        eos_id=model_config.eos_token_id,
        tokenizer_hash=tokenizer_hash(tokenizer),
    )
    if training.evaluate_every and not manifest["splits"]["validation"]["rows"]:
        raise ValueError(
            f"{config.data.path} has no validation rows; build it with a --validation_fraction, "
            "or set --config.training.evaluate_every=0"
        )
    rows = meshes.sharding(mesh, "batch", "length")
    batches = Batches(
        config.data.path,
        split="train",
        batch_size=training.batch_size,
        sharding=rows,
        seed=config.data.seed,
    )
    check_run(config, workdir)

    # ---- State: abstract -> shardings -> restored or initialised, never unsharded.
    with contextlib.ExitStack() as resources:
        resources.callback(batches.close)
        resources.enter_context(jax.set_mesh(mesh))
        abstract = abstract_state(model_config, tx, mesh)
        wait_for_all("checked")
        if first and not known:
            write_config(config, workdir)
            write_json(workdir / "manifest.json", manifest)
            save_tokenizer(tokenizer, workdir)
        wait_for_all("written")
        checkpointer = Checkpointer(workdir, keep=config.checkpoint.keep)
        resources.callback(checkpointer.close)
        restored = checkpointer.restore(abstract)
        if restored is None:
            state = init_state(model_config, tx, mesh, seed=training.seed)
        else:
            state, position = restored
            batches.restore(position)
            if first:
                write_config(config, workdir)  # what may change (the mesh, a path) has changed
        step = begin = int(state.step)
        recorder = Silent()
        if first:
            recorder = Recorder(
                workdir,
                first_step=begin,
                steps=training.steps,
                tensorboard=config.logging.tensorboard,
            )
        resources.callback(recorder.close)
        _introduce(recorder, model_config, mesh, manifest, config, begin, kernel)

        # ---- Steps.
        update = compile_step(
            train_step,
            abstract=abstract,
            tx=tx,
            seed=training.seed,
            loss_of=functools.partial(next_token_loss, chunks=training.loss_chunks),
            accumulation=training.accumulation,
        )
        evaluate = _evaluator(config, manifest, mesh)
        pace = Pace(model_config, tokens_per_step=training.batch_size * manifest["length"])
        stop = resources.enter_context(stop_signals(recorder))
        result, pending, stopping = {}, None, False
        while step < training.steps and not stopping:
            state, metrics = update(state, next(batches))
            step += 1
            if pending:  # at most one step runs ahead, so that Ctrl-C means this step
                jax.block_until_ready(pending["loss"])
            # The step before: fetching its figures waits for work that is already behind us.
            if pending and pending["step"] % config.logging.every == 0:
                recorder.write(*_figures(pending, schedule, pace))
            elif pending and pace.restarted:
                pace.read(_figures(pending, schedule)[0])
            pending = {"step": step, **metrics}
            stopping = stop(step % config.logging.every == 0)
            last = stopping or step == training.steps
            evaluating = _due(step, training.evaluate_every, training.steps)
            saving = last or _due(step, config.checkpoint.every, training.steps)
            if evaluating or saving:
                recorder.write(*_figures(pending, schedule))
                pending = None
                if evaluating:
                    result = evaluate(state.model)
                    return_freed_memory()
                    recorder.write(step, result)
                if saving:
                    checkpointer.save(state, batches.position())
                pace.restart()
        checkpointer.wait()
        if step < training.steps:
            recorder.say(f"stopped at step {step}, saved; the same command goes on from there")
            raise KeyboardInterrupt
        recorder.say(f"done: step {step}, {workdir}")
        return {"step": step, **result}


class Pace:
    """Seconds per step, tokens per second and MFU between two readings.

    A reading is taken at one point of the loop only, when a step was dispatched and the one before
    it fetched: so the steps between two readings are counted right, whether dispatch waits or not.
    """

    def __init__(self, config, *, tokens_per_step: int):
        self._tokens = tokens_per_step
        self._flops = flops_per_token(config)
        peak = peak_flops(jax.devices()[0].device_kind)
        self._peak = peak * jax.device_count() if peak else None
        self._last = None

    def read(self, step: int) -> dict[str, float]:
        """Figures of the steps since the last reading; none at the first one."""
        now, last = time.perf_counter(), self._last
        self._last = step, now
        if last is None:
            return {}
        seconds = (now - last[1]) / (step - last[0])
        speed = self._tokens / seconds
        figures = {"step_seconds": seconds, "tokens_per_second": speed}
        if self._peak:
            figures["mfu"] = speed * self._flops / self._peak
        return figures

    @property
    def restarted(self) -> bool:
        """Whether the next reading has none before it."""
        return self._last is None

    def restart(self) -> None:
        """Forget the last reading, because something else than steps took time since."""
        self._last = None


def _figures(done: dict, schedule, pace: Pace | None = None) -> tuple[int, dict[str, float]]:
    step, advice = done["step"], "lengthen optimizer.warmup_steps, and start a new run"
    advice = f"Lower optimizer.learning_rate, or {advice}"
    figures = step_figures(step, done, schedule, advice=advice)
    return step, {**figures, **(pace.read(step) if pace else {})}


def _evaluator(config: ConfigDict, manifest: dict, mesh):
    """A function from the model to validation metrics over every process's rows."""
    training = config.training
    limit = training.evaluate_batches if training.evaluate_batches > 0 else None
    loss_sums = jax.jit(functools.partial(summed_loss, chunks=training.loss_chunks))
    split = manifest["splits"]["validation"]

    def evaluate(model) -> dict[str, float]:
        total = count = 0.0
        rows = meshes.sharding(mesh, "batch", "length")
        for tokens, weights in validation_batches(
            config.data.path, batch_size=training.batch_size, sharding=rows, limit=limit
        ):
            sums = loss_sums(model, tokens, weights_B=weights)
            total, count = total + float(sums[0]), count + float(sums[1])
        return validation_metrics(
            total / count, tokens=split["tokens"], text_bytes=split["text_bytes"]
        )

    return evaluate


@contextlib.contextmanager
def stop_signals(recorder):
    """Yield a function that says whether to stop; the second signal ends the process at once."""
    asked = []

    def ask(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        recorder.say("stopping after this step; the state is being saved (again: stop at once)")

    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread: nobody can send us a signal
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(agree: bool) -> bool:
        if jax.process_count() == 1:
            return bool(asked)
        # All processes must save the same step, so they ask each other, and seldom.
        return agree and bool(multihost_utils.process_allgather(np.array(bool(asked))).any())

    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for_all(what: str) -> None:
    """Let no process go on before all are here, so that none sees a half-made run directory."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"the run directory is {what}")


def _due(step: int, every: int, steps: int) -> bool:
    """Whether something done `every` steps (0: never), and after the last, is due now."""
    return bool(every) and (step % every == 0 or step == steps)


def _introduce(recorder, model_config, mesh, manifest, config, begin: int, kernel: str) -> None:
    train = manifest["splits"]["train"]
    tokens = config.training.steps * config.training.batch_size * manifest["length"]
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    recorder.say(
        f"{model_config.parameter_count:,} parameters on {mesh.size} "
        f"{jax.devices()[0].device_kind} ({sizes}), {np.dtype(model_config.dtype).name}, "
        f"attention by {kernel}"
    )
    recorder.say(
        f"{config.training.steps:,} steps of {config.training.batch_size} x {manifest['length']} "
        f"tokens: {tokens / train['tokens']:.2f} passes over {train['tokens']:,} tokens"
    )
    if begin:
        recorder.say(f"resuming after step {begin} of {config.training.steps}")
