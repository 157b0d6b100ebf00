"""Sampling: how the next token follows from the logits and the tokens before it.

The functions compute, for rows R and the vocabulary V, what transformers' logits processors do, in
the same order. `history_RxT` holds a row's ids, the newest at `end - 1`, right-aligned, with -1
where there is none: padding never counts as text.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from biomedlm_jax.settings import Settings, setting

BANNED = -jnp.inf
LARGEST = 2**31 - 1  # of the devices' whole numbers
_count = functools.partial(setting, 0, least=0, most=LARGEST)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy(Settings):
    """What decides the next token. It is hashable: each strategy has its own compiled loop."""

    temperature: float = setting(0.0, least=0, help="divide logits by it; 0: no sampling")
    top_k: int = _count(help="sample from so many likeliest tokens; 0: from all")
    top_p: float = setting(1.0, above=0, most=1, help="total probability of the sampled tokens")
    min_p: float = setting(0.0, least=0, most=1, help="least probability, relative to the largest")
    repetition_penalty: float = setting(
        1.0, above=0, help="divide positive logits of tokens in the text by it, multiply negative"
    )
    no_repeat_ngram_size: int = _count(help="length of token sequences that may not repeat; 0: off")
    min_length: int = _count(help="tokens of prompt and answer before the answer may end")
    min_new_tokens: int = _count(help="tokens of the answer before it may end")
    bad_words: tuple[str | tuple[int, ...], ...] = setting(  # ids here; also texts in Options
        (), help="text that an answer never contains, with or without a space before it"
    )
    ends: tuple[int, ...] = setting((), help="token ids that end an answer")


def process(
    strategy: Strategy,
    scores_RxV: jax.Array,
    history_RxT: jax.Array,
    end: jax.Array,
    lengths_R: jax.Array,
    step: jax.Array,
) -> jax.Array:
    """Apply penalties and bans: return the next token's scores [R, V], -inf for banned ones.

    `lengths_R` counts each row's tokens so far, prompt included; `step` counts the new ones.
    """
    if strategy.repetition_penalty != 1:
        scores_RxV = _penalise(scores_RxV, history_RxT, end, strategy.repetition_penalty)
    if strategy.no_repeat_ngram_size:
        scores_RxV = _ban_ngrams(scores_RxV, history_RxT, end, strategy.no_repeat_ngram_size)
    for word in strategy.bad_words:
        scores_RxV = _ban_word(scores_RxV, history_RxT, end, word)
    if strategy.min_length or strategy.min_new_tokens:
        early_R = (lengths_R < strategy.min_length) | (step < strategy.min_new_tokens)
        for token in strategy.ends:
            banned_R = jnp.where(early_R, BANNED, scores_RxV[:, token])
            scores_RxV = scores_RxV.at[:, token].set(banned_R)
    return scores_RxV


def choose(
    strategy: Strategy, scores_RxV: jax.Array, keys_R: jax.Array, step: jax.Array
) -> jax.Array:
    """Return the next token of each row [R]: the likeliest, or a sample by its key and `step`."""
    if not strategy.temperature:
        return scores_RxV.argmax(-1)
    scores_RxV = warp(strategy, scores_RxV)
    keys_R = jax.vmap(jax.random.fold_in, (0, None))(keys_R, step)
    return jax.vmap(jax.random.categorical)(keys_R, scores_RxV)


def warp(strategy: Strategy, scores_RxV: jax.Array) -> jax.Array:
    """Apply temperature, then top-k, top-p and min-p, in transformers' order."""
    scores_RxV = scores_RxV / strategy.temperature
    V = scores_RxV.shape[-1]
    if 0 < strategy.top_k < V:
        least_Rx1 = jax.lax.top_k(scores_RxV, strategy.top_k)[0][:, -1:]
        scores_RxV = jnp.where(scores_RxV < least_Rx1, BANNED, scores_RxV)
    if strategy.top_p < 1:
        ascending_RxV = jnp.sort(scores_RxV, axis=-1)
        below_RxV = jnp.cumsum(jax.nn.softmax(ascending_RxV, axis=-1), axis=-1)
        dropped_R = (below_RxV <= 1 - strategy.top_p).sum(-1)
        first_Rx1 = jnp.minimum(dropped_R, V - 1)[:, None]  # the likeliest always stays
        least_Rx1 = jnp.take_along_axis(ascending_RxV, first_Rx1, axis=-1)
        scores_RxV = jnp.where(scores_RxV < least_Rx1, BANNED, scores_RxV)
    if strategy.min_p:
        weights_RxV = jax.nn.softmax(scores_RxV, axis=-1)
        least_Rx1 = strategy.min_p * weights_RxV.max(-1, keepdims=True)
        scores_RxV = jnp.where(weights_RxV < least_Rx1, BANNED, scores_RxV)
    return scores_RxV


@functools.partial(jax.jit, static_argnums=2)
def row_keys(seed: jax.Array, indices_R: jax.Array, samples: int = 1) -> jax.Array:
    """Return a key for each sample of each prompt [R * samples], from the prompts' numbers."""
    keys_R = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices_R)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    return fold(keys_R, jnp.arange(samples)).reshape(-1)


def _occurs(history_RxT, selected_RxT, V):
    """Return whether each vocabulary entry is among the selected ids: [R, V]."""
    ids_RxT = jnp.where(selected_RxT, history_RxT, V)  # past the end: dropped
    rows_Rx1 = jnp.arange(history_RxT.shape[0])[:, None]
    return jnp.zeros((history_RxT.shape[0], V), bool).at[rows_Rx1, ids_RxT].set(True, mode="drop")


def _penalise(scores_RxV, history_RxT, end, penalty):
    written_RxT = (history_RxT >= 0) & (jnp.arange(history_RxT.shape[1]) < end)
    occurs_RxV = _occurs(history_RxT, written_RxT, scores_RxV.shape[-1])
    penalised_RxV = jnp.where(scores_RxV < 0, scores_RxV * penalty, scores_RxV / penalty)
    return jnp.where(occurs_RxV, penalised_RxV, scores_RxV)


def _ban_ngrams(scores_RxV, history_RxT, end, size):
    """Ban each id that would complete an n-gram of `size` ids that the row has already."""
    T = history_RxT.shape[1]
    # An id at t completes such an n-gram if the ids before it are those at the row's end.
    matches_RxT = (history_RxT >= 0) & (jnp.arange(T) < end) & (jnp.arange(T) >= size - 1)
    for back in range(1, size):
        newest_Rx1 = jax.lax.dynamic_slice_in_dim(history_RxT, end - back, 1, axis=1)
        matches_RxT &= (jnp.roll(history_RxT, back, axis=1) == newest_Rx1) & (newest_Rx1 >= 0)
    return jnp.where(_occurs(history_RxT, matches_RxT, scores_RxV.shape[-1]), BANNED, scores_RxV)


def _ban_word(scores_RxV, history_RxT, end, word):
    *before, last = word
    follows_R = jnp.ones(scores_RxV.shape[0], bool)
    for back, token in enumerate(reversed(before), start=1):
        newest_R = jax.lax.dynamic_slice_in_dim(history_RxT, end - back, 1, axis=1)[:, 0]
        follows_R &= (newest_R == token) & (end - back >= 0)
    return scores_RxV.at[:, last].set(jnp.where(follows_R, BANNED, scores_RxV[:, last]))
