"""pretrain(): the recipe of a language model on token rows."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from biomedlm_jax import mesh as meshes
from biomedlm_jax.corpus.batches import Batches, validation_batches
from biomedlm_jax.corpus.manifest import check_tokens, read_manifest
from biomedlm_jax.corpus.packer import token_bytes
from biomedlm_jax.corpus.tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash
from biomedlm_jax.files import write_json
from biomedlm_jax.model import attention
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import abstract_model, make_config
from biomedlm_jax.model.language_model import parameter_count
from biomedlm_jax.settings import Settings, read_settings, setting
from biomedlm_jax.training.config import RunSettings, StepSettings
from biomedlm_jax.training.fit import Recipe, fit
from biomedlm_jax.training.loss import next_token_loss, summed_loss
from biomedlm_jax.training.metrics import flops_per_token, validation_metrics
from biomedlm_jax.training.state import random_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSettings(Settings):
    """The token rows."""

    group = "data"
    path: str = setting(free=True)  # a directory that `biomedlm build-tokens` wrote
    seed: int = setting(least=0)  # of the order of the rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSteps(StepSettings):
    """The `training` group of pre-training."""

    steps: int = setting(least=1)
    evaluate_every: int = setting(least=0, free=True)  # steps; 0: never
    evaluate_batches: int = setting(-1, free=True)  # spread over the validation split; -1: all


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSettings(RunSettings):
    """The groups of a pre-training config."""

    data: TokenSettings
    training: PretrainSteps


def pretrain(config: ConfigDict, workdir: str | Path) -> dict:
    """Train the config's model on its token rows, or resume the run in `workdir`.

    Writes `config.json`, the tokenizer, the rows' `manifest.json` and what `fit` writes. Returns
    the step and, if this call evaluated, the last validation metrics. Raises ValueError, before
    anything is written, if the config, the data or the directory do not fit together.
    """
    workdir = Path(workdir).absolute()
    settings = read_settings(PretrainSettings, config)
    training = settings.training
    if settings.lora.rank:
        raise ValueError("got lora.rank above 0; pre-training from random parameters has no LoRA")
    if not settings.data.path:
        raise ValueError(
            "got an empty config.data.path; set --config.data.path=DIR to a directory that "
            "`biomedlm build-tokens` wrote"
        )
    manifest = read_manifest(settings.data.path)
    model_config = config_of_rows(settings.model, manifest)
    known = (workdir / "tokenizer.json").exists()  # a run keeps its tokenizer
    tokenizer = load_tokenizer(workdir if known else settings.data.path)
    check_tokens(
        manifest,
        vocab_size=model_config.vocab_size,
        length=model_config.context_length,
        eos_id=model_config.eos_token_id,
        tokenizer_hash=tokenizer_hash(tokenizer),
    )
    if manifest["length"] % training.loss_chunks:
        raise ValueError(
            f"got training.loss_chunks={training.loss_chunks}; expected a divisor of the row "
            f"length {manifest['length']}"
        )
    split = manifest["splits"]["validation"]
    if training.evaluate_every and not split["rows"]:
        raise ValueError(
            f"{settings.data.path} has no validation rows; build it with --validation_fraction, "
            "or set --config.training.evaluate_every=0"
        )
    mesh = settings.mesh.make()
    abstract = abstract_model(model_config)
    batch_size, path = training.batch_size, settings.data.path
    meshes.check_fits(
        mesh, batch_size=batch_size, accumulation=training.accumulation, model=abstract
    )
    kernel = attention.training_kernel(model_config, mesh)
    sharding = meshes.sharding(mesh, "batch", "length")
    layout: dict[str, Any] = {"batch_size": batch_size, "sharding": sharding}
    batches = Batches(path, split="train", **layout, seed=settings.data.seed)
    loss_sums = jax.jit(functools.partial(summed_loss, chunks=training.loss_chunks))
    lengths_V = jnp.asarray(token_bytes(tokenizer))

    @jax.jit
    def byte_sum(tokens_BxL, weights_B):  # of the tokens that the loss is over
        return (lengths_V[tokens_BxL[:, 1:]] * (weights_B[:, None] > 0)).sum()

    limit = training.evaluate_batches if training.evaluate_batches > 0 else None

    def evaluate(model, step: int) -> dict[str, float]:
        total, count, text_bytes = 0.0, 0.0, 0
        for tokens, weights in validation_batches(path, **layout, limit=limit):
            sums = loss_sums(model, tokens, weights_B=weights)
            total, count = total + float(sums[0]), count + float(sums[1])
            text_bytes += int(byte_sum(tokens, weights))
        return validation_metrics(total / count, tokens=round(count), text_bytes=text_bytes)

    def write(first_time: bool) -> None:
        write_json(workdir / "config.json", {"model": model_config.to_json()})
        if not known:
            write_json(workdir / "manifest.json", manifest)
            save_tokenizer(tokenizer, workdir)

    tokens = batch_size * manifest["length"]
    seen, there = training.steps * tokens, manifest["splits"]["train"]["tokens"]
    recipe = Recipe(
        name="pretrain",
        settings=settings,
        steps=training.steps,
        make_model=lambda: random_model(model_config, seed=training.seed),
        data=batches,
        loss=functools.partial(next_token_loss, chunks=training.loss_chunks),
        evaluate=evaluate if training.evaluate_every else None,
        evaluate_every=training.evaluate_every,
        tokens_per_step=tokens,
        flops_per_token=flops_per_token(abstract, manifest["length"]),
        started_from={
            "model": model_config.architecture(),
            "initialisation": _initialisation(model_config),
            "tokenizer": manifest["tokenizer_hash"],
            "rows": manifest["fingerprint"],
        },
        write=write,
        introduction=(
            introduce(model_config, parameter_count(abstract), mesh, kernel),
            f"{training.steps:,} steps of {batch_size} x {manifest['length']} tokens: "
            f"{seen / there:.2f} passes over {there:,} tokens",
        ),
    )
    with jax.set_mesh(mesh):
        return fit(recipe, workdir, mesh)[1]


def config_of_rows(fields: dict, manifest: Mapping[str, Any]) -> ModelConfig:
    """Return the model config, what it leaves as None taken from the token rows."""
    names = {"vocab_size": "vocab_size", "eos_token_id": "eos_id", "context_length": "length"}
    unset = {ours: manifest[its] for ours, its in names.items() if fields.get(ours) is None}
    return make_config({**fields, **unset})


def introduce(config: ModelConfig, parameters: int, mesh, kernel: str) -> str:
    """Return one line about the model and where it runs."""
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return (
        f"{parameters:,} parameters on {mesh.size} {jax.devices()[0].device_kind} ({sizes}), "
        f"{np.dtype(config.dtype).name}, attention by {kernel}"
    )


def _initialisation(config: ModelConfig) -> dict:
    kept = ("initializer_range", "vocab_multiple")
    return {k: value for k, value in config.to_json().items() if k in kept or "dropout" in k}
