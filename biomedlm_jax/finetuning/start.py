"""What the fine-tuning recipes share: the model that a run starts from, and most of its Recipe."""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from tokenizers import Tokenizer

from biomedlm_jax import mesh as meshes
from biomedlm_jax.buckets import as_path
from biomedlm_jax.corpus.tokenizer import copy_tokenizer, tokenizer_hash
from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.finetuning.config import ChatSettings, QuestionSettings, TextSettings
from biomedlm_jax.finetuning.shuffling import ShuffledQuestions, ShuffledTexts
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.interop.finetuned import Head
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.vocabulary import with_added_tokens
from biomedlm_jax.qa.models import check_model, load_model
from biomedlm_jax.training.description import describe_run
from biomedlm_jax.training.metrics import flops_per_token
from biomedlm_jax.training.provenance import weights_hash
from biomedlm_jax.training.recipe import Recipe, StepData


@dataclasses.dataclass(frozen=True)
class Start:
    """A loaded model and what a Recipe states about it."""

    base: list[Any]  # the model, a LanguageModel or a Scorer; `fit` empties the list
    config: ModelConfig  # with the added tokens
    tokenizer: Tokenizer  # with the added tokens
    new_tokens: int  # that the vocabulary grows by
    trained_rows: int  # the last rows of the vocabulary, of added tokens: LoRA trains them too
    head: Head | None  # of a model that was fine-tuned before
    started_from: dict[str, Any]


def load_base_model(
    path: str | Path,
    settings: QuestionSettings | TextSettings | ChatSettings,
    mesh: Mesh,
    *,
    added_tokens: Sequence[str],
    heads: bool,
) -> Start:
    """Load the model at `path`, if `heads` with its head, and add the `added_tokens` it lacks."""
    if jax.process_index() == 0:
        print(f"loading {path}", file=sys.stderr, flush=True)
    head = check_model(path, mesh, **settings.model)
    frozen = {"dtype": settings.lora.frozen_dtype}
    base, tokenizer = load_model(path, head if heads else None, mesh, **frozen, **settings.model)
    config = model_config(path, **settings.model)
    weights, entries = weights_hash(base), 1 + max(tokenizer.get_vocab().values())
    missing = [token for token in added_tokens if tokenizer.token_to_id(token) is None]
    tokenizer, new = copy_tokenizer(tokenizer), len(missing) if head is None else 0
    if head is None:
        tokenizer.add_special_tokens(list(added_tokens))
    if new and entries != config.vocab_size:
        got = f"{path} has {config.vocab_size} vocabulary rows and its tokenizer {entries} entries"
        raise InputError(f"{got}; to add tokens, both must end at the same id")
    config, ids = with_added_tokens(config, new), [*map(tokenizer.token_to_id, added_tokens)]
    last_ids = itertools.takewhile(ids.__contains__, range(config.vocab_size)[::-1])
    started_from = {
        "path": str(as_path(path).absolute()),
        "weights": weights,
        "tokenizer": tokenizer_hash(tokenizer),
        **{name: rate for name, rate in settings.model.items() if "dropout" in name},
    }
    return Start([base], config, tokenizer, new, len([*last_ids]), head, started_from)


def make_recipe(
    start: Start,
    settings: QuestionSettings | TextSettings | ChatSettings,
    mesh: Mesh,
    data: ShuffledQuestions | ShuffledTexts,
    *,
    line: str,
    **parts: Any,
) -> Recipe:
    """Return the Recipe of a run on `data`, which `line` describes; `parts` are other fields."""
    config, length, steps = start.config, data.row_length, data.steps_per_epoch
    epochs = settings.training.epochs
    rows = {"length": length, "segments": True, "branches": data.branched}
    abstract = abstract_model(config)
    return Recipe(
        name=settings.recipe,
        settings=settings,
        steps=epochs * steps,
        base=start.base,
        added_tokens=start.trained_rows,
        data=StepData(data.batch, meshes.sharding(mesh, "batch", None), data.chosen),
        evaluate_every=steps,
        tokens_per_step=data.tokens_per_step,
        flops_per_token=flops_per_token(abstract, length),
        introduction=(
            describe_run(abstract, mesh, **rows),
            line,
            f"{counted(epochs, 'epoch')} of {counted(steps, 'step')}, {data.tokens_per_step:,.0f} "
            f"tokens each in rows of {length}",
        ),
        **parts,
    )
