"""finetune_longform(): teach a model to answer at length, and report what it then says."""

import contextlib
import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import optax
from ml_collections import ConfigDict

from biomedlm_jax import mesh as meshes
from biomedlm_jax.allocator import keep_freed_memory, return_freed_memory
from biomedlm_jax.corpus.tokenizer import save_tokenizer
from biomedlm_jax.generation.options import Options
from biomedlm_jax.interop.directories import GENERATION_CONFIG, model_config
from biomedlm_jax.longform.config import FREE, check_config
from biomedlm_jax.longform.evaluation import Evaluation, figures, place, write_answers
from biomedlm_jax.longform.losses import mean_target_loss
from biomedlm_jax.longform.origin import Origin, starting_point, train_and_dev
from biomedlm_jax.longform.report import KINDS, rouge
from biomedlm_jax.longform.rows import Limits
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.training.checkpoint import Checkpointer
from biomedlm_jax.training.loop import stop_signals, wait_for_all
from biomedlm_jax.training.metrics import Recorder, Silent, step_figures
from biomedlm_jax.training.optimizer import make_tuning_optimizer
from biomedlm_jax.training.origin import check_origin
from biomedlm_jax.training.run import check_run, write_json
from biomedlm_jax.training.state import TrainState, compile_step, laid_out, train_step

RUN_FILE = "longform.json"  # the config of the run; config.json is the model's
PREDICTIONS, REPORT = "predictions.jsonl", "report.json"


