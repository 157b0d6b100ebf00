"""attend(): causal scaled dot-product attention by a named implementation, never another."""

import math

import jax
import jax.numpy as jnp


def attend(
    query_BxHxLxK: jax.Array,
    key_BxHxSxK: jax.Array,
    value_BxHxSxK: jax.Array,
    *,
    visible_BxLxS: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention in float32 over the visible keys, returned as [B, H, L, K].

    The logits are divided by sqrt(K). Without `visible_BxLxS` (booleans) attention is causal: each
    query sees the keys up to its own place, and with more keys than queries these are the last.
    """
    L, S, K = query_BxHxLxK.shape[2], key_BxHxSxK.shape[2], query_BxHxLxK.shape[3]
    logits_BxHxLxS = jnp.einsum(
        "BHLK,BHSK->BHLS", query_BxHxLxK, key_BxHxSxK, preferred_element_type=jnp.float32
    )
    logits_BxHxLxS *= 1 / math.sqrt(K)
    if visible_BxLxS is None:
        visible_BxLxS = (jnp.arange(S) <= jnp.arange(S - L, S)[:, None])[None]
    least = jnp.finfo(jnp.float32).min
    logits_BxHxLxS = jnp.where(visible_BxLxS[:, None], logits_BxHxLxS, least)
    weights_BxHxLxS = jax.nn.softmax(logits_BxHxLxS, axis=-1).astype(value_BxHxSxK.dtype)
    weights_BxHxLxS = dropout(weights_BxHxLxS, dropout_rate, dropout_key)
    return jnp.einsum("BHLS,BHSK->BHLK", weights_BxHxLxS, value_BxHxSxK)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero each element with probability `rate` and scale the rest up; without a key, x itself."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
