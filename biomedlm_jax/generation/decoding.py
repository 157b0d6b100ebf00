"""decode(): continue prompts of token ids, in one jitted loop that stays on the device.

Prompts are right-aligned, so every row writes the same slot at the same step. Shapes come in
buckets: a batch is padded with rows that are done from the start, prompts with slots that no query
sees, and the number of steps is an argument of the loop.

Axes: B rows (a prompt, or a sample of one), P prompt slots, N new tokens, T = P + 1 + N ids of a
row's history, S = P + N slots of the cache, V vocabulary.
"""

import contextlib
import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from biomedlm_jax import mesh as meshes
from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.generation import decoder as decoders
from biomedlm_jax.generation.decoder import Cache, Decoder, mesh_of
from biomedlm_jax.generation.sampling import (
    Rules,
    Strategy,
    process_logits,
    row_keys,
    sample_tokens,
)
from biomedlm_jax.generation.stops import state_after
from biomedlm_jax.model.attention import within
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.language_model import LanguageModel

# (name, shapes and rules) -> how often it was traced, which is how often it was compiled.
compiles: Counter = Counter()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefilled:
    """What the states of `decode` and of beam search share; a loop updates them in place."""

    cache: Cache
    lengths: jax.Array  # [B] tokens of the prompts
    step: jax.Array  # new tokens so far
    nan_step: jax.Array  # [B] the first step whose logits had a NaN, else -1
    prompt: int = dataclasses.field(metadata={"static": True})  # P


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State(Prefilled):
    """What a step changes."""

    history: jax.Array  # [B, T] ids, -1 where there is none (yet)
    done: jax.Array  # [B]
    keys: jax.Array  # [B]
    stop: jax.Array | None  # [B] states of the stop strings' automaton


@dataclasses.dataclass(frozen=True)
class Decoded:
    """New tokens, and the time they took (with compilation, if there was any)."""

    tokens: list[list[list[int]]]  # [prompt][sample or beam], with the end if there is one
    prefill_seconds: float
    decode_seconds: float
    steps: int  # of the loop, which ends with its slowest row
    shape: tuple[int, int, int]  # B, P, N as compiled
    scores: list[list[float]] | None = None  # of beams: log-probability / length ** length_penalty

    @property
    def rows(self) -> list[list[int]]:
        """The continuations of all prompts as one list."""
        return [row for rows in self.tokens for row in rows]


