"""Beam search, equal to transformers' `generate(num_beams=...)` token for token.

The past of a beam is spread over the slots of all beams. transformers reorders its cache at every
step, when one beam continues another; here `origins_BxGxN` records in which beam's slot each token
of a beam's past is, and a beam sees those slots only. The prompt is cached once for all its beams.

Axes: B prompts, G beams, C = 2 G (or more, with several ends) candidates, N new tokens, P prompt
slots, S slots of the cache, V vocabulary, R = B * G.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from biomedlm_jax.generation import decoding
from biomedlm_jax.generation.decoder import Cache, Decoder, decode_step, make_cache, prefill
from biomedlm_jax.generation.decoding import Decoded, spread, until_end
from biomedlm_jax.generation.sampling import Strategy, process
from biomedlm_jax.settings import Settings, setting

NEVER = -1e9  # the score of what does not exist; finite, as in transformers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beams(Settings):
    """How many hypotheses are kept, and how they are compared."""

    beams: int = setting(least=1, help="hypotheses that are kept")
    samples: int = setting(1, least=1, help="finished hypotheses to return for each prompt")
    length_penalty: float = setting(
        1.0, help="beams: divide scores by length ** this; negative values favour short answers"
    )
    early_stopping: bool | str = setting(
        False,
        choices=(False, True, "never"),
        help="beams: stop with as many finished hypotheses as beams (true), when no better one is "
        "likely (false), or when none is possible (never)",
    )

    def __post_init__(self):
        super().__post_init__()
        if 1 < self.beams < self.samples:
            raise ValueError(
                f"got samples={self.samples} with beams={self.beams}; expected at most as many "
                "answers as beams"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a step changes; donated to the loop."""

    cache: Cache
    prompts: jax.Array  # [B, P + 1] ids, -1 before them
    lengths: jax.Array  # [B] tokens of the prompts
    step: jax.Array
    nan_step: jax.Array  # [B] the first step whose logits had a NaN, else -1
    hopeless: jax.Array  # [B] no running beam can exceed the finished ones
    over: jax.Array  # all prompts are done
    running: jax.Array  # [B, G, N] new ids
    scores: jax.Array  # [B, G] their summed log-probabilities
    origins: jax.Array  # [B, G, N] the beam in whose slots each id was cached
    finished: jax.Array  # [B, G, N]
    finished_scores: jax.Array  # [B, G] log-probability / length ** length_penalty
    is_finished: jax.Array  # [B, G]


def search(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    beams: Beams,
    max_new_tokens: int,
    strategy: Strategy | None = None,
    numbers: Sequence[int] | None = None,
) -> Decoded:
    """Return the best continuations of each prompt of token ids, best first, with their scores.

    `strategy` may penalise and ban; it applies to log-probabilities here, as in transformers, and
    cannot sample. `numbers` are the prompts' numbers in errors, 0, 1, .. by default. Raises
    ValueError as `decode` does.
    """
    config = decoder.config
    strategy = Strategy(ends=(config.eos_token_id,)) if strategy is None else strategy
    if strategy.temperature:
        raise ValueError(
            f"got temperature={strategy.temperature} with beams={beams.beams}; beam search does "
            "not sample: use temperature=0, or one beam"
        )
    decoding.check_prompts(config, prompts, max_new_tokens)
    with decoding.on_mesh(decoder) as mesh:
        B = decoding.batch_bucket(len(prompts), mesh)
        tokens_BxP1, lengths_B = decoding.align(prompts, rows=B)
        N = decoding.bucket(max_new_tokens)
        began = time.perf_counter()
        state = _begin(decoder, tokens_BxP1, lengths_B, beams.beams, N)
        jax.block_until_ready(state.cache)
        ready = time.perf_counter()
        # In double precision, as Python computes it: one float32 for each length.
        penalties_N1 = np.arange(max(N, max_new_tokens) + 2, dtype=np.float64)
        penalties_N1[0] = 1
        penalties_N1 = (penalties_N1**beams.length_penalty).astype(np.float32)
        real_B = np.arange(B) < len(prompts)
        state = _loop(decoder, state, max_new_tokens, penalties_N1, real_B, beams, strategy)
        nan_step_B = decoding.fetch(state.nan_step)[: len(prompts)]
        decoding.check_logits(nan_step_B, range(len(prompts)) if numbers is None else numbers)
        tokens = decoding.fetch(state.finished)[: len(prompts), : beams.samples]
        scores = decoding.fetch(state.finished_scores)[: len(prompts), : beams.samples]
    return Decoded(
        [[until_end(row.tolist(), strategy.ends) for row in rows] for rows in tokens],
        prefill_seconds=ready - began,
        decode_seconds=time.perf_counter() - ready,
        steps=int(state.step),
        shape=(B, tokens_BxP1.shape[1] - 1, N),
        scores=scores.tolist(),
    )


