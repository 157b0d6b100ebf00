"""Run every step on a synthetic corpus: text, tokens, pre-training, Hugging Face, questions."""

import contextlib
import math
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape

from biomedlm_jax.corpus.documents import read_documents
from biomedlm_jax.corpus.tokenizer import save_tokenizer, train_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_jsonl, write_json
from biomedlm_jax.generation.generator import generate
from biomedlm_jax.interop.huggingface import export_hf, import_hf, load
from biomedlm_jax.interop.modelcard import training_facts
from biomedlm_jax.quickstart.abstracts import ABSTRACTS, fact_prompts, write_world
from biomedlm_jax.quickstart.config import (
    EPOCHS,
    FAMILIES,
    LENGTH,
    VOCAB_SIZE,
    finetuning_config,
    pretraining_config,
)
from biomedlm_jax.quickstart.effect import as_text, measure_effect
from biomedlm_jax.quickstart.multiple_choice import write_questions
from biomedlm_jax.training.pretrain import pretrain

CONTENTS = {
    "world": "abstracts and facts",
    "questions": "train.jsonl, dev.jsonl, test.jsonl in MedQA's format",
    "tokenizer": "tokenizer.json and companions",
    "tokens": "packed rows in ArrayRecord, manifest.json",
    "run": "config, checkpoints, metrics.jsonl, loss.png, TensorBoard events",
    "hf": "config.json, model.safetensors: load it with transformers",
    "imported": "the same model, converted back",
    "effect": "both fine-tuned models and the reports on their answers",
}


def run_quickstart(
    out: str | Path, *, steps: int, documents: int, epochs: int = EPOCHS, family: str = "gpt2"
) -> dict:
    """Run every step in the new directory `out`, print the results, and return the figures.

    `steps` is the number of pre-training steps, `epochs` that of fine-tuning epochs, `family` one
    of `MODELS`. The figures are also written to summary.json.

    Raises InputError if `out` is not empty, or a check fails.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; choose another --out, or remove it")
    console, start = Console(highlight=False, soft_wrap=True), time.perf_counter()
    figures: dict = {"seconds": {}}

    @contextlib.contextmanager
    def stage(title: str):
        console.print(f"[bold]{len(figures['seconds']) + 1}  {title}[/bold]")
        before = time.perf_counter()
        yield
        figures["seconds"][title] = round(time.perf_counter() - before, 1)

    with stage("write abstracts about a small invented world"):
        world = write_world(out / "world", families=FAMILIES, documents=documents)
        texts = [document.text for document in read_documents([out / "world" / ABSTRACTS])]
        console.print(f"   {documents:,} abstracts about {FAMILIES} diseases. The first begins:")
        console.print(f"   [dim]{escape(' '.join(texts[0].split())[:230])}...[/dim]")
    with stage("train a tokenizer"):
        tokenizer = train_tokenizer(iter(texts), vocab_size=VOCAB_SIZE)
        save_tokenizer(tokenizer, out / "tokenizer")
        console.print(f"   {VOCAB_SIZE:,} entries, the last one <|endoftext|>")
    with stage("build token rows"):
        manifest = build_tokens(
            read_documents([out / "world" / ABSTRACTS]),
            tokenizer,
            out / "tokens",
            length=LENGTH,
            validation_fraction=0.03,
        )
        tokens = manifest["splits"]["train"]["tokens"]
        console.print(f"   {tokens:,} training tokens in rows of {LENGTH}")
    with stage("pre-train"):
        config = pretraining_config(str(out / "tokens"), steps=steps, family=family)
        # Every device needs a row.
        config.training.batch_size = math.lcm(config.training.batch_size, jax.device_count())
        figures["validation"] = pretrain(config, out / "run")
        records = read_jsonl(out / "run" / "metrics.jsonl")
        losses = [record["loss"] for _, record in records if "loss" in record]
        console.print(f"   loss {losses[0]:.2f} {_sparkline(losses)} {losses[-1]:.2f}")
        if not losses[-1] < 0.7 * losses[0]:
            raise InputError(f"the loss fell from {losses[0]:.2f} to {losses[-1]:.2f} only")
    with stage("export to Hugging Face and import again"):
        model, tokenizer = load(out / "run")
        assert tokenizer is not None  # the run has one
        facts = training_facts(out / "run", step=steps)
        export_hf(model, tokenizer, out / "hf", training_facts=facts)
        # The licence of the weights is that of this run, so the notice is left out.
        import_hf(out / "hf", out / "imported", notify=lambda text: None)
        imported, _ = load(out / "imported")
        ids = jax.numpy.array([tokenizer.encode(texts[0]).ids[:LENGTH]])
        before, after = np.asarray(model(ids)), np.asarray(imported(ids))
        figures["logits_equal"] = np.array_equal(before, after)
        if not figures["logits_equal"]:
            raise InputError("the re-imported model computes other logits than the trained one")
        console.print(f"   {before.size:,} logits before and after are bit-identical")
    with stage("complete sentences"):
        examples = fact_prompts(world, 4)
        answers = generate(
            imported, tokenizer, [one["prompt"] for one in examples], max_new_tokens=8
        )
        for example, answer in zip(examples, answers, strict=True):
            text = escape(answer.strip().split(".")[0])
            console.print(f"   {escape(example['prompt'])} [bold]{text}[/bold]", end="")
            console.print(f" [dim](fact: {escape(example['completion'].strip())})[/dim]")
    with stage("measure whether pre-training helps to answer questions about held-out diseases"):
        counts = figures["questions"] = write_questions(out / "questions", world)
        console.print(f"   {counts['train']} questions to train on, {counts['test']} to answer")
        config = finetuning_config(f"jsonl:{out / 'questions'}", epochs=epochs)
        figures["effect"] = measure_effect(config, out / "run", out / "effect")
        console.print(as_text(figures["effect"]), markup=False)
    figures["seconds"]["all"] = round(time.perf_counter() - start, 1)
    write_json(out / "summary.json", figures)
    validation = figures["validation"]
    console.print(
        f"\n[bold]Finished in {figures['seconds']['all']:.0f} s.[/bold] Held-out text: "
        f"{validation['bits_per_byte']:.3f} bits per byte, perplexity "
        f"{validation['perplexity']:.1f}. All names are invented; this is no medical knowledge."
    )
    for name, content in CONTENTS.items():
        console.print(f"   {out / name!s:32} {content}")
    return figures


def _sparkline(values: list[float]) -> str:
    bars, low, high = "▁▂▃▄▅▆▇█", min(values), max(values)
    scale = (len(bars) - 1) / ((high - low) or 1)
    return "".join(bars[round((value - low) * scale)] for value in values)
