"""The whole journey on a small invented world: text -> tokens -> GPT -> Hugging Face -> answers."""

import contextlib
import json
import math
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape

from biomedlm_jax.corpus.documents import read_documents
from biomedlm_jax.corpus.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens
from biomedlm_jax.generation.generator import generate
from biomedlm_jax.interop.huggingface import export_hf, import_hf, load
from biomedlm_jax.interop.modelcard import training_facts
from biomedlm_jax.quickstart.config import (
    DISEASES,
    EPOCHS,
    LENGTH,
    VOCAB_SIZE,
    get_config,
    get_finetuning_config,
)
from biomedlm_jax.quickstart.thesis import as_table, compare
from biomedlm_jax.quickstart.world import (
    ABSTRACTS,
    make_world,
    prompts,
    write_questions,
    write_world,
)
from biomedlm_jax.training.loop import pretrain

BARS = "▁▂▃▄▅▆▇█"


def take_tour(
    out: str | Path, *, steps: int, documents: int, epochs: int = EPOCHS, seed: int = 0
) -> dict:
    """Make everything below the new directory `out`, say what happens, and return the figures.

    `steps` are of pre-training and `epochs` of fine-tuning.

    Raises FileExistsError if `out` holds anything, and ValueError if a check on the way fails.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another --out, or remove it")
    console, began = Console(highlight=False), time.perf_counter()
    figures = {}

    @contextlib.contextmanager
    def stage(title: str):
        console.print(f"[bold]{title}[/bold]")
        start = time.perf_counter()
        yield
        figures.setdefault("seconds", {})[title] = round(time.perf_counter() - start, 1)

    with stage("1  a small invented world, in abstracts"):
        world = make_world(seed, diseases=DISEASES)
        sizes = figures["world"] = write_world(
            out / "world", seed=seed, documents=documents, diseases=DISEASES
        )
        texts = [d.text for d in read_documents([out / "world" / ABSTRACTS])]
        console.print(f"   {sizes['documents']:,} abstracts, {sizes['facts']} facts; one begins:")
        console.print(f"   [dim]{escape(' '.join(texts[0].split())[:230])}…[/dim]")
    with stage("2  a tokenizer of its own"):
        tokenizer = train_tokenizer(iter(texts), vocab_size=VOCAB_SIZE)
        save_tokenizer(tokenizer, out / "tokenizer")
        console.print(f"   {VOCAB_SIZE:,} entries, the last one <|endoftext|>")
    with stage("3  rows of tokens"):
        manifest = build_tokens(
            read_documents([out / "world" / ABSTRACTS]),
            load_tokenizer(out / "tokenizer"),
            out / "tokens",
            length=LENGTH,
            validation_fraction=0.03,
        )
        train = manifest["splits"]["train"]
        console.print(f"   {train['tokens']:,} tokens to train on, in rows of {LENGTH}")
    with stage("4  pre-training"):
        config = get_config(str(out / "tokens"), steps=steps)
        # One row for every device, at least.
        config.training.batch_size = math.lcm(config.training.batch_size, jax.device_count())
        figures["validation"] = pretrain(config, out / "run")
        losses = [r["loss"] for r in _records(out / "run") if "loss" in r]
        console.print(f"   loss {losses[0]:.2f} {_sparkline(losses)} {losses[-1]:.2f}")
        if not losses[-1] < 0.7 * losses[0]:
            raise ValueError(f"the loss went from {losses[0]:.2f} to {losses[-1]:.2f} only")
    with stage("5  to Hugging Face and back"):
        model, tokenizer = load(out / "run")
        facts = training_facts(out / "run", step=config.training.steps)
        export_hf(model, tokenizer, out / "hf", training_facts=facts)
        # Whose weights they are need not be said here: they are this run's.
        import_hf(out / "hf", out / "imported", notify=lambda text: None)
        again, _ = load(out / "imported")
        tokens = jax.numpy.array([tokenizer.encode(texts[0]).ids[:LENGTH]])
        here, there = np.asarray(model(tokens)), np.asarray(again(tokens))
        figures["logits_equal"] = bool((here == there).all())
        if not figures["logits_equal"]:
            raise ValueError("the re-imported model computes other logits than the trained one")
        console.print(f"   {here.size:,} logits before and after: equal to the last bit")
    with stage("6  what it says"):
        asked = prompts(world)[:4]
        answers = generate(again, tokenizer, [p["prompt"] for p in asked], max_new_tokens=12)
        for question, answer in zip(asked, answers, strict=True):
            said = answer.strip().split(".")[0]
            console.print(f"   {escape(question['prompt'])} [bold]{escape(said)}[/bold]", end="")
            console.print(f"   [dim](the world says: {question['completion'].strip()})[/dim]")
    with stage("7  does reading pay? questions about facts that no training question tells"):
        counts = figures["questions"] = write_questions(out / "questions", world)
        console.print(f"   {counts['train']} questions to learn from, {counts['test']} to answer")
        config = get_finetuning_config(f"jsonl:{out / 'questions'}", epochs=epochs)
        figures["answers"] = compare(config, out / "run", out / "thesis")
        console.print(as_table(figures["answers"]))
    figures["seconds"]["all"] = round(time.perf_counter() - began, 1)
    _summarise(console, out, figures)
    (out / "summary.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def _records(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _sparkline(values: list[float]) -> str:
    low, high = min(values), max(values)
    scale = (len(BARS) - 1) / ((high - low) or 1)
    return "".join(BARS[round((value - low) * scale)] for value in values)


def _summarise(console: Console, out: Path, figures: dict) -> None:
    validation = figures["validation"]
    console.print(
        f"\n[bold]Done in {figures['seconds']['all']:.0f} s.[/bold] Held-out text: "
        f"{validation['bits_per_byte']:.3f} bits per byte, perplexity "
        f"{validation['perplexity']:.1f}. Invented names, no medical knowledge."
    )
    for name, what in {
        "world": "abstracts and facts",
        "questions": "train.jsonl, dev.jsonl, test.jsonl, as MedQA has them",
        "tokenizer": "tokenizer.json and companions",
        "tokens": "packed rows in ArrayRecord, manifest.json",
        "run": "config, checkpoints, metrics.jsonl, TensorBoard events",
        "hf": "config.json, model.safetensors: load it with transformers",
        "imported": "the same model, converted back",
        "thesis": "both fine-tuned models and their answers",
    }.items():
        console.print(f"   {out / name!s:32} {what}")
