"""The fine-tuning losses: over a question's own options, over classes, over a target's tokens.

Axes as in packing.py; Q questions of a batch, C classes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from biomedlm_jax.model.heads import CHOICE, Scorer
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.qa.packing import Rows
from biomedlm_jax.qa.states import entry_states
from biomedlm_jax.training.loss import cross_entropy


class Batch(NamedTuple):
    """Packed rows to learn from; every array has the rows' axis first.

    `rows.target_BxE` is the token of a text, 1 at the right option of a question (else 0), or the
    index of the right class. `rows.question_BxE` counts from 0 within the batch.
    """

    rows: Rows
    weight_BxE: Any  # what an entry counts in the mean; 0 for padding


def question_loss(scorer: Scorer, batch: Batch, *, dropout_key=None) -> jax.Array:
    """Return the mean cross-entropy in nats per question, a float32 scalar."""
    scores = scorer(entry_states(scorer.trunk, batch.rows, dropout_key=dropout_key))
    return (choice_loss if scorer.kind == CHOICE else class_loss)(scores, batch)


def choice_loss(scores_BxE: jax.Array, batch: Batch) -> jax.Array:
    """Return -log softmax(scores)[gold], the softmax over the options of the same question."""
    gold_BxE = batch.rows.target_BxE
    # Numbered anew, padding (-1) first: these rows may be a part of the batch and have any numbers.
    questions = scores_BxE.size + 1
    _, question_E = jnp.unique(batch.rows.question_BxE, size=questions, return_inverse=True)
    question_E = question_E.ravel()

    def total(values_BxE):
        return jax.ops.segment_sum(values_BxE.ravel(), question_E, questions)

    largest_Q = jax.ops.segment_max(scores_BxE.ravel(), question_E, questions)
    # A constant to the gradient: it cancels.
    largest_Q = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest_Q), largest_Q, 0))
    exp_BxE = jnp.exp(scores_BxE - largest_Q[question_E].reshape(scores_BxE.shape))
    sum_Q = total(exp_BxE)
    present_Q = sum_Q > 0
    log_Q = jnp.where(present_Q, jnp.log(jnp.where(present_Q, sum_Q, 1)), 0) + largest_Q
    gold_Q = total(scores_BxE * gold_BxE)
    weight_Q = total(batch.weight_BxE * gold_BxE)
    return ((log_Q - gold_Q) * weight_Q).sum()


def class_loss(scores_BxExC: jax.Array, batch: Batch) -> jax.Array:
    """Return -log softmax(scores)[gold], the softmax over the classes."""
    logp_BxExC = jax.nn.log_softmax(scores_BxExC, axis=-1)
    logp_BxE = jnp.take_along_axis(logp_BxExC, batch.rows.target_BxE[:, :, None], axis=-1)[..., 0]
    return -(logp_BxE * batch.weight_BxE).sum()


def target_loss(
    model: LanguageModel, batch: Batch, *, chunks: int = 1, dropout_key=None
) -> jax.Array:
    """Return the weighted sum of the targets' cross-entropies in nats, a float32 scalar.

    Logits are computed for target tokens only, of at most a `chunks`-th part of them at a time.
    """
    states_BxExD = entry_states(model, batch.rows, dropout_key=dropout_key)
    arrays = (states_BxExD, batch.rows.target_BxE, batch.weight_BxE)
    padding = -states_BxExD.shape[1] % chunks
    states_BxExD, target_BxE, weight_BxE = (
        jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2)) for x in arrays
    )
    vocab_size, head_VxD = model.config.vocab_size, model.head_weight
    return cross_entropy(vocab_size, chunks, states_BxExD, head_VxD, target_BxE, weight_BxE)