def finetune_longform(config: ConfigDict, model: str | Path, workdir: str | Path) -> dict:
    """Fine-tune `model` on the config's pairs of texts, and evaluate it; called again, go on.

    `model` is a run or a Hugging Face directory. Writes a run directory, for `biomedlm generate`
    and `export-hf`, with `metrics.jsonl` (losses, and after each epoch dev loss and ROUGE),
    `generation_config.json`, `predictions.jsonl` and `report.json`, which is returned: the dev
    figures of `longform.report` and the last dev loss. A finished run returns it again.

    Ctrl-C (or SIGTERM) ends the step, saves and raises KeyboardInterrupt. Raises ValueError or
    FileNotFoundError, before anything is compiled or written, if config, data, model and directory
    do not fit together.
    """
    keep_freed_memory()
    # ---- Check: everything that can be wrong is said now.
    workdir = Path(workdir).absolute()
    options, data, training = check_config(config), config.data, config.training
    limits = Limits(data.source_tokens, data.target_tokens, data.row_tokens)
    mesh = meshes.make_mesh(**config.mesh)
    meshes.check_fits(mesh, batch_size=training.batch_size, model=model_config(model))
    examples, dev_examples = train_and_dev(data)
    rouge(["a"], ["a"])  # that it is installed
    check_run(config, workdir, FREE, name=RUN_FILE)
    first = jax.process_index() == 0
    with jax.set_mesh(mesh), contextlib.ExitStack() as resources:
        start = starting_point(
            config, model, mesh, examples=(examples, dev_examples), limits=limits, options=options
        )
        check_origin(workdir / RUN_FILE, start.facts)
        if (workdir / REPORT).exists():  # it is written last
            if first:
                print(f"done already: {workdir / REPORT}", file=sys.stderr)
            return json.loads((workdir / REPORT).read_text(encoding="utf-8"))

        # ---- State: what was saved last, or the model with its new tokens.
        steps = training.epochs * start.train.batches
        tx, schedule = make_tuning_optimizer(steps=steps, **config.optimizer)
        make_state = functools.partial(start.state, tx)
        abstract = laid_out(make_state, mesh, start.base)
        wait_for_all("checked")
        if first:
            _write_run(workdir, config, options, abstract.model.config, start)
        wait_for_all("written")
        checkpointer = Checkpointer(workdir, keep=config.checkpoint.keep)
        resources.callback(checkpointer.close)
        restored = checkpointer.restore(abstract)
        if restored is None:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            restored = jax.jit(make_state, out_shardings=shardings)(start.base), {"loss_sum": 0.0}
        state, position = restored
        start.base = restored = None
        begin = int(state.step)
        recorder = Silent()
        if first:
            board = config.logging.tensorboard
            recorder = Recorder(workdir, first_step=begin, steps=steps, tensorboard=board)
        resources.callback(recorder.close)
        recorder.say(
            f"{len(examples):,} examples, {start.train.tokens:,} tokens in "
            f"{len(start.train.rows):,} rows of {limits.row} ({start.train.filled:.0%} full); "
            f"{start.train.at_limit(limits):,} cut to source_tokens={limits.source} or "
            f"target_tokens={limits.target}; {len(dev_examples):,} to evaluate; {steps:,} steps"
            + (f"; after step {begin}" if begin else "")
        )

        # ---- Steps, and what the model says then.
        update = compile_step(
            train_step,
            abstract=abstract,
            tx=tx,
            seed=training.seed,
            loss_of=functools.partial(mean_target_loss, chunks=training.loss_chunks),
        )
        evaluation = Evaluation(
            examples=dev_examples,
            packed=start.dev,
            tokenizer=start.tokenizer,
            limits=limits,
            options=options,
            batch_size=config.evaluation.batch_size,
            chunks=training.loss_chunks,
            mesh=mesh,
        )
        run = Run(config, start, steps, schedule, evaluation, checkpointer, recorder)
        model = run.train(update, state, position["loss_sum"])
        del state  # its moments; decoding needs memory, too
        return run.report(model, workdir)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's steps and its report need beside the state."""

    config: ConfigDict
    start: Origin
    steps: int
    schedule: optax.Schedule
    evaluation: Evaluation
    checkpointer: Checkpointer
    recorder: Recorder | Silent

    def train(self, update, state: TrainState, loss_sum: float) -> GPT:
        """The steps from `state` on; `loss_sum` is that of the epoch so far."""
        config, rows, recorder = self.config, self.start.train, self.recorder
        step, losses, stopping = int(state.step), [], False
        with stop_signals(recorder) as stop:
            while step < self.steps and not stopping:
                batch = rows.shuffled(step, seed=config.training.seed)
                state, metrics = update(state, place(batch, self.evaluation.mesh))
                step += 1
                if losses:  # at most one step runs ahead, so that Ctrl-C means this step
                    jax.block_until_ready(losses[-1])
                losses.append(metrics["loss"])
                ended = step % rows.batches == 0
                stopping = stop(ended or step % config.logging.every == 0)
                saving = stopping or ended or step % config.checkpoint.every == 0
                if saving or step % config.logging.every == 0:
                    recorder.write(step, step_figures(step, metrics, self.schedule))
                    # One after the other, so that an interrupted epoch has the same sum.
                    for loss in losses:
                        loss_sum += float(loss)
                    losses = []
                if ended:
                    recorder.write(step, self._of_epoch(step, state.model, loss_sum))
                    loss_sum = 0.0
                if saving:
                    self.checkpointer.save(state, {"loss_sum": loss_sum})
            self.checkpointer.wait()
            if stop(True):
                recorder.say(f"stopped at step {step}, saved; the same command goes on from there")
                raise KeyboardInterrupt
        return state.model

    def _of_epoch(self, step: int, model: GPT, loss_sum: float) -> dict[str, float]:
        batches, evaluation = self.start.train.batches, self.evaluation
        found = {
            "epoch": step // batches,
            "train_loss": loss_sum / batches,
            "dev_loss": evaluation.loss(model),
        }
        some = evaluation.examples[: self.config.evaluation.examples]
        if some and step < self.steps:  # after the last epoch the report says it
            answered = figures(some, evaluation.answers(model, some))
            found |= {kind: answered[kind]["mean"] for kind in KINDS}
        return_freed_memory()
        return found

    def report(self, model: GPT, workdir: Path) -> dict:
        """Ask the model, write what it says and how good that is, and return the figures."""
        evaluation = self.evaluation
        asked = evaluation.examples[: self.config.evaluation.final_examples or None]
        answers = evaluation.answers(model, asked)
        result = {"dev_loss": evaluation.loss(model), **figures(asked, answers)}
        if jax.process_index() == 0:
            write_answers(workdir / PREDICTIONS, asked, answers)
            write_json(workdir / REPORT, result)
        self.recorder.say(f"done: step {self.steps}, {workdir / REPORT}")
        return result


def _write_run(
    workdir: Path, config: ConfigDict, options: Options, model: GPTConfig, start: Origin
) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    # What this run starts from is part of what it is.
    write_json(workdir / RUN_FILE, {**json.loads(config.to_json()), "started_from": start.facts})
    write_json(workdir / "config.json", {"model": dataclasses.asdict(model)})
    write_json(workdir / GENERATION_CONFIG, options.settings(model, start.tokenizer))
    if not (workdir / "tokenizer.json").exists():  # else the facts say that it is the same
        save_tokenizer(start.tokenizer, workdir)
