"""finetune_longform(): teach a model to answer at length, and report what it then says.

Axes: B rows, L tokens of a row.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from biomedlm_jax import mesh as meshes
from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.corpus.tokenizer import save_tokenizer
from biomedlm_jax.generation.options import SETTINGS, Options
from biomedlm_jax.generation.text import Generator, check_tokenizer
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.longform import rows as packing
from biomedlm_jax.longform.config import DECODING, check_config
from biomedlm_jax.longform.examples import Example, read_examples, split
from biomedlm_jax.longform.report import KINDS, report
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.model.tokens import grow_vocabulary
from biomedlm_jax.training.checkpoint import save_model
from biomedlm_jax.training.loss import cross_entropy
from biomedlm_jax.training.optimizer import warmup_linear
from biomedlm_jax.training.state import TrainState, abstract_state, compile_step, train_step


def finetune_longform(
    config: ConfigDict, model_path: str | Path, workdir: str | Path, *, say: Callable = print
) -> dict:
    """Fine-tune the model at `model_path` on the config's pairs of texts, and evaluate it.

    Writes a run directory, for `biomedlm generate` and `export-hf`, with `metrics.jsonl` (a line
    for an epoch: losses, dev ROUGE), `generation_config.json`, `predictions.jsonl` and
    `report.json`, which is returned: the dev figures of `longform.report` and the last dev loss.

    Raises ValueError, FileNotFoundError or FileExistsError, before anything is compiled, if the
    config, the data, the model and the directory do not fit together.
    """
    keep_freed_memory()
    # ---- Check: everything that can be wrong is said now.
    options, data, training = check_config(config), config.data, config.training
    limits = packing.Limits(data.source_tokens, data.target_tokens, data.row_tokens)
    workdir = Path(workdir).absolute()
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise FileExistsError(f"{workdir} is there already; choose an empty --workdir")
    train, dev = _examples(data)
    mesh = meshes.make_mesh(**config.mesh)
    model, tokenizer = load(model_path, mesh=mesh)
    meshes.check_fits(mesh, batch_size=training.batch_size, model=model.config)
    check_tokenizer(tokenizer, model.config.vocab_size)
    positions = model.config.context_length
    if data.row_tokens > positions or data.source_tokens + 1 + options.max_new_tokens > positions:
        raise ValueError(
            f"got row_tokens={data.row_tokens}, and source_tokens={data.source_tokens} with "
            f"max_new_tokens={options.max_new_tokens}; the model has {positions} positions"
        )
    report(["a"], ["a"], ["a"], resamples=1)  # that ROUGE is installed
    added = packing.add_tokens(tokenizer)
    with jax.set_mesh(mesh):
        if added:
            model = grow_vocabulary(model, added, key=jax.random.key(training.seed))
        texts = [packing.encode(tokenizer, example, limits) for example in train]
        dev_texts = [packing.encode(tokenizer, example, limits) for example in dev]
        packed = packing.pack([len(ids) for ids, _ in texts], limits.row)
        steps = training.epochs * -(-len(packed) // training.batch_size)
        tokens = sum(len(ids) for ids, _ in texts)
        say(
            f"{len(train):,} examples, {tokens:,} tokens in {len(packed):,} rows of {limits.row} "
            f"({tokens / (len(packed) * limits.row):.0%} full); {len(dev):,} to evaluate; "
            f"{steps:,} steps"
        )

        # ---- Train.
        tx = make_optimizer(steps=steps, **config.optimizer)
        abstract = abstract_state(model.config, tx, mesh)
        layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        state = TrainState(jnp.int32(0), jax.device_put(model, layout.model), None)
        moments = jax.jit(tx.init, out_shardings=layout.opt_state)(state.model)
        state = dataclasses.replace(state, opt_state=moments)
        loss_of = functools.partial(mean_target_loss, chunks=training.loss_chunks)
        update = compile_step(
            train_step, abstract=abstract, tx=tx, seed=training.seed, loss_of=loss_of
        )
        measure = jax.jit(functools.partial(target_loss, chunks=training.loss_chunks))
        batches = functools.partial(
            packing.batches,
            batch_size=training.batch_size,
            length=limits.row,
            pad=tokenizer.token_to_id(packing.PAD),
        )
        rows = meshes.sharding(mesh, "batch", "length")

        def place(batch: packing.Batch):
            return tuple(jax.device_put(a, rows) for a in dataclasses.astuple(batch))

        workdir.mkdir(parents=True, exist_ok=True)
        dev_rows = packing.pack([len(ids) for ids, _ in dev_texts], limits.row)
        random, figures = np.random.default_rng(training.seed), {}
        with (workdir / "metrics.jsonl").open("w", encoding="utf-8") as metrics:
            for epoch in range(1, training.epochs + 1):
                began = time.perf_counter()
                order = [packed[i] for i in random.permutation(len(packed))]
                losses = []
                for batch in batches(texts, rows=order):
                    state, found = update(state, place(batch))
                    losses.append(found["loss"])
                figures = {"epoch": epoch, "train_loss": float(np.mean(jax.device_get(losses)))}
                if not np.isfinite(figures["train_loss"]):
                    raise ValueError(
                        f"epoch {epoch} has loss {figures['train_loss']}; lower "
                        "optimizer.learning_rate"
                    )
                figures["train_seconds"] = time.perf_counter() - began
                sums = [measure(state.model, place(b)) for b in batches(dev_texts, rows=dev_rows)]
                total, count = np.sum(jax.device_get(sums), axis=0)
                figures["dev_loss"] = float(total / count)
                if config.evaluation.examples and epoch < training.epochs:
                    some = dev[: config.evaluation.examples]
                    answers = answer(state.model, tokenizer, some, limits, options, config)
                    found = _report(some, answers)
                    figures |= {kind: found[kind]["mean"] for kind in KINDS}
                print(json.dumps(figures), file=metrics, flush=True)
                say("  ".join(f"{name} {value:.4g}" for name, value in figures.items()))

        # ---- Keep, and say how good it is.
        _write(workdir, config, state.model, tokenizer, options, step=steps)
        asked = dev[: config.evaluation.final_examples or None]
        answers = answer(state.model, tokenizer, asked, limits, options, config)
    with (workdir / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for example, text in zip(asked, answers, strict=True):
            line = {"source": example.source, "target": example.target, "answer": text}
            print(json.dumps(line, ensure_ascii=False), file=file)
    result = {"dev_loss": figures["dev_loss"], **_report(asked, answers)}
    (workdir / "report.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def make_optimizer(
    *, steps: int, learning_rate: float, warmup_fraction: float, beta1, beta2, epsilon,
    weight_decay: float, clip_norm: float,
) -> optax.GradientTransformation:  # fmt: skip
    """AdamW with linear warmup and linear decay to 0, as the original fine-tuning has it."""
    schedule = warmup_linear(learning_rate=learning_rate, warmup_ratio=warmup_fraction, steps=steps)
    adamw = optax.adamw(schedule, b1=beta1, b2=beta2, eps=epsilon, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw) if clip_norm else adamw


def target_loss(model: GPT, batch, *, chunks: int = 1, dropout_key=None):
    """Sum of the losses of the targets' tokens in nats, and their number.

    `batch` is (tokens, segments, positions, weights), each [B, L]; a text sees itself only.
    """
    tokens_BxL, segments_BxL, positions_BxL, weights_BxL = batch
    L = tokens_BxL.shape[1]
    same_BxLxL = segments_BxL[:, :, None] == segments_BxL[:, None, :]
    causal_LxL = jnp.arange(L) <= jnp.arange(L)[:, None]
    x_BxLxD = model.hidden(
        tokens_BxL,
        positions_BxL=positions_BxL,
        visible_BxLxL=same_BxLxL & causal_LxL,
        dropout_key=dropout_key,
    )
    targets_BxL = jnp.roll(tokens_BxL, -1, axis=1)
    total = cross_entropy(
        model.config.vocab_size, chunks, x_BxLxD, model.wte[...], targets_BxL, weights_BxL
    )
    return total, weights_BxL.sum()


def mean_target_loss(model: GPT, batch, *, chunks: int, dropout_key=None) -> jax.Array:
    """Mean loss of a target's token in nats; 0 for a batch without targets."""
    total, count = target_loss(model, batch, chunks=chunks, dropout_key=dropout_key)
    return total / jnp.maximum(count, 1)


