"""Added tokens: more rows for the embedding of a model that was trained without them."""

import dataclasses

import jax
import jax.numpy as jnp

from biomedlm_jax.model.gpt import GPT


def grow_vocabulary(model: GPT, count: int, key: jax.Array) -> GPT:
    """The model with `count` more entries after its last one, drawn from N(0, 0.02) as at first.

    The end of text stays the id it was, and the old entries keep their logits. The deviation is
    the config's `initializer_range`. The counterpart of transformers' `resize_token_embeddings`.
    Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"got count={count}; add at least one token")
    config = dataclasses.replace(
        model.config,
        vocab_size=model.config.vocab_size + count,
        eos_token_id=model.config.eos_token_id,
    )
    old_VxD = model.wte[...][: model.config.vocab_size]
    new_VxD = config.initializer_range * jax.random.normal(key, (count, config.width))
    wte_VxD = jnp.concatenate([old_VxD, new_VxD.astype(old_VxD.dtype)])
    padding = config.padded_vocab_size - config.vocab_size
    wte_VxD = jnp.pad(wte_VxD, ((0, padding), (0, 0)))
    leaves = [
        wte_VxD if path[0].name == "wte" else leaf  # all others are shared with the old model
        for path, leaf in jax.tree_util.tree_leaves_with_path(model)
    ]
    # The structure holds the config, in every module of the model.
    abstract = jax.eval_shape(lambda: GPT(config, key=jax.random.key(0)))
    return jax.tree.structure(abstract).unflatten(leaves)
