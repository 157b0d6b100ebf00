"""What the fine-tuning recipes share: the model that a run starts from, and most of its Recipe."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from tokenizers import Tokenizer

from biomedlm_jax import mesh as meshes
from biomedlm_jax.corpus.tokenizer import tokenizer_hash
from biomedlm_jax.finetuning.shuffling import ShuffledQuestions, ShuffledTexts
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.interop.heads import Head, load_finetuned, read_head
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.model import attention
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.language_model import parameter_count
from biomedlm_jax.model.vocabulary import grown
from biomedlm_jax.qa.questions import counted
from biomedlm_jax.training.config import RunSettings
from biomedlm_jax.training.fit import Recipe, StepData
from biomedlm_jax.training.metrics import flops_per_token
from biomedlm_jax.training.pretrain import introduce
from biomedlm_jax.training.provenance import weights_hash


@dataclasses.dataclass(frozen=True)
class Start:
    """A loaded model and what a Recipe states about it."""

    base: list[Any]  # the model, a LanguageModel or a Scorer; `fit` empties the list
    config: ModelConfig  # with the added tokens
    tokenizer: Tokenizer  # with the added tokens
    new_tokens: int  # that the vocabulary grows by
    head: Head | None  # of a model that was fine-tuned before
    started_from: dict[str, Any]


def load_start(
    path: str | Path, settings: RunSettings, mesh: Mesh, *, added_tokens: Sequence[str], heads: bool
) -> Start:
    """Load the model at `path`; tokens of `added_tokens` that it lacks come after its vocabulary.

    With `heads`, a fine-tuned model is loaded with its head, and has its tokens already. Raises
    FileNotFoundError or ValueError for a model that the run cannot start from.
    """
    if jax.process_index() == 0:
        print(f"loading {path}", file=sys.stderr, flush=True)
    config = model_config(path, **settings.model)
    parts = meshes.batch_shards(mesh) * settings.training.accumulation
    meshes.check_fits(mesh, batch_size=parts, model=abstract_model(config))
    head = read_head(path) if heads else None
    if head is None:
        base, tokenizer = load(path, mesh=mesh, **settings.model)
    else:
        base, tokenizer, _ = load_finetuned(path, mesh=mesh, **settings.model)
    if tokenizer is None:
        raise ValueError(f"{path} has no tokenizer; add the one that it was trained with")
    known = [token for token in added_tokens if tokenizer.token_to_id(token) is not None]
    if heads and head is None and known:
        raise ValueError(
            f"the tokenizer of {path} has {', '.join(known)} already; start from a pre-trained "
            "model, or continue with a task of the same kind"
        )
    weights, entries = weights_hash(base), 1 + max(tokenizer.get_vocab().values())
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    new = tokenizer.add_special_tokens(list(added_tokens)) if head is None else 0
    if new and entries != config.vocab_size:
        raise ValueError(
            f"{path} has {config.vocab_size} vocabulary rows and its tokenizer {entries} entries; "
            "tokens can be added only where both end at the same id"
        )
    dropout = {name: rate for name, rate in settings.model.items() if "dropout" in name}
    started_from = {
        "path": str(Path(path).absolute()),
        "weights": weights,
        "tokenizer": tokenizer_hash(tokenizer),
        **dropout,
    }
    return Start([base], grown(config, new), tokenizer, new, head, started_from)


def make_recipe(
    start: Start,
    settings: RunSettings,
    mesh: Mesh,
    data: ShuffledQuestions | ShuffledTexts,
    *,
    epochs: int,
    lines=(),
    **parts: Any,
) -> Recipe:
    """Return the Recipe of a fine-tuning run on `data`.

    `parts` are the fields that differ between recipes; `lines` introduce the run. Raises ValueError
    if the attention kernel named in the config cannot serve such rows.
    """
    config, length, steps = start.config, data.row_length, data.steps_per_epoch
    kernel = attention.training_kernel(
        config, mesh, length=length, segments=True, branches=data.branched
    )
    abstract = abstract_model(config)
    return Recipe(
        settings=settings,
        steps=epochs * steps,
        base=start.base,
        data=StepData(data.batch, meshes.sharding(mesh, "batch", None)),
        evaluate_every=steps,
        tokens_per_step=data.tokens_per_step,
        flops_per_token=flops_per_token(abstract, length),
        introduction=(
            introduce(config, parameter_count(abstract), mesh, kernel),
            *lines,
            f"{counted(epochs, 'epoch')} of {counted(steps, 'step')}, {data.tokens_per_step:,.0f} "
            f"tokens each in rows of {length}",
        ),
        **parts,
    )