def answer(
    model: GPT,
    tokenizer,
    examples: Sequence[Example],
    limits: packing.Limits,
    options: Options,
    config: ConfigDict,
) -> list[str]:
    """The model's answer to each example's source."""
    generator, answers = Generator(model, tokenizer), [""] * len(examples)
    prompts = [packing.encode_source(tokenizer, e.source, limits) for e in examples]
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    size = config.evaluation.batch_size
    for first in range(0, len(order), size):
        batch = order[first : first + size]
        found = generator.answers([prompts[i] for i in batch], options, numbers=batch)
        for i, one in zip(batch, found, strict=True):
            answers[i] = one[0].text.strip()
    return answers


def _examples(data: ConfigDict) -> tuple[list[Example], list[Example]]:
    fields = {"source": data.source_field, "target": data.target_field, "group": data.group_field}
    train = read_examples(data.train, **fields)
    if data.dev:
        return train, read_examples(data.dev, **fields)
    return split(train, dev_fraction=data.dev_fraction)


def _report(examples: Sequence[Example], answers: Sequence[str]) -> dict:
    return report([e.source for e in examples], [e.target for e in examples], answers)


def _write(workdir: Path, config: ConfigDict, model: GPT, tokenizer, options, *, step: int) -> None:
    save_model(workdir, model, step=step)
    save_tokenizer(tokenizer, workdir)
    settings = config[DECODING].to_dict()
    (workdir / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    whole = {"model": dataclasses.asdict(model.config), "longform": json.loads(config.to_json())}
    (workdir / "config.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
