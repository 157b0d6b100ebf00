"""Log-probabilities of tokens, and their sum as a loss, whole or in chunks of positions.

Axes: B batch, L length, D width, V vocabulary (here with the model's padding).
"""

import jax
import jax.numpy as jnp

from biomedlm_jax.errors import InputError
from biomedlm_jax.mesh import constrain
from biomedlm_jax.model.language_model import LanguageModel, head_logits
from biomedlm_jax.model.layers import custom_vjp


def token_log_probabilities(
    model: LanguageModel, x_BxLxD: jax.Array, targets_BxE: jax.Array, slot_BxE=None
) -> tuple[jax.Array, jax.Array]:
    """Return each target's log-probability in nats after its state, and whether it is the argmax.

    Both are [B, E], float32 and bool. `slot_BxE` is the state that each target follows, by default
    one target for each state. A loss over them is `cross_entropy`, which stores no logits.
    """
    logits_BxLxV = head_logits(x_BxLxD, model.head_weight)
    vocabulary_V = jnp.arange(logits_BxLxV.shape[-1])
    logits_BxLxV = jnp.where(vocabulary_V < model.config.vocab_size, logits_BxLxV, -jnp.inf)
    if slot_BxE is None:
        slot_BxE = jnp.broadcast_to(jnp.arange(targets_BxE.shape[1]), targets_BxE.shape)
    # By vmap, so that devices gather from their own rows of the batch.
    target_BxE = jax.vmap(lambda x_LxV, slot_E, target_E: x_LxV[slot_E, target_E])(
        logits_BxLxV, slot_BxE, targets_BxE
    )
    total_BxL, argmax_BxL = jax.nn.logsumexp(logits_BxLxV, axis=-1), logits_BxLxV.argmax(-1)
    total_BxE, argmax_BxE = (jnp.take_along_axis(x, slot_BxE, 1) for x in (total_BxL, argmax_BxL))
    return target_BxE - total_BxE, argmax_BxE == targets_BxE


def next_token_loss(model: LanguageModel, tokens_BxL: jax.Array, **options) -> jax.Array:
    """Return the mean cross-entropy in nats per predicted token; options as in `summed_loss`."""
    total, count = summed_loss(model, tokens_BxL, **options)
    return total / count


def summed_loss(model: LanguageModel, tokens_BxL, *, weights_B=None, chunks=1, dropout_key=None):
    """Return the summed loss of tokens 1..L-1 and their number, float32 scalars.

    `weights_B` weighs rows (0 leaves one out). Only L / `chunks` positions' logits exist at once.
    """
    B, L = tokens_BxL.shape
    if L % chunks:
        raise InputError(f"got training.loss_chunks={chunks}; expected a divisor of the length {L}")
    x_BxLxD = model.hidden(tokens_BxL, dropout_key=dropout_key)
    targets_BxL = jnp.roll(tokens_BxL, -1, axis=1)
    predicted_L = jnp.arange(L) < L - 1  # the last position has nothing to predict
    weights_B = jnp.ones(B) if weights_B is None else weights_B
    weights_BxL = weights_B[:, None] * predicted_L
    total = cross_entropy(
        model.config.vocab_size, chunks, x_BxLxD, model.head_weight, targets_BxL, weights_BxL
    )
    return total, weights_BxL.sum()


@custom_vjp(0, 1)
def cross_entropy(vocab_size: int, chunks: int, x_BxLxD, head_VxD, targets_BxL, weights_BxL):
    """Return the weighted sum of -log softmax(x head^T)[target] over `vocab_size` entries.

    Its gradients are formed beside the loss, from logits that exist once and are never stored:
    chunking costs no second product, and the softmax is read while it is in cache.
    """
    arrays = x_BxLxD, head_VxD, targets_BxL, weights_BxL
    return _forward(vocab_size, chunks, *arrays, gradients=False)[0]


def _forward(vocab_size, chunks, x_BxLxD, head_VxD, targets_BxL, weights_BxL, *, gradients=True):
    # Products in the compute dtype, the embedding's gradient summed and returned in float32.
    head_VxD = head_VxD.astype(x_BxLxD.dtype)
    entries_Vx1x1 = jnp.arange(head_VxD.shape[0])[:, None, None]

    def of_chunk(carry, chunk):
        # The vocabulary comes first: so neither the product that makes the logits nor the two that
        # take their gradient need a transposed copy of the largest array of the step.
        total, dhead_VxD = carry
        x_BxCxD, targets_BxC, weights_BxC = chunk
        logits_VxBxC = jnp.einsum(
            "VD,BCD->VBC", head_VxD, x_BxCxD, preferred_element_type=jnp.float32
        )
        largest_BxC = logits_VxBxC[:vocab_size].max(0)
        exp_VxBxC = jnp.exp(logits_VxBxC - largest_BxC)
        exp_VxBxC = jnp.where(entries_Vx1x1 < vocab_size, exp_VxBxC, 0)
        sum_BxC = exp_VxBxC.sum(0)
        target_BxC = jnp.take_along_axis(logits_VxBxC, targets_BxC[None], 0)[0]
        losses_BxC = jnp.log(sum_BxC) + (largest_BxC - target_BxC)
        total += (losses_BxC * weights_BxC).sum()
        if not gradients:
            return (total, dhead_VxD), None
        dlogits_VxBxC = exp_VxBxC * (weights_BxC / sum_BxC)
        dlogits_VxBxC -= jnp.where(entries_Vx1x1 == targets_BxC, weights_BxC, 0)
        dlogits_VxBxC = dlogits_VxBxC.astype(x_BxCxD.dtype)
        dx_DxBxC = jnp.einsum("DV,VBC->DBC", head_VxD.T, dlogits_VxBxC)
        dhead_VxD += jnp.einsum(
            "VBC,BCD->VD", dlogits_VxBxC, x_BxCxD, preferred_element_type=jnp.float32
        )
        return (total, dhead_VxD), jnp.moveaxis(dx_DxBxC, 0, -1)

    zeros_VxD = jnp.zeros(head_VxD.shape, jnp.float32) if gradients else jnp.float32(0)
    carry, arrays = (jnp.float32(0), zeros_VxD), (x_BxLxD, targets_BxL, weights_BxL)
    if chunks == 1:
        (total, dhead_VxD), dx_BxLxD = of_chunk(carry, arrays)
        return total, (dx_BxLxD, constrain(dhead_VxD, "vocab", "embed") if gradients else None)
    (total, dhead_VxD), dx = jax.lax.scan(of_chunk, carry, [_cut(a, chunks) for a in arrays])
    return total, (None if dx is None else _join(dx), dhead_VxD)


def _cut(a, chunks: int):
    """[B, L, ...] -> [chunks, B, L / chunks, ...]; the batch axis keeps its sharding."""
    B, L = a.shape[:2]
    return jnp.moveaxis(a.reshape(B, chunks, L // chunks, *a.shape[2:]), 1, 0)


def _join(a):
    chunks, B, C = a.shape[:3]
    return jnp.moveaxis(a, 0, 1).reshape(B, chunks * C, *a.shape[3:])


def _backward(vocab_size, chunks, residuals, g):
    dx_BxLxD, dhead_VxD = residuals
    return (dx_BxLxD * g).astype(dx_BxLxD.dtype), dhead_VxD * g, None, None


cross_entropy.defvjp(_forward, _backward)
