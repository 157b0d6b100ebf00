"""Sampling: how the next token follows from the logits and the tokens before it.

The functions compute, for rows R and the vocabulary V, what transformers' logits processors do, in
the same order. `history_RxT` holds a row's ids, the newest at `end - 1`, right-aligned, with -1
where there is none: padding never counts as text.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from biomedlm_jax.settings import Settings, setting

BANNED = -jnp.inf
LARGEST = 2**31 - 1  # of the devices' whole numbers
FEW = 128  # a top_k up to it is found without sorting the vocabulary
_count = functools.partial(setting, 0, least=0, most=LARGEST)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy(Settings):
    """What decides the next token."""

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

    def rules(self) -> "Rules":
        """Return the strategy for a compiled loop.

        As in transformers, a bad word that is an end token has no effect.
        """
        values: dict[str, Any] = {}
        if self.temperature:
            values["temperature"] = np.float32(max(self.temperature, 1e-30))  # quotients are finite
            if self.top_k:
                values["top_k" if self.top_k <= FEW else "large_top_k"] = np.int32(self.top_k)
            if self.top_p < 1:  # subtracted in double precision, as in transformers
                values["dropped_p"] = np.float32(1 - self.top_p)
            if self.min_p:
                values["min_p"] = np.float32(self.min_p)
        if self.repetition_penalty != 1:
            values["repetition_penalty"] = np.float32(self.repetition_penalty)
        if self.min_length or self.min_new_tokens:
            values["min_length"] = np.int32(self.min_length)
            values["min_new_tokens"] = np.int32(self.min_new_tokens)
        words = tuple(word for word in self.bad_words if word not in [(end,) for end in self.ends])
        return Rules(values, self.no_repeat_ngram_size, words, self.ends)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules:
    """A strategy as an argument of a compiled loop: other values do not compile it again."""

    values: dict[str, Any]  # scalars; a rule without a value here is off
    no_repeat_ngram_size: int = dataclasses.field(metadata={"static": True})
    bad_words: tuple = dataclasses.field(metadata={"static": True})
    ends: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def compiled(self) -> tuple:
        """What a loop is compiled for."""
        return *sorted(self.values), self.no_repeat_ngram_size, self.bad_words, self.ends


def process_logits(
    rules: Rules,
    scores_RxV: jax.Array,
    history_RxT: jax.Array,
    end: jax.Array,
    lengths_R: jax.Array,
    step: jax.Array,
) -> jax.Array:
    """Apply penalties and bans: return the next token's scores [R, V], -inf for banned ones.

    `lengths_R` counts each row's tokens so far, prompt included; `step` counts the new ones.
    """
    values = rules.values
    if "repetition_penalty" in values:
        scores_RxV = _penalise(scores_RxV, history_RxT, end, values["repetition_penalty"])
    if rules.no_repeat_ngram_size:
        scores_RxV = _ban_ngrams(scores_RxV, history_RxT, end, rules.no_repeat_ngram_size)
    for word in rules.bad_words:
        scores_RxV = _ban_word(scores_RxV, history_RxT, end, word)
    if "min_length" in values:
        early_R = (lengths_R < values["min_length"]) | (step < values["min_new_tokens"])
        for token in rules.ends:
            banned_R = jnp.where(early_R, BANNED, scores_RxV[:, token])
            scores_RxV = scores_RxV.at[:, token].set(banned_R)
    return scores_RxV


def sample_tokens(
    rules: Rules, scores_RxV: jax.Array, keys_R: jax.Array, step: jax.Array
) -> jax.Array:
    """Return the next token of each row [R]: the likeliest, or a sample by its key and `step`."""
    if "temperature" not in rules.values:
        return scores_RxV.argmax(-1)
    scores_RxV = warp_logits(rules, scores_RxV)
    keys_R = jax.vmap(jax.random.fold_in, (0, None))(keys_R, step)
    return jax.vmap(jax.random.categorical)(keys_R, scores_RxV)


def warp_logits(rules: Rules, scores_RxV: jax.Array) -> jax.Array:
    """Apply temperature, then top-k, top-p and min-p, in transformers' order."""
    V, values = scores_RxV.shape[-1], rules.values
    scores_RxV = scores_RxV / values["temperature"]
    for name, count in (("top_k", min(FEW, V)), ("large_top_k", V)):
        if name in values:
            largest_RxK, last = jax.lax.top_k(scores_RxV, count)[0], jnp.minimum(values[name], V)
            least_Rx1 = jax.lax.dynamic_slice_in_dim(largest_RxK, last - 1, 1, axis=1)
            scores_RxV = jnp.where(scores_RxV < least_Rx1, BANNED, scores_RxV)
    if "dropped_p" in values:
        ascending_RxV = jnp.sort(scores_RxV, axis=-1)
        below_RxV = jnp.cumsum(jax.nn.softmax(ascending_RxV, axis=-1), axis=-1)
        dropped_R = (below_RxV <= values["dropped_p"]).sum(-1)
        first_Rx1 = jnp.minimum(dropped_R, V - 1)[:, None]  # the likeliest always stays
        least_Rx1 = jnp.take_along_axis(ascending_RxV, first_Rx1, axis=-1)
        scores_RxV = jnp.where(scores_RxV < least_Rx1, BANNED, scores_RxV)
    if "min_p" in values:
        weights_RxV = jax.nn.softmax(scores_RxV, axis=-1)
        least_Rx1 = values["min_p"] * weights_RxV.max(-1, keepdims=True)
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
