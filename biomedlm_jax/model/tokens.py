"""Added tokens: embedding rows after the vocabulary that a model was pre-trained with."""

import dataclasses

import jax
import jax.numpy as jnp

from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT


def grow_vocabulary(model: GPT, count: int, *, key: jax.Array) -> GPT:
    """A model with `count` more embedding rows, ids vocab_size and up, drawn as at initialisation.

    All other parameters are the same arrays. Raises ValueError for a negative count.
    """
    if count < 0:
        raise ValueError(f"got count={count} tokens to add; it must be at least 0")
    old = model.config
    config = grown(old, count)
    rows_CxD = new_rows(config, count, key=key)
    wte_VxD = jnp.concatenate([model.wte[: old.vocab_size], rows_CxD])
    padding = config.padded_vocab_size - config.vocab_size
    wte_VxD = jnp.pad(wte_VxD, ((0, padding), (0, 0)))
    # The config is part of every module's structure, so the leaves move into a new structure.
    bigger = jax.eval_shape(lambda: GPT(config, key=jax.random.key(0)))
    paths, structure = jax.tree_util.tree_flatten_with_path(bigger)
    leaves = jax.tree.leaves(model)
    return structure.unflatten(
        wte_VxD if path[0].name == "wte" else leaf
        for (path, _), leaf in zip(paths, leaves, strict=True)
    )


def grown(config: GPTConfig, count: int) -> GPTConfig:
    """The config of a model with `count` tokens added; the end of text keeps its id."""
    return dataclasses.replace(config, vocab_size=config.vocab_size + count)


def new_rows(config: GPTConfig, count: int, *, key: jax.Array) -> jax.Array:
    """Embedding rows [count, D] as a fresh model has them."""
    return config.initializer_range * jax.random.normal(key, (count, config.width))
