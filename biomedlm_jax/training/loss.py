"""The next-token loss, whole or in chunks of positions.

Axes: B batch, L length, D width, V vocabulary (here with the model's padding).
"""

import functools

import jax
import jax.numpy as jnp

from biomedlm_jax.model.gpt import GPT, head


def next_token_loss(
    model: GPT, tokens_BxL: jax.Array, *, weights_B=None, chunks: int = 1, dropout_key=None
) -> jax.Array:
    """Mean cross-entropy in nats of tokens 1..L-1 given those before them, a float32 scalar.

    `weights_B` weighs rows (0 leaves one out); `chunks` cuts the L positions so that only
    L / chunks positions' logits exist at a time, in the forward and in the backward pass.
    """
    total, count = summed_loss(
        model, tokens_BxL, weights_B=weights_B, chunks=chunks, dropout_key=dropout_key
    )
    return total / count


def summed_loss(model: GPT, tokens_BxL, *, weights_B=None, chunks=1, dropout_key=None):
    """The sum of the losses and the number of predicted tokens, both weighted by row."""
    B, L = tokens_BxL.shape
    if L % chunks:
        raise ValueError(f"training.loss_chunks={chunks} does not divide the length {L}")
    x_BxLxD = model.hidden(tokens_BxL, dropout_key=dropout_key)
    targets_BxL = jnp.roll(tokens_BxL, -1, axis=1)
    predicted_L = jnp.arange(L) < L - 1  # the last position has nothing to predict
    weights_B = jnp.ones(B) if weights_B is None else weights_B
    weights_BxL = weights_B[:, None] * predicted_L
    # The products run in the compute dtype; so does the gradient on its way into them.
    wte_VxD = model.wte[...].astype(x_BxLxD.dtype)
    total = cross_entropy(
        model.config.vocab_size, chunks, x_BxLxD, wte_VxD, targets_BxL, weights_BxL
    )
    return total, weights_BxL.sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def cross_entropy(vocab_size: int, chunks: int, x_BxLxD, wte_VxD, targets_BxL, weights_BxL):
    """Weighted sum of -log softmax(x wte^T)[target] over the first `vocab_size` entries.

    Its gradients are formed beside the loss, from logits that exist once and are never stored:
    chunking costs no second product, and the softmax is read while it is warm.
    """
    total, _ = _forward(
        vocab_size, chunks, x_BxLxD, wte_VxD, targets_BxL, weights_BxL, gradients=False
    )
    return total


def _forward(vocab_size, chunks, x_BxLxD, wte_VxD, targets_BxL, weights_BxL, *, gradients=True):
    def of_chunk(carry, chunk):
        total, dwte_VxD = carry
        x_BxCxD, targets_BxC, weights_BxC = chunk
        logits_BxCxV = head(x_BxCxD, wte_VxD)
        entries_V = jnp.arange(wte_VxD.shape[0])
        logits_BxCxV = jnp.where(entries_V < vocab_size, logits_BxCxV, -jnp.inf)
        largest_BxCx1 = logits_BxCxV.max(-1, keepdims=True)
        target_BxC = jnp.take_along_axis(logits_BxCxV, targets_BxC[..., None], -1)[..., 0]
        exp_BxCxV = jnp.exp(logits_BxCxV - largest_BxCx1)
        sum_BxCx1 = exp_BxCxV.sum(-1, keepdims=True)
        losses_BxC = jnp.log(sum_BxCx1[..., 0]) + (largest_BxCx1[..., 0] - target_BxC)
        total += (losses_BxC * weights_BxC).sum()
        if not gradients:
            return (total, dwte_VxD), None
        is_target_BxCxV = entries_V == targets_BxC[..., None]
        dlogits_BxCxV = exp_BxCxV * (weights_BxC[..., None] / sum_BxCx1)
        dlogits_BxCxV -= jnp.where(is_target_BxCxV, weights_BxC[..., None], 0)
        dlogits_BxCxV = dlogits_BxCxV.astype(x_BxCxD.dtype)
        dx_BxCxD = jnp.einsum("BCV,VD->BCD", dlogits_BxCxV, wte_VxD)
        dwte_VxD += jnp.einsum(
            "BCV,BCD->VD", dlogits_BxCxV, x_BxCxD, preferred_element_type=jnp.float32
        )
        return (total, dwte_VxD), dx_BxCxD

    carry = (jnp.float32(0), jnp.zeros(wte_VxD.shape, jnp.float32) if gradients else None)
    arrays = (x_BxLxD, targets_BxL, weights_BxL)
    if chunks == 1:
        (total, dwte_VxD), dx_BxLxD = of_chunk(carry, arrays)
        return total, (dx_BxLxD, dwte_VxD)
    (total, dwte_VxD), dx = jax.lax.scan(of_chunk, carry, [_cut(a, chunks) for a in arrays])
    return total, (None if dx is None else _join(dx), dwte_VxD)


def _cut(a, chunks: int):
    """[B, L, ...] -> [chunks, B, L / chunks, ...]; the batch axis keeps its sharding."""
    B, L = a.shape[:2]
    return jnp.moveaxis(a.reshape(B, chunks, L // chunks, *a.shape[2:]), 1, 0)


def _join(a):
    chunks, B, C = a.shape[:3]
    return jnp.moveaxis(a, 0, 1).reshape(B, chunks * C, *a.shape[3:])


def _backward(vocab_size, chunks, residuals, g):
    dx_BxLxD, dwte_VxD = residuals
    return (dx_BxLxD * g).astype(dx_BxLxD.dtype), (dwte_VxD * g).astype(dx_BxLxD.dtype), None, None


cross_entropy.defvjp(_forward, _backward)
