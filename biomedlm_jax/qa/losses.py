"""The fine-tuning loss: cross-entropy over each question's own options, or over the classes.

Axes as in packing.py; Q questions of a batch, C classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from biomedlm_jax.model.heads import CHOICE
from biomedlm_jax.qa.packing import Rows
from biomedlm_jax.qa.states import scored_states


class TunedBatch(NamedTuple):
    """Rows with their answers; every array has the rows' axis first."""

    rows: Rows  # question_BxE counts from 0 within the batch
    gold_BxE: jax.Array  # of a choice 1 at the right option, else 0; of a class its index
    weight_BxE: jax.Array  # what the question counts in the mean: 1 / questions; 0 for padding


def batch_loss(model, batch: TunedBatch, frozen=None, *, dropout_key=None) -> jax.Array:
    """Mean cross-entropy in nats per question, a float32 scalar.

    `model` is a head with its GPT, or an Adapter beside the `frozen` GPT.
    """
    head = model if frozen is None else model.head(frozen)
    lora = None if frozen is None else model.lora
    x_BxTxD = scored_states(head.gpt, batch.rows, lora=lora, dropout_key=dropout_key)
    x_BxExD = jnp.take_along_axis(x_BxTxD, batch.rows.slot_BxE[:, :, None], axis=1)
    of_head = choice_loss if head.kind == CHOICE else class_loss
    return of_head(head(x_BxExD), batch)


def choice_loss(scores_BxE: jax.Array, batch: TunedBatch) -> jax.Array:
    """-log softmax(scores)[gold], the softmax over the options of the same question."""
    # Numbered anew, padding (-1) first: these rows may be a part of the batch and have any numbers.
    questions = scores_BxE.size + 1
    _, of_E = jnp.unique(batch.rows.question_BxE, size=questions, return_inverse=True)
    of_E = of_E.ravel()

    def total(values_BxE):
        return jax.ops.segment_sum(values_BxE.ravel(), of_E, questions)

    largest_Q = jax.ops.segment_max(scores_BxE.ravel(), of_E, questions)
    # A constant to the gradient: it cancels.
    largest_Q = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest_Q), largest_Q, 0))
    exp_BxE = jnp.exp(scores_BxE - largest_Q[of_E].reshape(scores_BxE.shape))
    sum_Q = total(exp_BxE)
    present_Q = sum_Q > 0
    log_Q = jnp.where(present_Q, jnp.log(jnp.where(present_Q, sum_Q, 1)), 0) + largest_Q
    gold_Q = total(scores_BxE * batch.gold_BxE)
    weight_Q = total(batch.weight_BxE * batch.gold_BxE)
    return ((log_Q - gold_Q) * weight_Q).sum()


def class_loss(scores_BxExC: jax.Array, batch: TunedBatch) -> jax.Array:
    """-log softmax(scores)[gold], the softmax over the classes."""
    logp_BxExC = jax.nn.log_softmax(scores_BxExC, axis=-1)
    logp_BxE = jnp.take_along_axis(logp_BxExC, batch.gold_BxE[:, :, None], axis=-1)[..., 0]
    return -(logp_BxE * batch.weight_BxE).sum()
