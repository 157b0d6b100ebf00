"""finetune_text(): the recipe of long answers, summaries and chats, and the report on them."""

import dataclasses
import functools
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from biomedlm_jax import mesh as meshes
from biomedlm_jax.agreement import from_first_process
from biomedlm_jax.errors import counted
from biomedlm_jax.files import content_hash, read_json, write_json, write_jsonl
from biomedlm_jax.finetuning.config import ChatSettings, TextSettings
from biomedlm_jax.finetuning.losses import target_loss
from biomedlm_jax.finetuning.pairs import ADDED_TOKENS
from biomedlm_jax.finetuning.shuffling import ShuffledTexts
from biomedlm_jax.finetuning.start import load_base_model, make_recipe
from biomedlm_jax.finetuning.text_data import read_data, text_data
from biomedlm_jax.finetuning.text_report import KINDS, text_report
from biomedlm_jax.generation.generator import Generator, answer_batches
from biomedlm_jax.generation.options import make_options
from biomedlm_jax.interop.directories import GENERATION_CONFIG, MODEL_FOLDER
from biomedlm_jax.interop.finetuned import save_finetuned
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.model.vocabulary import grow_vocabulary
from biomedlm_jax.training.fit import fit
from biomedlm_jax.training.provenance import check_run
from biomedlm_jax.training.recipe import StepData

PREDICTIONS, REPORT = "predictions.jsonl", "report.json"


def finetune_text(
    settings: TextSettings | ChatSettings,
    mesh: Mesh,
    model: str | Path,
    workdir: Path,
    **options: Any,
) -> dict:
    """Fine-tune `model` on the settings' texts or chats; resumes if `workdir` has the run.

    Every epoch ends with the dev loss, ROUGE of some dev answers, and the model in
    `workdir/model`. At the end writes `predictions.jsonl` and `report.json`, which is returned: the
    figures of `text_report`, if dev sources are answered, and the dev loss. A finished run returns
    it again. `options` are those of `fit`.
    """
    training, evaluation = settings.training, settings.evaluation
    decoding = make_options(**settings.generation)
    meshes.check_fits(mesh, batch_size=training.batch_size, accumulation=training.accumulation)
    left_out: Counter[str] = Counter()
    read = read_data(settings, left_out)
    added = ADDED_TOKENS if isinstance(settings, TextSettings) else settings.data.added_tokens
    start = load_base_model(model, settings, mesh, added_tokens=added, heads=False)
    positions, new = start.config.context_length, decoding.max_new_tokens
    if isinstance(settings, TextSettings):
        settings.check_positions(new, positions)
    texts = text_data(settings, read, start.tokenizer, start.config, left_out)
    if isinstance(settings, ChatSettings):
        settings.check_positions(max(map(len, texts.prefixes)) + new, positions)
        decoding = dataclasses.replace(decoding, ends=decoding.ends or texts.ends)
    dev, prompts, tokenizer = texts.dev, texts.prompts, texts.tokenizer
    rows: dict[str, Any] = {
        "row_length": settings.data.row_tokens,
        "batch_size": training.batch_size,
    }
    chosen: dict[str, Any] = {"masks": texts.masks, "epochs": texts.epochs, "seed": training.seed}
    data = ShuffledTexts(prompts, **rows, parts=training.accumulation, **chosen)
    dev_data = ShuffledTexts(texts.dev_prompts, **rows, masks=texts.dev_masks)
    layout = meshes.sharding(mesh, "batch", None)
    started_from = {**start.started_from, "texts": content_hash(texts.content)}
    started_from |= {"left_out": dict(left_out)} if left_out else {}
    started_from |= {f"generation.{name}": v for name, v in settings.generation.items()}
    resuming = check_run(workdir, settings.recipe, settings, started_from)
    if resuming and from_first_process((workdir / REPORT).exists) and not options.get("replay"):
        if jax.process_index() == 0:
            print(f"finished already: {workdir / REPORT}", file=sys.stderr)
        return read_json(workdir / REPORT)
    loss = functools.partial(target_loss, chunks=training.loss_chunks)
    compiled_loss = jax.jit(loss)

    def make_model(base) -> LanguageModel:
        # The published code of text tuning started them at random, as transformers did then.
        at_mean, key = isinstance(settings, ChatSettings), jax.random.key(training.seed)
        return grow_vocabulary(base, start.new_tokens, key=key, at_mean=at_mean)

    def dev_loss(model: LanguageModel, check_stop: Callable = lambda: None) -> float:
        batches = StepData(dev_data.in_order, layout)
        total = 0.0
        for _ in range(dev_data.steps_per_epoch):
            check_stop()
            total += float(compiled_loss(model, next(batches)))
        return total / dev_data.targets

    def answer(
        finetuned: LanguageModel, count: int, check_stop: Callable = lambda: None
    ) -> tuple[list[str], dict]:
        """Return the answers to the first dev sources, and the report on them."""
        prefixes = texts.prefixes[:count]
        answers = [""] * len(prefixes)
        batches = answer_batches(
            Generator(finetuned, tokenizer),
            prefixes,
            decoding,
            batch_size=evaluation.batch_size,
        )
        for number, (best, *_) in batches:
            answers[number] = best.text.strip()
            check_stop()
        sources, targets, groups = zip(*map(dataclasses.astuple, dev[:count]), strict=True)
        return answers, text_report(sources, targets, answers, groups=groups)

    def evaluate(finetuned: LanguageModel, step: int, check_stop: Callable) -> dict[str, float]:
        epoch = step // data.steps_per_epoch
        figures: dict[str, float] = {"dev_loss": dev_loss(finetuned, check_stop)}
        if evaluation.examples and epoch < training.epochs:  # after the last one: the report
            _, report = answer(finetuned, evaluation.examples, check_stop)
            figures |= {kind: report[kind]["mean"] for kind in KINDS}
        figures = {"epoch": epoch, **figures}
        facts = {**figures, "started_from": started_from}
        files = {GENERATION_CONFIG: decoding.to_generation_config(start.config, tokenizer)}
        saved = workdir / MODEL_FOLDER, finetuned, tokenizer
        save_finetuned(*saved, step=step, facts=facts, files=files)
        return figures

    full = data.tokens / (data.rows * data.row_length)
    recipe = make_recipe(
        start,
        settings,
        mesh,
        data,
        make_model=make_model,
        loss=loss,
        evaluate=evaluate,
        started_from=started_from,
        line=f"{counted(len(prompts), 'training text')} in {counted(data.rows, 'row')}, "
        f"{full:.0%} full {texts.description}"
        + "".join(f"; {n:,} left out of {reason}" for reason, n in left_out.items()),
    )
    finetuned, last = fit(recipe, workdir, mesh, **options)
    count = max(0, min(evaluation.final_examples or len(dev), len(dev)))
    answers, report = [], {}
    if count:
        if jax.process_index() == 0:
            print(f"answering {counted(count, 'dev source')}", file=sys.stderr, flush=True)
        answers, report = answer(finetuned, count)
    # A run that had finished all but its report evaluates nothing again.
    report = {"dev_loss": last["dev_loss"] if "dev_loss" in last else dev_loss(finetuned), **report}
    if jax.process_index() == 0:
        lines = [
            {"source": pair.source, "target": pair.target, "answer": text}
            for pair, text in zip(dev[:count], answers, strict=True)
        ]
        write_jsonl(workdir / PREDICTIONS, lines, ensure_ascii=False)
        write_json(workdir / REPORT, report)
    return report
