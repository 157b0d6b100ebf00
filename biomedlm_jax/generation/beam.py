"""Beam search, equal to transformers' `generate(num_beams=...)` token for token.

The cache is never reordered: `origins_BxWxN` records in which beam's slot each token of a beam's
past is, and a beam sees those slots only. The prompt is cached once for all its beams.

Axes: B prompts, W beams, M = 2 W (or more, with several ends) candidates, N new tokens, P prompt
slots, S slots of the cache, V vocabulary, R = B * W.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from biomedlm_jax.errors import InputError
from biomedlm_jax.generation import decoding
from biomedlm_jax.generation.decoder import Decoder
from biomedlm_jax.generation.decoding import Decoded, Prefilled, shard_batch, until_end
from biomedlm_jax.generation.sampling import LARGEST, Rules, Strategy, process_logits
from biomedlm_jax.settings import Settings, setting

NEVER = -1e9  # the score of what does not exist; finite, as in transformers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beams(Settings):
    """How many hypotheses are kept, and how they are compared."""

    beams: int = setting(1, least=1, most=LARGEST, help="beam search's hypotheses; 1: none")
    samples: int = setting(1, least=1, most=LARGEST, help="answers to each prompt")
    length_penalty: float = setting(
        1.0, help="beams: divide scores by length ** this; negative values favour short answers"
    )
    early_stopping: bool | str = setting(
        False,
        choices=(False, True, "never"),
        help="beams: stop when all are finished (true), or no better one is likely (false) or "
        "possible (never)",
    )

    def __post_init__(self):
        super().__post_init__()
        if 1 < self.beams < self.samples:
            got = f"samples={self.samples} with beams={self.beams}"
            raise InputError(f"got {got}; expected at most as many answers as beams")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State(Prefilled):
    """What a step changes."""

    prompts: jax.Array  # [B, P + 1] ids, -1 before them
    hopeless: jax.Array  # [B] no running beam can exceed the finished ones
    over: jax.Array  # all prompts are done
    running: jax.Array  # [B, W, N] new ids
    scores: jax.Array  # [B, W] their summed log-probabilities
    origins: jax.Array  # [B, W, N] the beam in whose slots each id was cached
    finished: jax.Array  # [B, W, N]
    finished_scores: jax.Array  # [B, W] log-probability / length ** length_penalty
    is_finished: jax.Array  # [B, W]
    stop: jax.Array | None  # [B, W] states of the stop strings' automaton


def search(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    beams: Beams,
    max_new_tokens: int,
    strategy: Strategy | None = None,
    numbers: Sequence[int] | None = None,
    stops: np.ndarray | None = None,
    stops_span: bool = True,
) -> Decoded:
    """Return the best continuations of each prompt of token ids, best first, with their scores.

    `strategy` applies to log-probabilities here, as in transformers, and cannot sample. `numbers`,
    `stops`, `stops_span` and errors are those of `decode`.
    """
    strategy = strategy or Strategy(ends=decoder.config.end_ids)
    if strategy.temperature:
        got = f"temperature={strategy.temperature} with beams={beams.beams}"
        raise InputError(f"got {got}; beam search does not sample: use temperature=0, or one beam")
    decoding.check_prompts(decoder.config, prompts, max_new_tokens)
    rows = len(prompts)
    with decoding.on_mesh(decoder) as mesh:
        B, N = decoding.batch_bucket(rows, mesh), decoding.bucket(max_new_tokens)
        tokens_BxP1, lengths_B = decoding.align(prompts, rows=B)
        began = time.perf_counter()
        stop_B = decoding.stop_states(stops, prompts if stops_span else (), B)
        state = _begin(decoder, tokens_BxP1, lengths_B, stop_B, beams.beams, N)
        jax.block_until_ready(state.cache)
        ready = time.perf_counter()
        # In double precision, as Python computes it: one float32 for each length.
        lengths = np.maximum(np.arange(N + 2, dtype=np.float64), 1)
        penalties_N1 = (lengths**beams.length_penalty).astype(np.float32)
        real_B = np.arange(B) < rows
        rules = strategy.rules()
        to_the_end = beams.early_stopping == "never" and beams.length_penalty > 0
        ending = beams.early_stopping is True, to_the_end
        state = _loop(decoder, state, max_new_tokens, penalties_N1, real_B, rules, stops, ending)
        decoding.check_logits(state, range(rows) if numbers is None else numbers)
        best = (state.finished, state.finished_scores)
        tokens, scores = (decoding.fetch(x)[:rows, : beams.samples] for x in best)
    return Decoded(
        [[until_end(one, strategy.ends) for one in of_prompt] for of_prompt in tokens.tolist()],
        prefill_seconds=ready - began,
        decode_seconds=time.perf_counter() - ready,
        steps=int(state.step),
        shape=(B, state.prompt, N),
        scores=scores.tolist(),
    )


@functools.partial(jax.jit, static_argnums=(4, 5))
def _begin(decoder, tokens_BxP1, lengths_B, stop_B, W: int, N: int) -> State:
    B, P1 = tokens_BxP1.shape
    decoding.compiles["beam prefill", B, P1 - 1, N, W] += 1

    def full(shape, value, dtype=jnp.int32):
        return shard_batch(jnp.full(shape, value, dtype))

    # All beams are equal at first: only one of them counts.
    scores_BxW = jnp.where(jnp.arange(W) == 0, 0.0, NEVER) * jnp.ones((B, 1))
    return State(
        prompts=shard_batch(tokens_BxP1),
        hopeless=full(B, False, bool),
        over=jnp.bool_(False),
        running=full((B, W, N), -1),
        scores=shard_batch(scores_BxW),
        origins=full((B, W, N), 0),
        finished=full((B, W, N), -1),
        finished_scores=full((B, W), NEVER, jnp.float32),
        is_finished=full((B, W), False, bool),
        stop=None if stop_B is None else shard_batch(jnp.repeat(stop_B[:, None], W, axis=1)),
        **decoding.prefilled_fields(decoder, tokens_BxP1, lengths_B, slots=W * N),
    )


@functools.partial(jax.jit, static_argnums=7, donate_argnums=1)
def _loop(decoder, state: State, steps, penalties_N1, real_B, rules: Rules, stops_SxV, ending):
    B, W, N = state.running.shape
    decoding.compiles["beam loop", B, state.prompt, N, W, ending, rules.compiled] += 1

    def unfinished(state: State) -> jax.Array:
        return (state.step < steps) & ~state.over & (state.nan_step < 0).all()

    def advance(state: State) -> State:
        scores_BxWxV, state = _score(decoder, rules, state)
        return _select(ending, rules, stops_SxV, state, scores_BxWxV, steps, penalties_N1, real_B)

    return jax.lax.while_loop(unfinished, advance, state)


def _score(decoder: Decoder, rules: Rules, state: State) -> tuple[jax.Array, State]:
    """Feed each beam's newest token; return processed log-probabilities [B, W, V] of the next."""
    (B, W, N), step, P = state.running.shape, state.step, state.prompt
    beams_W = jnp.arange(W)
    last = jnp.maximum(step - 1, 0)
    newest_BxW = jax.lax.dynamic_index_in_dim(state.running, last, axis=2, keepdims=False)
    newest_BxW = jnp.where(step == 0, state.prompts[:, -1:], newest_BxW)
    origins_BxWxN = jnp.where(jnp.arange(N) == step, beams_W[:, None], state.origins)
    # Slot P + n * W + g holds what beam g was given at step n.
    past_N = jnp.arange(N) <= step
    own_BxWxNxW = (origins_BxWxN[..., None] == beams_W) & past_N[:, None]
    context_BxP = jnp.arange(P) >= P + 1 - state.lengths[:, None]
    context_BxWxP = jnp.broadcast_to(context_BxP[:, None], (B, W, P))
    visible_BxWxS = jnp.concatenate([context_BxWxP, own_BxWxNxW.reshape(B, W, N * W)], axis=-1)
    logits_BxWxV, changed = decoding.decode_step_checked(
        decoder, state, newest_BxW, visible_BxWxS, True
    )
    scores_BxWxV = jax.nn.log_softmax(logits_BxWxV, axis=-1)
    prompts_BxWxP1 = jnp.broadcast_to(state.prompts[:, None], (B, W, P + 1))
    history_RxT = jnp.concatenate([prompts_BxWxP1, state.running], axis=-1).reshape(B * W, -1)
    scores_RxV, lengths_R = scores_BxWxV.reshape(B * W, -1), jnp.repeat(state.lengths + step, W)
    scores_RxV = process_logits(rules, scores_RxV, history_RxT, P + 1 + step, lengths_R, step)
    state = dataclasses.replace(state, **changed, origins=origins_BxWxN)
    return scores_RxV.reshape(B, W, -1), state


