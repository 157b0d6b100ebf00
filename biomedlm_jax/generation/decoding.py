"""generate(): continue prompts, greedily or by sampling, in one jitted loop on the device.

Axes: B prompts, T positions of the buffer, V vocabulary. There is no key-value cache: each new
token costs a forward pass over the whole buffer, which is fine for a look at a model.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from biomedlm_jax.model.gpt import GPT


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Continuations of `prompts`, each cut at the end-of-text token and without its prompt.

    An empty prompt starts from the end-of-text token. Temperature 0 takes the likeliest token.
    Raises ValueError if a prompt and its new tokens do not fit the model's positions.
    """
    if not prompts or max_new_tokens < 1 or temperature < 0:
        raise ValueError(
            f"got {len(prompts)} prompts, max_new_tokens={max_new_tokens}, temperature="
            f"{temperature}; give at least one prompt and one token, and a temperature of 0 or more"
        )
    end = model.config.eos_token_id
    prompt_ids = [tokenizer.encode(prompt).ids or [end] for prompt in prompts]
    longest = max(len(ids) for ids in prompt_ids)
    positions = longest + max_new_tokens
    if positions > model.config.context_length:
        raise ValueError(
            f"the longest prompt has {longest} tokens, and {max_new_tokens} new ones make "
            f"{positions}; the model has {model.config.context_length} positions: ask for less"
        )
    tokens_BxT = np.full((len(prompt_ids), positions), end, np.int32)
    for row, ids in zip(tokens_BxT, prompt_ids, strict=True):
        row[: len(ids)] = ids
    lengths_B = np.array([len(ids) for ids in prompt_ids], np.int32)
    tokens_BxT = np.asarray(
        _decode(
            model, tokens_BxT, lengths_B, jax.random.key(seed), max_new_tokens, float(temperature)
        )
    )
    continuations = []
    for row, length in zip(tokens_BxT, lengths_B, strict=True):
        new = row[length : length + max_new_tokens].tolist()
        continuations.append(tokenizer.decode(new[: new.index(end)] if end in new else new))
    return continuations


@functools.partial(jax.jit, static_argnums=(4, 5))
def _decode(model, tokens_BxT, lengths_B, key, max_new_tokens: int, temperature: float):
    rows_B = jnp.arange(tokens_BxT.shape[0])

    def step(i, tokens_BxT):
        x_BxTxD = model.hidden(tokens_BxT)
        logits_BxV = model.logits(x_BxTxD[rows_B, lengths_B + i - 1][:, None])[:, 0]
        if temperature:
            next_B = jax.random.categorical(jax.random.fold_in(key, i), logits_BxV / temperature)
        else:
            next_B = logits_BxV.argmax(-1)
        return tokens_BxT.at[rows_B, lengths_B + i].set(next_B)

    return jax.lax.fori_loop(0, max_new_tokens, step, tokens_BxT)