def decode(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    strategy: Strategy | None = None,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    samples: int = 1,
    keys: jax.Array | None = None,
    every: int | None = None,
    watch: Callable[[list[list[int]]], Sequence[bool]] | None = None,
    stops: np.ndarray | None = None,
    stops_span: bool = True,
) -> Decoded:
    """Continue each of `prompts` (token ids) by up to `max_new_tokens`.

    Args:
      strategy: how tokens are chosen; greedy by default, up to the model's end of text.
      numbers: a number for each prompt, 0, 1, .. by default; it and `seed` decide its `samples`.
      keys: a key for each sample of each prompt, in place of those of `seed` and `numbers`.
      watch: called with all rows' new tokens after `every` steps; returns which rows to stop.
      stops: the `stop_table` of strings that end an answer.
      stops_span: whether a stop string may begin in the prompt, as in transformers.

    Raises InputError if a prompt is empty, has unknown ids, or does not fit the model's positions
    with its new tokens, or if logits are NaN.
    """
    strategy = strategy or Strategy(ends=decoder.config.end_ids)
    check_prompts(decoder.config, prompts, max_new_tokens)
    rows = len(prompts) * samples
    prompts = [prompt for prompt in prompts for _ in range(samples)]
    numbers = range(rows // samples) if numbers is None else numbers
    with on_mesh(decoder) as mesh:
        B, N = batch_bucket(rows, mesh), bucket(max_new_tokens)
        if keys is None:
            keys_B = row_keys(seed, np.resize(np.asarray(numbers, np.uint32), B), samples)[:B]
        else:
            keys_B = keys[np.arange(B) % rows]
        tokens_BxP1, lengths_B = align(prompts, rows=B)
        began = time.perf_counter()
        stop_B = stop_states(stops, prompts if stops_span else (), B)
        state = _begin(decoder, tokens_BxP1, lengths_B, np.arange(B) >= rows, keys_B, stop_B, N)
        jax.block_until_ready(state.cache)
        ready, step, tokens = time.perf_counter(), 0, []
        every = max_new_tokens if watch is None or every is None else every
        while step < max_new_tokens:
            step = min(step + every, max_new_tokens)
            state = _loop(decoder, state, step, strategy.rules(), stops)
            check_logits(state, np.repeat(numbers, samples).tolist())
            history, done_B = fetch(state.history)[:rows, state.prompt + 1 :], fetch(state.done)
            tokens = [until_end(row, strategy.ends) for row in history.tolist()]
            if watch is None or done_B.all():
                break
            halted_B = np.zeros(B, bool)
            halted_B[:rows] = watch(tokens)
            if (halted_B | done_B).all():
                break
            if halted_B.any():
                state = dataclasses.replace(state, done=state.done | halted_B)
    return Decoded(
        [tokens[first : first + samples] for first in range(0, rows, samples)],
        prefill_seconds=ready - began,
        decode_seconds=time.perf_counter() - ready,
        steps=int(state.step),
        shape=(B, state.prompt, N),
    )


def check_prompts(config: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int):
    """Raise InputError, before anything is compiled, unless these prompts can be continued."""
    if not prompts or max_new_tokens < 1:
        got = f"{counted(len(prompts), 'prompt')} and max_new_tokens={max_new_tokens}"
        raise InputError(f"got {got}; expected at least one of each")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            start = f"the start of text, {config.bos_token_id}"
            raise InputError(f"prompt {number} has no tokens; begin it with {start}")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            wanted = f"0 to {config.vocab_size - 1}: use the model's own tokenizer"
            ids = f"ids from {min(prompt)} to {max(prompt)}"
            raise InputError(f"prompt {number} has {ids}; expected {wanted}")
        positions = len(prompt) + max_new_tokens
        if positions > config.context_length:
            fix = "lower --max_new_tokens"
            if max_new_tokens < config.context_length:
                fix += ", shorten the prompt, or cut its beginning (--truncate=left)"
            got = f"{counted(len(prompt), 'token')}, and {max_new_tokens} new ones make {positions}"
            limit = f"the model has {config.context_length} positions"
            raise InputError(f"prompt {number} has {got}; {limit}: {fix}")


def bucket(size: int) -> int:
    """Return the smallest of 16, 32, 64, 128, and then the multiples of 128, that holds `size`."""
    return next((n for n in (16, 32, 64) if n >= size), -(-size // 128) * 128)


def batch_bucket(rows: int, mesh: Mesh | None) -> int:
    """Return the smallest power of two that holds `rows`, rounded up to what the mesh divides."""
    shards = 1 if mesh is None else meshes.batch_shards(mesh)
    size = 1 << (rows - 1).bit_length()
    return -(-size // shards) * shards


def align(prompts: Sequence[Sequence[int]], *, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return right-aligned prompts [rows, P + 1], -1 before them, and their lengths [rows]."""
    P = bucket(max(map(len, prompts)) - 1)
    tokens_BxP1 = np.full((rows, P + 1), -1, np.int32)
    tokens_BxP1[:, -1] = 0  # the only token of a padding row
    lengths_B = np.ones(rows, np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BxP1[row, P + 1 - len(prompt) :], lengths_B[row] = prompt, len(prompt)
    return tokens_BxP1, lengths_B


def stop_states(
    table: np.ndarray | None, prompts: Sequence[Sequence[int]], rows: int
) -> np.ndarray | None:
    """Return the states of the stop strings' automaton after the prompts, 0 without one."""
    if table is None:
        return None
    states_B = np.zeros(rows, np.int32)
    states_B[: len(prompts)] = [state_after(table, prompt) for prompt in prompts]
    return states_B


def check_logits(state: Prefilled, numbers: Sequence[int]) -> None:
    """Raise InputError if the logits of a row were NaN; `numbers` name the rows' prompts."""
    for number, step in zip(numbers, fetch(state.nan_step).tolist(), strict=False):
        if step >= 0:
            fix = "check its weights (biomedlm verify-hf), or decode in float32"
            raise InputError(f"the logits are NaN at step {step} of prompt {number}; {fix}")


@contextlib.contextmanager
def on_mesh(model: Decoder | LanguageModel) -> Generator[Mesh | None]:
    """Make the model's mesh the current one; yield it, or None for one device."""
    mesh = mesh_of(model)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        yield mesh


def until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Return the tokens up to and with the first of `ends`, or before the first padding (-1)."""
    for place, token in enumerate(tokens):
        if token in ends or token < 0:
            return tokens[: place + (token >= 0)]
    return tokens


def is_eos(ids_x: jax.Array, ends: Sequence[int]) -> jax.Array:
    """Return whether each id is one of `ends`."""
    no_x = jnp.zeros(ids_x.shape, bool)
    return functools.reduce(jnp.logical_or, (ids_x == end for end in ends), no_x)


def fetch(x: jax.Array) -> np.ndarray:
    """Return the whole of an array that is sharded over the mesh, in every process."""
    return multihost_utils.process_allgather(x, tiled=True)


def shard_batch(x: jax.Array) -> jax.Array:
    """Shard an array by its first axis, the batch."""
    return meshes.constrain(x, "batch", *(None,) * (x.ndim - 1))


@functools.partial(jax.jit, static_argnums=6)
def _begin(decoder, tokens_BxP1, lengths_B, done_B, keys_B, stop_B, N: int) -> State:
    B, P1 = tokens_BxP1.shape
    compiles["prefill", B, P1 - 1, N] += 1
    unknown_BxN = jnp.full((B, N), -1, jnp.int32)
    return State(
        history=shard_batch(jnp.concatenate([shard_batch(tokens_BxP1), unknown_BxN], axis=1)),
        done=shard_batch(done_B),
        keys=shard_batch(keys_B),
        stop=None if stop_B is None else shard_batch(stop_B),
        **prefilled_fields(decoder, tokens_BxP1, lengths_B, slots=N),
    )


def prefilled_fields(
    decoder: Decoder, tokens_BxP1: jax.Array, lengths_B: jax.Array, *, slots: int
) -> dict:
    """Cache all but the last token of each prompt; return the fields of `Prefilled`."""
    B, P = tokens_BxP1.shape[0], tokens_BxP1.shape[1] - 1
    tokens_BxP = jnp.maximum(shard_batch(tokens_BxP1)[:, :P], 0)
    cache = decoders.make_cache(decoder.config, B, P + slots)
    return {
        "cache": decoders.prefill(decoder, cache, tokens_BxP, lengths_B - 1),
        "lengths": shard_batch(lengths_B),
        "step": jnp.int32(0),
        "nan_step": shard_batch(jnp.full(B, -1, jnp.int32)),
        "prompt": P,
    }


def decode_step_checked(
    decoder: Decoder, state: Prefilled, tokens_BxW: jax.Array, visible_BxWxS: jax.Array, counts_B
) -> tuple[jax.Array, dict]:
    """Return logits [B, W, V], and the new cache and nan_step (NaN counts in `counts_B` only)."""
    config, W = decoder.config, tokens_BxW.shape[1]
    positions_B = jnp.minimum(state.lengths - 1 + state.step, config.context_length - 1)
    if config.sliding_window is not None:
        slots_S = jnp.arange(visible_BxWxS.shape[-1]) - state.prompt
        # In the loop, each W slots have the sequences' tokens of one step.
        after_S = jnp.where(slots_S < 0, slots_S, slots_S // W)
        keys_BxS = state.lengths[:, None] - 1 + after_S
        visible_BxWxS &= within(config.sliding_window, positions_B[:, None], keys_BxS)
    logits_BxWxV, cache = decoders.decode_step(
        decoder,
        state.cache,
        tokens_BxW,
        jnp.broadcast_to(positions_B[:, None], tokens_BxW.shape),
        state.prompt + state.step * W,
        visible_BxWxS,
    )
    nan_B = jnp.isnan(logits_BxWxV.max(-1)).any(-1) & (state.nan_step < 0) & counts_B
    nan_step_B = jnp.where(nan_B, state.step, state.nan_step)
    return shard_batch(logits_BxWxV), {"cache": cache, "nan_step": nan_step_B}


@functools.partial(jax.jit, donate_argnums=1)
def _loop(decoder: Decoder, state: State, until, rules: Rules, stops_SxV) -> State:
    P, B, S = state.prompt, state.done.shape[0], state.history.shape[1] - 1
    compiles["loop", B, P, S - P, rules.compiled] += 1

    def unfinished(state: State) -> jax.Array:
        return (state.step < until) & ~state.done.all() & (state.nan_step < 0).all()

    advance = functools.partial(_advance, decoder, rules, stops_SxV)
    return jax.lax.while_loop(unfinished, advance, state)


def _advance(decoder: Decoder, rules: Rules, stops_SxV, state: State) -> State:
    """Feed each row's newest token, and choose the next."""
    P, S, step = state.prompt, state.history.shape[1] - 1, state.step
    end = P + 1 + step
    tokens_Bx1 = jax.lax.dynamic_slice_in_dim(state.history, end - 1, 1, axis=1)
    tokens_Bx1 = jnp.maximum(tokens_Bx1, 0)  # -1 in a row that is done
    slots_S = jnp.arange(S)
    visible_BxS = (slots_S >= P + 1 - state.lengths[:, None]) & (slots_S < end)
    logits_Bx1xV, changed = decode_step_checked(
        decoder, state, tokens_Bx1, visible_BxS[:, None], ~state.done
    )
    lengths_B = state.lengths + step
    scores_BxV = process_logits(rules, logits_Bx1xV[:, 0], state.history, end, lengths_B, step)
    chosen_B = sample_tokens(rules, scores_BxV, state.keys, step).astype(jnp.int32)
    chosen_B = jnp.where(state.done, -1, chosen_B)
    history = jax.lax.dynamic_update_slice_in_dim(state.history, chosen_B[:, None], end, axis=1)
    after = step + 1
    done_B = state.done | is_eos(chosen_B, rules.ends)
    if state.stop is not None:
        after_B = stops_SxV[state.stop, jnp.maximum(chosen_B, 0)]
        changed["stop"], done_B = after_B >> 1, done_B | (after_B & 1 == 1)
    return dataclasses.replace(state, **changed, history=history, step=after, done=done_B)
