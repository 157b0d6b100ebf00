"""decode(): continue prompts of token ids, in one jitted loop that stays on the device.

Axes: B rows (a prompt, or a sample of one), P prompt slots, N new tokens, T = P + 1 + N ids of a
row's history, S = P + N slots of the cache. Prompts are aligned to the right, each with positions
of its own from 0, so every row writes the same slot at the same step.

Shapes come in buckets: a batch is filled up with rows that are done from the start, prompts with
slots that nobody sees, and the loop stops at a number of steps that is an argument.
"""

import contextlib
import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from biomedlm_jax import mesh as meshes
from biomedlm_jax.generation.decoder import (
    Cache,
    Decoder,
    decode_step,
    make_cache,
    mesh_of,
    prefill,
)
from biomedlm_jax.generation.sampling import Strategy, choose, process, row_keys
from biomedlm_jax.model.config import ModelConfig

# (what, shapes and strategy) -> how often it was traced, which is how often it was compiled.
compiles: Counter = Counter()


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("cache", "history", "lengths", "step", "done", "broken", "keys"),
    meta_fields=("prompt",),
)
@dataclasses.dataclass(frozen=True)
class State:
    """What a step changes; its buffers are donated to the loop, which updates them in place."""

    cache: Cache
    history: jax.Array  # [B, T] ids, -1 where there is none (yet)
    lengths: jax.Array  # [B] tokens of the prompts
    step: jax.Array  # new tokens so far
    done: jax.Array  # [B]
    broken: jax.Array  # [B] the first step whose logits had a NaN, else -1
    keys: jax.Array  # [B]
    prompt: int  # P


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What `decode` found, and what it took."""

    tokens: list[list[int]]  # of each row, the end included if it came
    prefill_seconds: float  # compilation left out of neither
    decode_seconds: float
    steps: int  # of the loop, which ends with its slowest row
    shape: tuple[int, int, int]  # B, P, N as compiled


def bucket(size: int, least: int = 16) -> int:
    """The smallest of 16, 32, 64, 128, and then the multiples of 128, that holds `size`."""
    for known in (16, 32, 64, 128):
        if known >= max(size, least):
            return known
    return -(-size // 128) * 128


def decode(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    strategy: Strategy | None = None,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    samples: int = 1,
    every: int | None = None,
    watch: Callable[[list[list[int]]], Sequence[bool]] | None = None,
) -> Decoded:
    """Continue each of `prompts` (token ids) by up to `max_new_tokens`.

    Args:
      strategy: how tokens are chosen; greedy by default, ended by the model's end of text.
      numbers: a number for each prompt, which with `seed` decides its draws, 0, 1, .. by default:
        so a draw does not depend on which prompts are decoded together.
      samples: continuations of each prompt, one after the other in the result.
      watch: called with all rows' new tokens after `every` steps; says which rows to stop.

    Raises:
      ValueError: a prompt is empty, has ids that the model has not, or does not fit with the new
        tokens into the model's positions; or the model's logits are not numbers.
    """
    config = decoder.config
    strategy = Strategy(ends=(config.eos_token_id,)) if strategy is None else strategy
    check_prompts(config, prompts, max_new_tokens)
    prompts = [prompt for prompt in prompts for _ in range(samples)]
    numbers = range(len(prompts) // samples) if numbers is None else numbers
    with on_mesh(decoder) as mesh:
        B = batch_bucket(len(prompts), mesh)
        keys_B = row_keys(seed, np.resize(np.asarray(numbers, np.uint32), B), samples)[:B]
        tokens_BxP1, lengths_B = align(prompts, rows=B)
        P, N = tokens_BxP1.shape[1] - 1, bucket(max_new_tokens)
        began = time.perf_counter()
        done_B = np.arange(B) >= len(prompts)
        state = _begin(decoder, tokens_BxP1, lengths_B, done_B, keys_B, N)
        jax.block_until_ready(state.cache)
        ready = time.perf_counter()
        step = 0
        every = max_new_tokens if watch is None or every is None else every
        while step < max_new_tokens:
            until = min(step + every, max_new_tokens)
            state = _loop(decoder, state, until, strategy)
            broken_B, done_B = fetch(state.broken), fetch(state.done)
            check_numbers(broken_B[: len(prompts)], [n for n in numbers for _ in range(samples)])
            if watch is None or done_B.all():
                break
            step = until
            stop = np.zeros(B, bool)
            stop[: len(prompts)] = watch(_new(state, len(prompts), strategy.ends))
            if stop.any():
                if (stop | done_B).all():
                    break
                state = dataclasses.replace(state, done=state.done | stop)
        tokens = _new(state, len(prompts), strategy.ends)
    seconds = time.perf_counter() - ready
    return Decoded(tokens, ready - began, seconds, int(state.step), (B, P, N))


def check_prompts(config: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int):
    """Raise ValueError, before anything is compiled, unless these prompts can be continued."""
    if not prompts or max_new_tokens < 1:
        raise ValueError(
            f"got {len(prompts)} prompts and max_new_tokens={max_new_tokens}; give at least one "
            "of each"
        )
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(
                f"prompt {number} has no tokens; begin it with the end of text, "
                f"{config.eos_token_id}"
            )
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise ValueError(
                f"prompt {number} has ids from {min(prompt)} to {max(prompt)}; the model's are 0 "
                f"to {config.vocab_size - 1}: use the tokenizer it was trained with"
            )
        positions = len(prompt) + max_new_tokens
        if positions > config.context_length:
            ways = "ask for fewer (--max_new_tokens)"
            if max_new_tokens < config.context_length:
                ways += ", shorten the prompt, or cut its beginning (--truncate=left)"
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens, and {max_new_tokens} new ones make "
                f"{positions}; the model has {config.context_length} positions: {ways}"
            )


def batch_bucket(rows: int, mesh: Mesh | None) -> int:
    """The smallest power of two that holds `rows`, rounded up to what the mesh divides."""
    shards = 1 if mesh is None else meshes.batch_shards(mesh)
    size = 1 << (rows - 1).bit_length()
    return -(-size // shards) * shards


def align(prompts: Sequence[Sequence[int]], *, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as [rows, P + 1], aligned to the right, -1 before them, and their lengths [rows]."""
    P = bucket(max(map(len, prompts)) - 1)
    tokens_BxP1 = np.full((rows, P + 1), -1, np.int32)
    tokens_BxP1[:, -1] = 0  # what a row that fills the batch begins with
    for row, prompt in zip(tokens_BxP1, prompts, strict=False):
        row[P + 1 - len(prompt) :] = prompt
    lengths = [len(prompt) for prompt in prompts] + [1] * (rows - len(prompts))
    return tokens_BxP1, np.array(lengths, np.int32)