@functools.partial(jax.jit, static_argnums=(3, 4))
def _begin(decoder, tokens_BxP1, lengths_B, G: int, N: int) -> State:
    B, P = tokens_BxP1.shape[0], tokens_BxP1.shape[1] - 1
    decoding.compiles["beam prefill", B, P, N, G] += 1
    tokens_BxP1 = spread(tokens_BxP1)
    cache = make_cache(decoder.config, B, P + G * N)
    cache = prefill(decoder, cache, jnp.maximum(tokens_BxP1[:, :P], 0), lengths_B - 1)
    # All beams are equal at first: only one of them counts.
    scores_BxG = jnp.where(jnp.arange(G) == 0, 0.0, NEVER) * jnp.ones((B, 1))

    def full(shape, value, dtype=jnp.int32):
        return spread(jnp.full(shape, value, dtype))

    return State(
        cache=cache,
        prompts=tokens_BxP1,
        lengths=spread(lengths_B),
        step=jnp.int32(0),
        nan_step=full(B, -1),
        hopeless=full(B, False, bool),
        over=jnp.bool_(False),
        running=full((B, G, N), -1),
        scores=spread(scores_BxG),
        origins=full((B, G, N), 0),
        finished=full((B, G, N), -1),
        finished_scores=full((B, G), NEVER, jnp.float32),
        is_finished=full((B, G), False, bool),
    )


@functools.partial(jax.jit, static_argnums=(5, 6), donate_argnums=1)
def _loop(decoder, state: State, steps, penalties_N1, real_B, beams: Beams, strategy: Strategy):
    B, _, N = state.running.shape
    decoding.compiles["beam loop", B, state.prompts.shape[1] - 1, N, beams, strategy] += 1

    def unfinished(state: State) -> jax.Array:
        return (state.step < steps) & ~state.over & (state.nan_step < 0).all()

    def advance(state: State) -> State:
        scores_BxGxV, state = _score(decoder, strategy, state)
        return _select(beams, strategy, state, scores_BxGxV, steps, penalties_N1, real_B)

    return jax.lax.while_loop(unfinished, advance, state)


def _score(decoder: Decoder, strategy: Strategy, state: State) -> tuple[jax.Array, State]:
    """Feed each beam's newest token; return processed log-probabilities [B, G, V] of the next."""
    (B, G, N), step, P = state.running.shape, state.step, state.prompts.shape[1] - 1
    beams_G = jnp.arange(G)
    newest_BxG = jax.lax.dynamic_index_in_dim(
        state.running, jnp.maximum(step - 1, 0), axis=2, keepdims=False
    )
    newest_BxG = jnp.where(step == 0, state.prompts[:, -1:], newest_BxG)
    origins_BxGxN = jnp.where(jnp.arange(N) == step, beams_G[:, None], state.origins)
    # Slot P + n * G + g holds what beam g was given at step n.
    past_N = jnp.arange(N) <= step
    own_BxGxNxG = (origins_BxGxN[..., None] == beams_G) & past_N[:, None]
    context_BxP = jnp.arange(P) >= P + 1 - state.lengths[:, None]
    context_BxGxP = jnp.broadcast_to(context_BxP[:, None], (B, G, P))
    visible_BxGxS = jnp.concatenate([context_BxGxP, own_BxGxNxG.reshape(B, G, N * G)], axis=-1)
    positions_B = jnp.minimum(state.lengths - 1 + step, decoder.config.context_length - 1)
    logits_BxGxV, cache = decode_step(
        decoder,
        state.cache,
        newest_BxG,
        jnp.broadcast_to(positions_B[:, None], (B, G)),
        P + step * G,
        visible_BxGxS,
    )
    nan_B = jnp.isnan(logits_BxGxV.max(-1)).any(-1)
    scores_BxGxV = jax.nn.log_softmax(spread(logits_BxGxV), axis=-1)
    prompts_BxGxP1 = jnp.broadcast_to(state.prompts[:, None], (B, G, P + 1))
    history_BxGxT = jnp.concatenate([prompts_BxGxP1, state.running], axis=-1)
    scores_RxV = process(
        strategy,
        scores_BxGxV.reshape(B * G, -1),
        history_BxGxT.reshape(B * G, -1),
        P + 1 + step,
        jnp.repeat(state.lengths + step, G),
        step,
    )
    nan_step_B = jnp.where((state.nan_step < 0) & nan_B, step, state.nan_step)
    state = dataclasses.replace(state, cache=cache, origins=origins_BxGxN, nan_step=nan_step_B)
    return scores_RxV.reshape(B, G, -1), state


