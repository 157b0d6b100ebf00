"""finetune(): teach a model a task's questions, many of them in a row, and keep its best state."""

import contextlib
import functools
import json
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from biomedlm_jax import mesh as meshes
from biomedlm_jax.allocator import keep_freed_memory, return_freed_memory
from biomedlm_jax.qa import rows as formats
from biomedlm_jax.qa import setup
from biomedlm_jax.qa.losses import batch_loss
from biomedlm_jax.qa.origin import labelled_examples, starting_point
from biomedlm_jax.qa.scoring import CLASSIFIER, score
from biomedlm_jax.qa.shuffling import Shuffled
from biomedlm_jax.qa.tasks import Skipped, Task, find_task
from biomedlm_jax.qa.tuned import best_facts, save_tuned
from biomedlm_jax.training.checkpoint import Checkpointer
from biomedlm_jax.training.loop import stop_signals, wait_for_all
from biomedlm_jax.training.metrics import Recorder, Silent, step_figures
from biomedlm_jax.training.optimizer import make_tuning_optimizer
from biomedlm_jax.training.origin import check_origin, content_hash
from biomedlm_jax.training.run import check_run, write_json
from biomedlm_jax.training.state import compile_step, laid_out, train_step

RUN_FILE = "finetuning.json"  # the config of the run; config.json is its best checkpoint's


def finetune(config: ConfigDict, model: str | Path, workdir: str | Path) -> dict:
    """Fine-tune `model`, a run or a Hugging Face directory; called again, go on where it stopped.

    After every epoch the dev split is answered, and the best state so far (by accuracy, the
    earliest where equal) is kept in `workdir/best`, which every later command takes as `--model`.
    A fine-tuned directory of the same kind and classes goes on with its own head, so that
    MedMCQA and then MedQA are two calls. With `config.lora.rank` above 0 only low-rank factors,
    the head and the added tokens' embeddings are trained, and merged when they are kept.

    Ctrl-C (or SIGTERM) ends the step, saves and raises KeyboardInterrupt. Returns the steps done,
    the best dev accuracy in percent and its epoch. Raises ValueError, before anything is compiled
    or written, if config, data, model or directory do not fit together.
    """
    keep_freed_memory()
    # ---- Check: everything that can be wrong is said now.
    workdir = Path(workdir).absolute()
    setup.check_config(config)
    training, lora = config.training, config.lora
    mesh = meshes.make_mesh(**config.mesh)
    task = find_task(config.task.name)
    skipped = Skipped()
    examples = [
        labelled_examples(config, task, split, skipped) for split in ("train_split", "dev_split")
    ]
    check_run(config, workdir, setup.FREE, name=RUN_FILE)
    with jax.set_mesh(mesh), contextlib.ExitStack() as resources:
        start, tokenizer, head = starting_point(config, task, model, mesh)
        make = formats.choice_prompts if head.kind == "choice" else formats.classification_prompts
        made = make(tokenizer, examples[0], row_format=head.row_format, max_length=head.max_length)
        labels = [example.label for example in examples[0]]
        start.facts["questions"] = content_hash([made.prompts, labels])
        data = Shuffled(
            made.prompts,
            labels,
            batch_size=training.batch_size,
            multiple=meshes.batch_shards(mesh) * training.accumulation,
            parts=training.accumulation,
            kind=head.kind,
            seed=training.seed,
        )
        steps = data.steps_per_epoch * training.epochs
        tx, schedule = make_tuning_optimizer(steps=steps, **config.optimizer)

        # ---- State: the model with its head, or the adapter beside the frozen model.
        make_state = functools.partial(start.state, tx)
        abstract = laid_out(make_state, mesh, start.base)
        first = jax.process_index() == 0
        check_origin(workdir / RUN_FILE, start.facts)
        wait_for_all("checked")
        if first:
            workdir.mkdir(parents=True, exist_ok=True)
            # What this run starts from is part of what it is.
            write_json(workdir / RUN_FILE, {**_plain(config), "started_from": start.facts})
        wait_for_all("written")
        checkpointer = Checkpointer(workdir, keep=config.checkpoint.keep)
        resources.callback(checkpointer.close)
        restored = checkpointer.restore(abstract)
        if restored is None:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            state = jax.jit(make_state, out_shardings=shardings)(start.base)
        else:
            state, _ = restored
        constants = (start.frozen(mesh),) if lora.rank else ()
        start.base = None
        step = begin = int(state.step)
        recorder = Silent()
        if first:
            tensorboard = config.logging.tensorboard
            recorder = Recorder(workdir, first_step=begin, steps=steps, tensorboard=tensorboard)
        resources.callback(recorder.close)
        recorder.say(
            f"{task.name}: {len(examples[0]):,} questions to learn ({sum(made.truncated):,} cut to "
            f"{head.max_length} tokens), {len(examples[1]):,} to check; skipped: {skipped}"
        )
        recorder.say(
            f"{training.epochs} epochs of {data.steps_per_epoch} steps, about "
            f"{data.rows_per_step:.1f} rows of {data.row_length} tokens for "
            f"{training.batch_size} questions" + (f"; after step {begin}" if begin else "")
        )

        # ---- Steps.
        update = compile_step(
            train_step,
            abstract=abstract,
            tx=tx,
            seed=training.seed,
            loss_of=batch_loss,
            accumulation=training.accumulation,
        )
        stop = resources.enter_context(stop_signals(recorder))
        best, stopping = best_facts(workdir), False
        layout = meshes.sharding(mesh, "batch", None)
        while step < steps and not stopping:
            batch = jax.tree.map(lambda a: meshes.place(a, layout), data.batch(step))
            state, metrics = update(state, batch, *constants)
            step += 1
            ended = step % data.steps_per_epoch == 0
            stopping = stop(ended or step % config.logging.every == 0)
            saving = stopping or ended or step % config.checkpoint.every == 0
            if step % config.logging.every == 0 or saving:
                recorder.write(step, step_figures(step, metrics, schedule))
            if ended:
                tuned = state.model.merged(*constants) if lora.rank else state.model
                found = _dev_accuracy(tuned, tokenizer, examples[1], task, head)
                return_freed_memory()
                epoch = step // data.steps_per_epoch
                recorder.write(step, {"epoch": epoch, "dev_accuracy": found})
                if found > best.get("dev_accuracy", -1.0):
                    best = {"dev_accuracy": found, "epoch": epoch, "task": task.name}
                    facts = {**best, "started_from": start.facts}
                    save_tuned(workdir / "best", tuned, tokenizer, head, step=step, facts=facts)
            if saving:
                checkpointer.save(state, {"step": step})
        checkpointer.wait()
        if step < steps:
            recorder.say(f"stopped at step {step}, saved; the same command goes on from there")
            raise KeyboardInterrupt
        if not best:
            raise ValueError(f"{workdir} is finished, but {workdir / 'best'} is gone; start anew")
        recorder.say(
            f"done: best dev accuracy {best['dev_accuracy']:.1f} % after epoch {best['epoch']}, "
            f"{workdir / 'best'}"
        )
        return {"step": step, "dev_accuracy": best["dev_accuracy"], "epoch": best["epoch"]}


def _dev_accuracy(tuned, tokenizer, examples, task: Task, head: setup.Head) -> float:
    items = score(
        tuned,
        tokenizer,
        examples,
        task,
        mode=CLASSIFIER,
        row_format=head.row_format,
        max_length=head.max_length,
    )[CLASSIFIER]
    right = [item["prediction"] == item["gold"] for item in items]
    return 100 * float(np.mean(right))


def _plain(config: ConfigDict) -> dict:
    return json.loads(config.to_json())
