"""The fine-tuning losses; Q questions of a batch, C classes, other axes as in packing.py."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from biomedlm_jax.model.heads import CHOICE, Scorer
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.qa.packing import Rows
from biomedlm_jax.qa.states import entry_states, head_scores
from biomedlm_jax.training.loss import cross_entropy


class Batch(NamedTuple):
    """Packed rows; the target is the token of a text, 1 at a right option (else 0), or a class."""

    rows: Rows
    weight_BxE: Any  # of an entry in the mean; 0 for padding


def question_loss(scorer: Scorer, batch: Batch, *, dropout_key=None) -> jax.Array:
    """Return the mean cross-entropy in nats per question, a float32 scalar."""
    scores = head_scores(scorer, batch.rows, dropout_key=dropout_key)
    return (choice_loss if scorer.kind == CHOICE else class_loss)(scores, batch)


def choice_loss(scores_BxE: jax.Array, batch: Batch) -> jax.Array:
    """Return the sum over questions of weight * cross-entropy over the options, in nats.

    `scores` are [B, E], an entry for each option; the softmax is over those of one question.
    """
    scores_E, gold_E = scores_BxE.ravel(), batch.rows.target_BxE.ravel()
    # Numbered anew, as these rows may be a part of the batch.
    question_BxE, count = batch.rows.question_BxE, scores_E.size
    _, question_E = jnp.unique(question_BxE.ravel(), size=count, return_inverse=True)
    largest_Q = jax.ops.segment_max(jax.lax.stop_gradient(scores_E), question_E, count)
    largest_E = largest_Q[question_E]
    sum_Q = jax.ops.segment_sum(jnp.exp(scores_E - largest_E), question_E, count)
    log_E = jnp.log(sum_Q[question_E]) + largest_E
    return ((log_E - scores_E) * gold_E * batch.weight_BxE.ravel()).sum()


def class_loss(scores_BxExC: jax.Array, batch: Batch) -> jax.Array:
    """Return the sum over questions of weight * cross-entropy over the C classes, in nats."""
    logp_BxExC = jax.nn.log_softmax(scores_BxExC, axis=-1)
    logp_BxE = jnp.take_along_axis(logp_BxExC, batch.rows.target_BxE[:, :, None], axis=-1)[..., 0]
    return -(logp_BxE * batch.weight_BxE).sum()


def target_loss(
    model: LanguageModel, batch: Batch, *, chunks: int = 1, dropout_key=None
) -> jax.Array:
    """Return the weighted sum of cross-entropies in nats; logits in `chunks` parts."""
    states_BxExD = entry_states(model, batch.rows, dropout_key=dropout_key)
    arrays = (states_BxExD, batch.rows.target_BxE, batch.weight_BxE)
    padding = -states_BxExD.shape[1] % chunks
    states_BxExD, target_BxE, weight_BxE = (
        jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2)) for x in arrays
    )
    vocab_size, head_VxD = model.config.vocab_size, model.head_weight
    return cross_entropy(vocab_size, chunks, states_BxExD, head_VxD, target_BxE, weight_BxE)
