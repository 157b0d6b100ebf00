"""Added tokens: embedding rows after the vocabulary that a model was pre-trained with."""

import dataclasses

import jax
import jax.numpy as jnp

from biomedlm_jax.errors import InputError
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.language_model import LanguageModel, axis_names, map_parameters


def grow_vocabulary(model: LanguageModel, count: int, *, key: jax.Array) -> LanguageModel:
    """Return a model with `count` more vocabulary rows, initialised as a new model's are.

    Other parameters are the same arrays. Raises InputError for a negative count.
    """
    if count < 0:
        raise InputError(f"got count={count} tokens to add; expected at least 0")
    old, config = model.config, with_added_tokens(model.config, count)
    rows_CxD = config.initializer_range * jax.random.normal(key, (count, config.width))

    def grow(_, variable):
        if "vocab" not in axis_names(variable):
            return variable
        values_VxD = jnp.concatenate([variable[: old.vocab_size], rows_CxD])
        padding = config.padded_vocab_size - config.vocab_size
        return variable.replace(jnp.pad(values_VxD, ((0, padding), (0, 0))))

    # The config is part of every module's structure, so the new leaves need a new structure.
    leaves = jax.tree.leaves(map_parameters(grow, model))
    return jax.tree.structure(abstract_model(config)).unflatten(leaves)


def with_added_tokens(config: ModelConfig, count: int) -> ModelConfig:
    """Return the config of a model with `count` more tokens; eos_token_id is unchanged."""
    return dataclasses.replace(config, vocab_size=config.vocab_size + count)
