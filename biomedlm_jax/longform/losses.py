"""The loss of long answers: next-token cross-entropy over the tokens of the targets.

Axes: B rows, L tokens of a row.
"""

import jax
import jax.numpy as jnp

from biomedlm_jax.longform.rows import Batch
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.training.loss import cross_entropy


def target_loss(model: GPT, batch: Batch, *, chunks: int = 1, dropout_key=None):
    """Sum of the losses of the targets' tokens in nats, and their number.

    A text sees itself only.
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


def mean_target_loss(model: GPT, batch: Batch, *, chunks: int, dropout_key=None) -> jax.Array:
    """Mean loss of a target's token in nats; 0 for a batch without targets."""
    total, count = target_loss(model, batch, chunks=chunks, dropout_key=dropout_key)
    return total / jnp.maximum(count, 1)