def check_numbers(broken_B: np.ndarray, numbers: Sequence[int]) -> None:
    """Raise ValueError if a row's logits were NaN: `broken_B` has the step, or -1."""
    for step, number in zip(broken_B.tolist(), numbers, strict=True):
        if step >= 0:
            raise ValueError(
                f"the model's logits are NaN at step {step} of prompt {number}; check its weights "
                "(biomedlm verify-hf), or decode in float32"
            )


@contextlib.contextmanager
def on_mesh(decoder: Decoder) -> Iterator[Mesh | None]:
    """Work on the mesh that the decoder is spread over; yield it, or None for one device."""
    mesh = mesh_of(decoder)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        yield mesh


def _new(state: State, rows: int, ends: Sequence[int]) -> list[list[int]]:
    """Each row's new tokens, up to and with the first that ends it."""
    history = fetch(state.history)[:rows, state.prompt + 1 :]
    return [until_end(row.tolist(), ends) for row in history]


def until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens up to and with the first that is one of `ends` or no token (-1)."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
        if token < 0:
            return tokens[:place]
    return tokens


def fetch(x: jax.Array) -> np.ndarray:
    """An array that is spread over the mesh, whole, in every process."""
    return multihost_utils.process_allgather(x, tiled=True)


def spread(x: jax.Array) -> jax.Array:
    """Lay an array out by its first axis, the batch."""
    return meshes.constrain(x, "batch", *(None,) * (x.ndim - 1))


@functools.partial(jax.jit, static_argnums=5)
def _begin(decoder, tokens_BxP1, lengths_B, done_B, keys_B, N: int) -> State:
    B, P = tokens_BxP1.shape[0], tokens_BxP1.shape[1] - 1
    compiles["prefill", B, P, N] += 1
    tokens_BxP1 = spread(tokens_BxP1)
    cache = make_cache(decoder.config, B, P + N)
    cache = prefill(decoder, cache, jnp.maximum(tokens_BxP1[:, :P], 0), lengths_B - 1)
    unknown_BxN = jnp.full((B, N), -1, jnp.int32)
    return State(
        cache=cache,
        history=spread(jnp.concatenate([tokens_BxP1, unknown_BxN], axis=1)),
        lengths=spread(lengths_B),
        step=jnp.int32(0),
        done=spread(done_B),
        broken=spread(jnp.full(B, -1, jnp.int32)),
        keys=spread(keys_B),
        prompt=P,
    )


@functools.partial(jax.jit, static_argnums=3, donate_argnums=1)
def _loop(decoder: Decoder, state: State, until: jax.Array, strategy: Strategy) -> State:
    P, B, S = state.prompt, state.done.shape[0], state.history.shape[1] - 1
    compiles["loop", B, P, S - P, strategy] += 1

    def unfinished(state: State) -> jax.Array:
        return (state.step < until) & ~state.done.all() & (state.broken < 0).all()

    return jax.lax.while_loop(
        unfinished, functools.partial(_advance, decoder, strategy, P, S), state
    )


def _advance(decoder: Decoder, strategy: Strategy, P: int, S: int, state: State) -> State:
    """Feed each row's newest token, and choose the next."""
    step, slot, end = state.step, P + state.step, P + 1 + state.step
    tokens_Bx1 = jax.lax.dynamic_slice_in_dim(state.history, end - 1, 1, axis=1)
    positions_B = jnp.minimum(state.lengths - 1 + step, decoder.config.context_length - 1)
    slots_S = jnp.arange(S)
    visible_BxS = (slots_S >= P + 1 - state.lengths[:, None]) & (slots_S <= slot)
    logits_Bx1xV, cache = decode_step(
        decoder,
        state.cache,
        jnp.maximum(tokens_Bx1, 0),  # of a row that is done there is none
        positions_B[:, None],
        slot,
        visible_BxS[:, None],
    )
    logits_BxV = spread(logits_Bx1xV[:, 0])
    nan_B = jnp.isnan(logits_BxV.max(-1)) & ~state.done
    scores_BxV = process(strategy, logits_BxV, state.history, end, state.lengths + step, step)
    chosen_B = choose(strategy, scores_BxV, state.keys, step).astype(jnp.int32)
    chosen_B = jnp.where(state.done, -1, chosen_B)
    ended_B = functools.reduce(jnp.logical_or, (chosen_B == e for e in strategy.ends), state.done)
    return dataclasses.replace(
        state,
        cache=cache,
        history=jax.lax.dynamic_update_slice_in_dim(state.history, chosen_B[:, None], end, axis=1),
        step=step + 1,
        done=ended_B,
        broken=jnp.where((state.broken < 0) & nan_B, step, state.broken),
    )
