"""Added tokens: embedding rows after the vocabulary that a model was pre-trained with."""

import dataclasses

import jax
import jax.numpy as jnp

from biomedlm_jax.errors import InputError
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.language_model import LanguageModel, axis_names, map_parameters

VARIANCE = 1e-9  # of rows at the mean, times the covariance of the rows, as transformers has it


def grow_vocabulary(
    model: LanguageModel, count: int, *, key: jax.Array, at_mean: bool = False
) -> LanguageModel:
    """Return a model with `count` more vocabulary rows, initialised as a new model's are.

    With `at_mean` those of each table are its mean, with noise of VARIANCE times its covariance, as
    `resize_token_embeddings` of transformers does since 4.46: a new token is then no likelier than
    the others. Other parameters are the same arrays. Raises InputError for a negative count.
    """
    if count < 0:
        raise InputError(f"got count={count} tokens to add; expected at least 0")
    old, config = model.config, with_added_tokens(model.config, count)
    rows_CxD = config.initializer_range * jax.random.normal(key, (count, config.width))

    def grow(name, variable):
        if "vocab" not in axis_names(variable):
            return variable
        old_VxD, new_CxD = variable[: old.vocab_size], rows_CxD
        if at_mean:
            table_key = jax.random.fold_in(key, name == model.head_name)
            new_CxD = _at_mean(old_VxD.astype(jnp.float32), count, key=table_key)
        values_VxD = jnp.concatenate([old_VxD, new_CxD.astype(old_VxD.dtype)])
        padding = config.padded_vocab_size - config.vocab_size
        return variable.replace(jnp.pad(values_VxD, ((0, padding), (0, 0))))

    # The config is part of every module's structure, so the new leaves need a new structure.
    leaves = jax.tree.leaves(map_parameters(grow, model))
    return jax.tree.structure(abstract_model(config)).unflatten(leaves)


def _at_mean(table_VxD: jax.Array, count: int, *, key: jax.Array) -> jax.Array:
    """Return rows of the normal distribution with the table's mean, and VARIANCE its covariance."""
    mean_1xD = table_VxD.mean(0, keepdims=True)
    # Weighted sums of the centred rows have their covariance: no factorisation is needed.
    weights_CxV = jax.random.normal(key, (count, len(table_VxD)))
    noise_CxD = weights_CxV @ (table_VxD - mean_1xD)
    return mean_1xD + noise_CxD * (VARIANCE / len(table_VxD)) ** 0.5


def with_added_tokens(config: ModelConfig, count: int) -> ModelConfig:
    """Return the config of a model with `count` more tokens; eos_token_id is unchanged."""
    return dataclasses.replace(config, vocab_size=config.vocab_size + count)
