"""finetune_text(): the recipe of long answers and summaries, and the report on them."""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
from ml_collections import ConfigDict
from tokenizers import Tokenizer

from biomedlm_jax import mesh as meshes
from biomedlm_jax.files import read_json, write_json, write_text
from biomedlm_jax.finetuning.config import PairSettings, TextSettings
from biomedlm_jax.finetuning.losses import target_loss
from biomedlm_jax.finetuning.pairs import ADDED_TOKENS, text_prompts, train_and_dev
from biomedlm_jax.finetuning.shuffling import ShuffledTexts
from biomedlm_jax.finetuning.start import load_start, make_recipe
from biomedlm_jax.finetuning.text_report import KINDS, text_report
from biomedlm_jax.generation.generator import Generator, generate_until
from biomedlm_jax.generation.options import Options, make_options
from biomedlm_jax.interop.directories import MODEL_FOLDER
from biomedlm_jax.interop.heads import save_finetuned
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.model.vocabulary import grow_vocabulary
from biomedlm_jax.qa.questions import counted
from biomedlm_jax.settings import read_settings
from biomedlm_jax.training.fit import StepData, fit
from biomedlm_jax.training.provenance import check_run, content_hash

PREDICTIONS, REPORT = "predictions.jsonl", "report.json"


def finetune_text(config: ConfigDict, model: str | Path, workdir: str | Path) -> dict:
    """Fine-tune `model` on the config's pairs of texts; called again on the same `workdir`, resume.

    After every epoch the dev loss is computed, some dev sources are answered for ROUGE, and the
    model is written to `workdir/model`, with the generation_config.json that it decodes by. At the
    end writes `predictions.jsonl` and `report.json`, which is returned: the figures of
    `text_report` and the dev loss. A finished run returns it again. Raises what `finetune` does.
    """
    workdir = Path(workdir).absolute()
    settings = read_settings(TextSettings, config)
    training, evaluation, mesh = settings.training, settings.evaluation, settings.mesh.make()
    options = make_options(**settings.generation)
    meshes.check_fits(mesh, batch_size=training.batch_size, accumulation=training.accumulation)
    train, dev = train_and_dev(settings.data)
    with jax.set_mesh(mesh):
        start = load_start(model, settings, mesh, added_tokens=ADDED_TOKENS, heads=False)
        check_positions(settings.data, options, start.config.context_length)
        encode = functools.partial(
            text_prompts, start.tokenizer, settings=settings.data, end_id=start.config.eos_token_id
        )
        (prompts, cut), (dev_prompts, _) = encode(train), encode(dev)
        rows = {"row_length": settings.data.row_tokens, "batch_size": training.batch_size}
        data = ShuffledTexts(prompts, **rows, parts=training.accumulation, seed=training.seed)
        dev_data, layout = ShuffledTexts(dev_prompts, **rows), meshes.sharding(mesh, "batch", None)
        steps = data.steps_per_epoch * training.epochs
        decoding = {f"generation.{name}": value for name, value in settings.generation.items()}
        texts = content_hash([prompts, dev_prompts])
        started_from = {**start.started_from, "texts": texts, **decoding}
        if check_run(workdir, "text", settings, started_from) and (workdir / REPORT).exists():
            if jax.process_index() == 0:
                print(f"finished already: {workdir / REPORT}", file=sys.stderr)
            return read_json(workdir / REPORT)

        def make_model(base) -> LanguageModel:
            return grow_vocabulary(base, start.new_tokens, key=jax.random.key(training.seed))

        loss = functools.partial(target_loss, chunks=training.loss_chunks)
        compiled_loss = jax.jit(loss)

        def dev_loss(tuned: LanguageModel) -> float:
            batches = StepData(dev_data.in_order, layout)
            sums = [compiled_loss(tuned, next(batches)) for _ in range(dev_data.steps_per_epoch)]
            return sum(map(float, sums)) / dev_data.targets

        def report(tuned: LanguageModel, count: int) -> tuple[list[str], dict]:
            """Answer the first dev sources."""
            texts = generate_until(
                Generator(tuned, start.tokenizer),
                [prompt.prefix for prompt in dev_prompts[:count]],
                until=(),
                batch_size=evaluation.batch_size,
                **{"max_new_tokens": options.max_new_tokens, **settings.generation},
            )
            sources, targets, groups = zip(*map(dataclasses.astuple, dev[:count]), strict=True)
            texts = [text.strip() for text in texts]
            return texts, text_report(sources, targets, texts, groups=groups)

        def evaluate(tuned: LanguageModel, step: int) -> dict[str, float]:
            figures = {"epoch": step // data.steps_per_epoch, "dev_loss": dev_loss(tuned)}
            if evaluation.examples and step < steps:  # after the last epoch: the report
                _, reported = report(tuned, evaluation.examples)
                figures |= {kind: reported[kind]["mean"] for kind in KINDS}
            save_finetuned(
                workdir / MODEL_FOLDER,
                tuned,
                start.tokenizer,
                step=step,
                facts={**figures, "started_from": started_from},
                generation=options.to_hf(tuned.config, start.tokenizer),
            )
            return figures

        full = data.tokens / (data.rows * data.row_length)
        recipe = make_recipe(
            start,
            settings,
            mesh,
            data,
            epochs=training.epochs,
            name="text",
            make_model=make_model,
            added_tokens=trailing_tokens(start.tokenizer, start.config.vocab_size),
            loss=loss,
            evaluate=evaluate,
            started_from=started_from,
            lines=(
                f"{counted(len(train), 'training text')} in {counted(data.rows, 'row')}, "
                f"{full:.0%} full ({cut:,} cut to {settings.data.source_tokens} source or "
                f"{settings.data.target_tokens} target tokens), {counted(len(dev), 'dev text')}",
            ),
        )
        tuned, _ = fit(recipe, workdir, mesh)
        count = min(evaluation.final_examples or len(dev), len(dev))
        if jax.process_index() == 0:
            print(f"answering {counted(count, 'dev source')}", file=sys.stderr, flush=True)
        texts, figures = report(tuned, count)
        figures = {"dev_loss": dev_loss(tuned), **figures}
    if jax.process_index() == 0:
        lines = [
            {"source": pair.source, "target": pair.target, "answer": text}
            for pair, text in zip(dev, texts, strict=False)
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text(workdir / PREDICTIONS, text)
        write_json(workdir / REPORT, figures)
    return figures


def check_positions(data: PairSettings, options: Options, positions: int) -> None:
    """Raise ValueError unless rows, and a source with its answer, fit the model's positions."""
    longest = max(data.row_tokens, data.source_tokens + 1 + options.max_new_tokens)
    if longest > positions:
        raise ValueError(
            f"got data.row_tokens={data.row_tokens}, and data.source_tokens={data.source_tokens} "
            f"with generation.max_new_tokens={options.max_new_tokens}; expected at most the "
            f"model's {positions} positions"
        )


def trailing_tokens(tokenizer: Tokenizer, vocab_size: int) -> int:
    """Return how many of the last ids are added tokens, whose rows LoRA trains too."""
    ids = {tokenizer.token_to_id(token) for token in ADDED_TOKENS}
    return next(n for n in range(len(ids) + 1) if vocab_size - 1 - n not in ids)
