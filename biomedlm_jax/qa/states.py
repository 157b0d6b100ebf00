"""The model on packed rows: states at the scored places, and the probabilities read from them.

Axes as in packing.py and gpt.py.
"""

import jax
import jax.numpy as jnp

from biomedlm_jax.model.gpt import GPT, head
from biomedlm_jax.qa.packing import Rows


def visible(rows: Rows) -> jax.Array:
    """Which places each place sees [B, L, L]: its question, and its own branch, up to itself."""
    prompt_BxL, branch_BxL = rows.prompt_BxL, rows.branch_BxL
    same_prompt = prompt_BxL[:, :, None] == prompt_BxL[:, None, :]
    same_branch = branch_BxL[:, :, None] == branch_BxL[:, None, :]
    in_prefix = branch_BxL[:, None, :] == 0
    up_to_itself = jnp.tri(prompt_BxL.shape[1], dtype=bool)
    return same_prompt & (same_branch | in_prefix) & up_to_itself


def scored_states(model: GPT, rows: Rows, *, lora=None, dropout_key=None) -> jax.Array:
    """The final states [B, T, D] at the scored places."""
    x_BxLxD = model.hidden(
        rows.tokens_BxL,
        positions_BxL=rows.positions_BxL,
        visible_BxLxL=visible(rows),
        lora=lora,
        dropout_key=dropout_key,
    )
    return jnp.take_along_axis(x_BxLxD, rows.source_BxT[:, :, None], axis=1)


@jax.jit
def token_log_probabilities(model: GPT, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each answer's token, and whether it was the likeliest: both [B, E].

    The vocabulary's head is computed at the scored places only, once for all answers read there.
    """
    x_BxTxD = scored_states(model, rows)
    vocab = jnp.arange(model.wte.shape[0])
    logits_BxTxV = head(x_BxTxD, model.wte[...])
    logits_BxTxV = jnp.where(vocab < model.config.vocab_size, logits_BxTxV, -jnp.inf)
    total_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
    likeliest_BxT = logits_BxTxV.argmax(-1)
    of_row = jnp.arange(logits_BxTxV.shape[0])[:, None]
    logits_BxE = logits_BxTxV[of_row, rows.slot_BxE, rows.target_BxE]
    total_BxE = jnp.take_along_axis(total_BxT, rows.slot_BxE, 1)
    likeliest_BxE = jnp.take_along_axis(likeliest_BxT, rows.slot_BxE, 1)
    return logits_BxE - total_BxE, likeliest_BxE == rows.target_BxE


def head_scores(model, rows: Rows) -> jax.Array:
    """Scores of a MultipleChoice [B, E] or SequenceClassifier [B, E, C] at the last tokens."""
    x_BxTxD = scored_states(model.gpt, rows)
    return model(jnp.take_along_axis(x_BxTxD, rows.slot_BxE[:, :, None], axis=1))
