"""finetune_questions(): the recipe of a head that answers a task's questions."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from biomedlm_jax import mesh as meshes
from biomedlm_jax.finetuning.config import QuestionSettings, TaskSettings
from biomedlm_jax.finetuning.losses import question_loss
from biomedlm_jax.finetuning.shuffling import ShuffledQuestions
from biomedlm_jax.finetuning.start import Start, load_start, make_recipe
from biomedlm_jax.interop.directories import MODEL_FOLDER
from biomedlm_jax.interop.heads import Head, read_facts, save_finetuned, with_head
from biomedlm_jax.model.heads import CHOICE, CLASSIFICATION, Scorer
from biomedlm_jax.model.vocabulary import grow_vocabulary
from biomedlm_jax.qa.prompts import ADDED_TOKENS, choice_prompts, classification_prompts
from biomedlm_jax.qa.questions import Question, Skipped, counted
from biomedlm_jax.qa.scoring import CLASSIFIER, score
from biomedlm_jax.qa.tasks import Task, find_task, read_questions
from biomedlm_jax.settings import read_settings
from biomedlm_jax.training.fit import fit
from biomedlm_jax.training.provenance import content_hash


def finetune_questions(config: ConfigDict, model: str | Path, workdir: str | Path) -> dict:
    """Fine-tune `model` on the config's questions; called again on the same `workdir`, resume.

    After every epoch the dev split is answered, and the best model so far (by accuracy, the
    earliest where equal) is kept in `workdir/model`. A fine-tuned model of the same kind and
    classes continues with its own head: MedMCQA and then MedQA are two calls. With LoRA, the
    factors, the head and the rows of added tokens are trained. Returns the steps done, the best
    dev accuracy in percent and its epoch. Raises what `finetune` does.
    """
    workdir = Path(workdir).absolute()
    folder = workdir / MODEL_FOLDER
    settings = read_settings(QuestionSettings, config)
    training, mesh = settings.training, settings.mesh.make()
    task, skipped = find_task(settings.task.name, format=settings.task.format), Skipped()
    train, dev = (
        labelled_questions(task, settings.task, split=split, skipped=skipped)
        for split in (settings.task.train_split, settings.task.dev_split)
    )
    with jax.set_mesh(mesh):
        tokens = ADDED_TOKENS[task.kind]
        start = load_start(model, settings, mesh, added_tokens=tokens, heads=True)
        head = next_head(start, task, settings.task, where=model)
        rows = {"row_format": head.row_format, "max_length": head.max_length}
        make_prompts = choice_prompts if head.kind == CHOICE else classification_prompts
        encoded = make_prompts(start.tokenizer, train, **rows)
        labels = [int(question.label) for question in train if question.label is not None]
        data = ShuffledQuestions(
            encoded.prompts,
            labels,
            batch_size=training.batch_size,
            multiple=meshes.batch_shards(mesh) * training.accumulation,
            parts=training.accumulation,
            kind=head.kind,
            seed=training.seed,
        )
        content = [encoded.prompts, labels, [dataclasses.astuple(question) for question in dev]]
        started_from = {**start.started_from, "questions": content_hash(content)}

        def make_model(base) -> Scorer:
            if isinstance(base, Scorer):
                return base
            grow_key, score_key = jax.random.split(jax.random.key(training.seed))
            trunk = grow_vocabulary(base, start.new_tokens, key=grow_key)
            return with_head(trunk, head, key=score_key)

        def evaluate(tuned: Scorer, step: int) -> dict[str, float]:
            ways = score(tuned, start.tokenizer, dev, task, mode=CLASSIFIER, **rows)
            figures = {"epoch": step // data.steps_per_epoch, "dev_accuracy": accuracy(ways)}
            best = read_facts(folder).get("dev_accuracy", -1.0)
            if figures["dev_accuracy"] > best:
                facts = {**figures, "task": task.name, "started_from": started_from}
                save_finetuned(folder, tuned, start.tokenizer, head, step=step, facts=facts)
            return figures

        recipe = make_recipe(
            start,
            settings,
            mesh,
            data,
            epochs=training.epochs,
            name="questions",
            make_model=make_model,
            added_tokens=len(tokens),
            loss=question_loss,
            evaluate=evaluate,
            started_from=started_from,
            lines=(
                f"{task.name}: {counted(len(train), 'training question')} "
                f"({sum(encoded.truncated):,} cut to {head.max_length} tokens), "
                f"{counted(len(dev), 'dev question')}; skipped: {skipped}",
            ),
        )
        _, done = fit(recipe, workdir, mesh)
        best = read_facts(folder)
    if "dev_accuracy" not in best:
        raise ValueError(f"{workdir} is finished, but {folder} is gone; choose another --workdir")
    return {"step": done["step"], **{name: best[name] for name in ("dev_accuracy", "epoch")}}


def labelled_questions(
    task: Task, settings: TaskSettings, *, split: str, skipped: Skipped
) -> list[Question]:
    """Return the questions of a split; raises ValueError if one has no answer."""
    where, fold, on_error = settings.path or None, settings.fold, settings.on_error
    questions = read_questions(
        task, where, split=split, fold=fold, on_error=on_error, skipped=skipped
    )
    unlabelled = sum(question.label is None for question in questions)
    if unlabelled:
        raise ValueError(
            f"{unlabelled} of {counted(len(questions), 'question')} of {task.name}, {split}, have "
            "no answer; fine-tuning needs all answers of the train and the dev split"
        )
    return questions


def next_head(start: Start, task: Task, settings: TaskSettings, *, where: str | Path) -> Head:
    """Return the head of the run; raises ValueError if the model's own head is another kind."""
    head = Head(
        kind=task.kind,
        task=task.name,
        row_format=settings.row_format,
        max_length=settings.max_length,
        classes=task.classes if task.kind == CLASSIFICATION else (),
    )
    old = start.head
    if old is not None and (old.kind, old.classes) != (head.kind, head.classes):
        raise ValueError(
            f"{where} has a {old.kind} head {list(old.classes) or ''}, and {task.name} needs "
            f"{head.kind} {list(head.classes) or ''}; start from the pre-trained model"
        )
    if head.max_length > start.config.context_length:
        raise ValueError(
            f"got task.max_length={head.max_length}; expected at most the model's "
            f"{start.config.context_length} positions"
        )
    return head


def accuracy(ways: dict[str, list[dict]]) -> float:
    """Return the percentage of questions that the head answered right."""
    return 100 * float(np.mean([item["prediction"] == item["gold"] for item in ways[CLASSIFIER]]))
