"""finetune_questions(): the recipe of a head that answers a task's questions."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from biomedlm_jax import mesh as meshes
from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.files import content_hash
from biomedlm_jax.finetuning.config import QuestionSettings
from biomedlm_jax.finetuning.losses import question_loss
from biomedlm_jax.finetuning.shuffling import ShuffledQuestions
from biomedlm_jax.finetuning.start import load_base_model, make_recipe
from biomedlm_jax.interop.directories import MODEL_FOLDER, training_record
from biomedlm_jax.interop.finetuned import Head, read_facts, save_finetuned, with_head
from biomedlm_jax.model.heads import Scorer
from biomedlm_jax.model.vocabulary import grow_vocabulary
from biomedlm_jax.qa.models import check_head
from biomedlm_jax.qa.prompts import ADDED_TOKENS, HEAD_PROMPTS, spells_special
from biomedlm_jax.qa.questions import Skipped, overlap, questions_hash
from biomedlm_jax.qa.scoring import CLASSIFIER, score
from biomedlm_jax.qa.splits import read_questions, refuse_copy
from biomedlm_jax.qa.tasks import find_task, without_directory
from biomedlm_jax.training.fit import fit


def finetune_questions(
    settings: QuestionSettings, mesh: Mesh, model: str | Path, workdir: Path, **options: Any
) -> dict:
    """Fine-tune `model` on the settings' questions; resumes if `workdir` has the run.

    The dev split is answered after every epoch; `workdir/model` is the best model so far (by
    accuracy, the earliest of equals). A fine-tuned model of the same kind and classes continues
    with its head: MedMCQA and then MedQA are two calls. LoRA trains its factors, the head and the
    rows of added tokens. `options` are those of `fit`. Returns the steps done, the best dev
    accuracy in percent and its epoch.
    """
    folder, training, wanted = workdir / MODEL_FOLDER, settings.training, settings.task
    task, skipped = find_task(wanted.name, format=wanted.format), Skipped()
    train_path, splits = wanted.train_path or wanted.path, (wanted.train_split, wanted.dev_split)
    # Exports state the name of a set; they leave out the path, its place on this machine.
    name, place = without_directory(task.name), wanted.path or str(task.path or "")
    stated = dataclasses.replace(wanted, name=name, path=place)
    settings = dataclasses.replace(settings, task=stated)
    read: dict[str, Any] = {"fold": wanted.fold, "on_error": wanted.on_error, "labelled": True}
    read |= {"label_base": wanted.label_base, "twins": wanted.twins, "skipped": skipped}
    train = read_questions(task, train_path, split=wanted.train_split, **read)
    dev = read_questions(task, wanted.path, split=wanted.dev_split, **read)
    refuse_copy(train, dev, names=(f"{splits[0]} of {train_path or task.path}", splits[1]))
    start = load_base_model(model, settings, mesh, added_tokens=ADDED_TOKENS[task.kind], heads=True)
    rows = {"row_format": wanted.row_format, "max_length": wanted.max_length}
    head = Head(kind=task.kind, task=name, classes=task.classes, **rows)
    if start.head is not None:
        check_head(start.head, task, where=model, fix="start from the pre-trained model")
    if head.max_length > start.config.context_length:
        positions = start.config.context_length
        fix = f"set --config.task.max_length={positions}, which cuts longer questions"
        most = f"expected at most the model's {positions} positions; {fix}"
        raise InputError(f"got task.max_length={head.max_length}; {most}")
    encoded = HEAD_PROMPTS[head.kind](start.tokenizer, train, **rows)
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
    sets: dict[str, Any] = {"train_split": splits[0], "train_questions": questions_hash(train)}
    sets |= {"dev_split": splits[1], "dev_questions": questions_hash(dev)}
    before = training_record(model).get("facts", {})
    if "task" in before:  # staged training: what the start was trained on is not forgotten
        stage = {name: before[name] for name in ("task", *sets) if name in before}
        sets["earlier"] = [*before.get("earlier", ()), stage]
    both = [*train, *dev]
    alike = [one.id for one, same in zip(train, encoded.alike, strict=True) if same]
    skipped.note("of dev that are also in train", overlap(dev, train))
    skipped.note("spelling a special token, encoded as text", spells_special(start.tokenizer, both))
    skipped.note("with options of the same tokens", alike)

    def make_model(base) -> Scorer:
        if isinstance(base, Scorer):
            return base
        grow_key, score_key = jax.random.split(jax.random.key(training.seed))
        # At random, as the published code's: transformers had no other way then.
        trunk = grow_vocabulary(base, start.new_tokens, key=grow_key)
        return with_head(trunk, head, key=score_key)

    def evaluate(finetuned: Scorer, step: int, check_stop: Callable) -> dict[str, float]:
        given: dict[str, Any] = {"mode": CLASSIFIER, "check_stop": check_stop, **rows}
        items = score(finetuned, start.tokenizer, dev, task, **given)
        right = [item["prediction"] == item["gold"] for item in items[CLASSIFIER]]
        accuracy = 100 * float(np.mean(right))
        figures = {"epoch": step // data.steps_per_epoch, "dev_accuracy": accuracy}
        if accuracy > read_facts(folder).get("dev_accuracy", -1.0):
            facts = {**figures, "task": name, "started_from": started_from, **sets}
            save_finetuned(folder, finetuned, start.tokenizer, head, step=step, facts=facts)
        return figures

    recipe = make_recipe(
        start,
        settings,
        mesh,
        data,
        make_model=make_model,
        loss=question_loss,
        evaluate=evaluate,
        started_from=started_from,
        line=f"{task.name}: {counted(len(train), 'training question')}"
        f"{task.unlike_official(wanted.train_split, len(train))} "
        f"({sum(encoded.truncated):,} cut to {head.max_length} tokens), "
        f"{counted(len(dev), 'dev question')}"
        f"{task.unlike_official(wanted.dev_split, len(dev))}; skipped: {skipped}",
    )
    _, done = fit(recipe, workdir, mesh, **options)
    best = read_facts(folder)
    if "dev_accuracy" not in best:
        raise InputError(f"{workdir} is finished, but {folder} is gone; choose another --workdir")
    return {"step": done["step"], "dev_accuracy": best["dev_accuracy"], "epoch": best["epoch"]}
