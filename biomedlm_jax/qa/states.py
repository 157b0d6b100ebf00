"""The model on packed rows: the states that are read, and the figures computed from them."""

import jax
import jax.numpy as jnp

from biomedlm_jax.model.attention import Mask
from biomedlm_jax.model.heads import Scorer
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.qa.packing import Rows
from biomedlm_jax.training import loss


def scored_states(model: LanguageModel, rows: Rows, *, dropout_key=None) -> jax.Array:
    """Return the final states [B, T, D] at the positions that are read."""
    x_BxLxD = model.hidden(
        rows.tokens_BxL,
        positions_BxL=rows.positions_BxL,
        mask=Mask(rows.prompt_BxL, rows.branch_BxL),
        dropout_key=dropout_key,
    )
    return jnp.take_along_axis(x_BxLxD, rows.source_BxT[:, :, None], axis=1)


def entry_states(model: LanguageModel, rows: Rows, *, dropout_key=None) -> jax.Array:
    """Return the final state [B, E, D] that each entry is read at."""
    x_BxTxD = scored_states(model, rows, dropout_key=dropout_key)
    return jnp.take_along_axis(x_BxTxD, rows.slot_BxE[:, :, None], axis=1)


@jax.jit
def token_log_probabilities(model: LanguageModel, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Return each entry's log-probability in nats, and whether it is the argmax: both [B, E]."""
    x_BxTxD = scored_states(model, rows)
    return loss.token_log_probabilities(model, x_BxTxD, rows.target_BxE, rows.slot_BxE)


def head_scores(scorer: Scorer, rows: Rows, *, dropout_key=None) -> jax.Array:
    """Return scores at the last tokens: [B, E] of a MultipleChoice, [B, E, C] of classes."""
    return scorer(entry_states(scorer.trunk, rows, dropout_key=dropout_key))