def _select(ending, rules, stops_SxV, state, scores_BxWxV, steps, penalties_N1, real_B) -> State:
    """Keep the best candidates: the running and the finished ones apart.

    `ending` is whether to end when all beams are finished, and whether only when no better one is
    possible.
    """
    when_finished, to_the_end = ending
    B, W, V = scores_BxWxV.shape
    step = state.step
    M = max(2, 1 + len(rules.ends)) * W  # so that W of them run on, even if all others end
    totals_BxGV = (scores_BxWxV + state.scores[:, :, None]).reshape(B, W * V)
    totals_BxM, chosen_BxM = jax.lax.top_k(totals_BxGV, M)
    parents_BxM, ids_BxM = chosen_BxM // V, (chosen_BxM % V).astype(jnp.int32)
    at_step_N = jnp.arange(state.running.shape[2]) == step
    candidates_BxMxN = _take(state.running, parents_BxM)
    candidates_BxMxN = jnp.where(at_step_N, ids_BxM[..., None], candidates_BxMxN)
    ends_BxM = decoding.is_eos(ids_BxM, rules.ends) | (step + 1 >= steps)

    after_BxM = None
    if state.stop is not None:
        states_BxM = jnp.take_along_axis(state.stop, parents_BxM, axis=1)
        after_BxM = stops_SxV[states_BxM, ids_BxM]
        ends_BxM |= after_BxM & 1 == 1

    # A candidate that ends now does not run on.
    running_BxM = totals_BxM + ends_BxM * NEVER
    scores_BxW, kept_BxW = jax.lax.top_k(running_BxM, W)
    parents_BxW = jnp.take_along_axis(parents_BxM, kept_BxW, axis=1)

    # Only the best W candidates may join the finished ones, and only while they can exceed them.
    joins_BxM = ends_BxM & (jnp.arange(M) < W)
    full_Bx1 = state.is_finished.all(-1, keepdims=True) & when_finished
    joining_BxM = totals_BxM / penalties_N1[step + 1]
    joining_BxM += (full_Bx1 + state.hopeless[:, None] + ~joins_BxM) * NEVER
    merged_BxM = jnp.concatenate([state.finished_scores, joining_BxM], axis=1)
    finished_scores_BxW, best_BxW = jax.lax.top_k(merged_BxM, W)
    finished_BxMxN = jnp.concatenate([state.finished, candidates_BxMxN], axis=1)
    is_finished_BxM = jnp.concatenate([state.is_finished, joins_BxM], axis=1)
    is_finished_BxW = jnp.take_along_axis(is_finished_BxM, best_BxW, axis=1)

    # Can the best running beam still exceed the worst finished one?
    length = steps if to_the_end else step + 1
    possible_Bx1 = scores_BxW[:, :1] / penalties_N1[length]
    worst_Bx1 = finished_scores_BxW.min(-1, keepdims=True)
    worst_BxW = jnp.where(is_finished_BxW, worst_Bx1, NEVER)
    hopeless_B = state.hopeless | ~(possible_Bx1 > worst_BxW).any(-1)
    over = (hopeless_B | ~real_B).all() | (ends_BxM.all(-1) | ~real_B).all()
    if when_finished:
        over |= (is_finished_BxW.all(-1) | ~real_B).all()
    return dataclasses.replace(
        state,
        step=step + 1,
        hopeless=hopeless_B,
        over=over,
        running=_take(candidates_BxMxN, kept_BxW),
        scores=scores_BxW,
        origins=_take(state.origins, parents_BxW),
        finished=_take(finished_BxMxN, best_BxW),
        finished_scores=finished_scores_BxW,
        is_finished=is_finished_BxW,
        stop=None if after_BxM is None else jnp.take_along_axis(after_BxM >> 1, kept_BxW, axis=1),
    )


def _take(x_BxMxN: jax.Array, indices_BxW: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BxMxN, indices_BxW[..., None], axis=1)