def _select(beams, strategy, state, scores_BxGxV, steps, penalties_N1, real_B) -> State:
    """Keep the best candidates: the running and the finished ones apart."""
    B, G, V = scores_BxGxV.shape
    step = state.step
    C = max(2, 1 + len(strategy.ends)) * G  # so that G of them run on, even if all others end
    totals_BxGV = (scores_BxGxV + state.scores[:, :, None]).reshape(B, G * V)
    totals_BxC, chosen_BxC = jax.lax.top_k(totals_BxGV, C)
    parents_BxC, ids_BxC = chosen_BxC // V, (chosen_BxC % V).astype(jnp.int32)
    at_step_N = jnp.arange(state.running.shape[2]) == step
    candidates_BxCxN = _take(state.running, parents_BxC)
    candidates_BxCxN = jnp.where(at_step_N, ids_BxC[..., None], candidates_BxCxN)
    ends_BxC = decoding.is_end(ids_BxC, strategy.ends) | (step + 1 >= steps)

    # A candidate that ends now does not run on.
    running_BxC = totals_BxC + ends_BxC * NEVER
    scores_BxG, kept_BxG = jax.lax.top_k(running_BxC, G)
    parents_BxG = jnp.take_along_axis(parents_BxC, kept_BxG, axis=1)

    # Only the best G candidates may join the finished ones, and only while they can exceed them.
    joins_BxC = ends_BxC & (jnp.arange(C) < G)
    full_Bx1 = state.is_finished.all(-1, keepdims=True) & (beams.early_stopping is True)
    joining_BxC = totals_BxC / penalties_N1[step + 1]
    joining_BxC += (full_Bx1 + state.hopeless[:, None] + ~joins_BxC) * NEVER
    merged_BxM = jnp.concatenate([state.finished_scores, joining_BxC], axis=1)
    finished_scores_BxG, best_BxG = jax.lax.top_k(merged_BxM, G)
    finished_BxMxN = jnp.concatenate([state.finished, candidates_BxCxN], axis=1)
    is_finished_BxM = jnp.concatenate([state.is_finished, joins_BxC], axis=1)
    is_finished_BxG = jnp.take_along_axis(is_finished_BxM, best_BxG, axis=1)

    # Can the best running beam still exceed the worst finished one?
    length = step + 1
    if beams.early_stopping == "never" and beams.length_penalty > 0:
        length = steps
    possible_Bx1 = scores_BxG[:, :1] / penalties_N1[length]
    worst_Bx1 = finished_scores_BxG.min(-1, keepdims=True)
    worst_BxG = jnp.where(is_finished_BxG, worst_Bx1, NEVER)
    hopeless_B = state.hopeless | ~(possible_Bx1 > worst_BxG).any(-1)
    over = (hopeless_B | ~real_B).all() | (ends_BxC.all(-1) | ~real_B).all()
    if beams.early_stopping is True:
        over |= (is_finished_BxG.all(-1) | ~real_B).all()
    return dataclasses.replace(
        state,
        step=step + 1,
        hopeless=hopeless_B,
        over=over,
        running=_take(candidates_BxCxN, kept_BxG),
        scores=scores_BxG,
        origins=_take(state.origins, parents_BxG),
        finished=_take(finished_BxMxN, best_BxG),
        finished_scores=finished_scores_BxG,
        is_finished=is_finished_BxG,
    )


def _take(x_BxMxN: jax.Array, indices_BxG: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BxMxN, indices_BxG[..., None], axis=1)
