"""Greedy decoding beside transformers: padding, stops, buckets and compiles."""

import dataclasses

import jax.numpy as jnp
import pytest
from cases import mostly_slow

from biomedlm_jax.generation import decoding
from biomedlm_jax.generation.decoder import (
    make_decoder,
)
from biomedlm_jax.generation.decoding import decode
from biomedlm_jax.generation.sampling import Strategy
from biomedlm_jax.model.gpt2 import GPT2

GRID = [
    {},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"min_new_tokens": 12},
    {"bad_words": ((4,), (8, 15), (16, 23, 42))},
    {"ends": (60, 3, 30)},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 4, "min_new_tokens": 5},
]


@pytest.mark.parametrize(
    ("name", "options"),
    [("scaled", GRID[i]) for i in (2, 5, 6)]
    + [("rotary", GRID[-1]), ("window", GRID[-1]), ("late window", GRID[0])]
    + [
        pytest.param(name, GRID[i], marks=pytest.mark.slow)
        for name, numbers in (("scaled", (0, 1, 3, 4, 7)), ("plain", (0, 1)))
        for i in numbers
    ]
    + [pytest.param(name, GRID[0], marks=pytest.mark.slow) for name in ("rotary", "window")],
    ids=str,
)
def test_greedy_tokens_are_those_of_transformers(pairs, prompts_of, name, options):
    model, decoder, peer = pairs[name]
    prompts, options = prompts_of(9, 23, 14, 12, 5), dict(options)
    ends = options.pop("ends", (model.config.eos_token_id,))
    ours = decode(decoder, prompts, max_new_tokens=27, strategy=Strategy(ends=ends, **options))
    if "bad_words" in options:
        options["bad_words_ids"] = [list(word) for word in options.pop("bad_words")]
    tokens, _ = peer.generate(prompts, max_new_tokens=27, eos_token_id=list(ends), **options)
    assert ours.rows == tokens


@pytest.mark.parametrize(
    "options",
    [{"min_length": 30}, pytest.param({"no_repeat_ngram_size": 1}, marks=pytest.mark.slow)],
    ids=str,
)
def test_padding_never_counts_as_text(pairs, prompts_of, options):
    # For transformers it does in these two, so a row of its is right only when it is alone.
    _, decoder, peer = pairs["scaled"]
    prompts, ends = prompts_of(9, 23, 14), [60, 3, 30]
    strategy = Strategy(ends=tuple(ends), **options)
    ours = decode(decoder, prompts, max_new_tokens=27, strategy=strategy).rows
    options = {"max_new_tokens": 27, "eos_token_id": ends, **options}
    assert ours == [peer.generate([prompt], **options)[0][0] for prompt in prompts]


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("scaled", marks=pytest.mark.slow), "window"])
def test_an_answer_does_not_depend_on_its_batch(pairs, prompts_of, name):
    _, decoder, _ = pairs[name]
    prompts = prompts_of(9, 40, 3)
    for strategy in (Strategy(ends=(60,)), Strategy(temperature=1.5, top_p=0.95, ends=(60,))):
        options = {"max_new_tokens": 20, "strategy": strategy, "seed": 4}
        together = decode(decoder, prompts, samples=2, **options).rows
        alone = [
            decode(decoder, [p], samples=2, numbers=[i], **options).rows
            for i, p in enumerate(prompts)
        ]
        assert together == [row for rows in alone for row in rows]


def test_one_prefill_and_one_loop_for_a_bucket(pairs, prompts_of):
    _, decoder, _ = pairs["plain"]
    decoding.compiles.clear()
    decoding._begin.clear_cache()
    decoding._loop.clear_cache()
    for lengths in ((9,), (17,), (3,), (10,)):
        decode(decoder, prompts_of(*lengths), max_new_tokens=len(lengths) + 20)
    for new in (17, 20, 32):
        decode(decoder, prompts_of(12), max_new_tokens=new)
    counted = {key[:4]: count for key, count in decoding.compiles.items()}
    assert counted == {("prefill", 1, 16, 32): 1, ("loop", 1, 16, 32): 1}
    decode(decoder, prompts_of(40, 4, 4), max_new_tokens=33)
    counted = {key[:4]: count for key, count in decoding.compiles.items()}
    assert counted[("prefill", 4, 64, 64)] == counted[("loop", 4, 64, 64)] == 1
    assert sum(counted.values()) == 4


def test_new_values_do_not_compile_the_loop_again(pairs, prompts_of):
    _, decoder, _ = pairs["plain"]
    decoding.compiles.clear()
    decoding._loop.clear_cache()
    one = {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1}
    two = {"temperature": 0.3, "top_k": 50, "top_p": 0.5, "min_p": 0.2, "repetition_penalty": 2.0}
    one["min_new_tokens"], two["min_length"] = 3, 12
    for strategy in (one, two):
        decode(decoder, prompts_of(9), max_new_tokens=8, strategy=Strategy(ends=(60,), **strategy))
    assert sum(n for key, n in decoding.compiles.items() if key[0] == "loop") == 1
    assert decoding._loop._cache_size() == 1


def test_rows_stop_at_their_own_end_and_the_loop_with_the_last(pairs, prompts_of):
    _, decoder, _ = pairs["scaled"]
    prompts = prompts_of(9, 23, 14, 12, 5)
    free = decode(decoder, prompts, max_new_tokens=30, strategy=Strategy()).rows
    ends = (free[0][2], free[1][4])
    result = decode(decoder, prompts, max_new_tokens=30, strategy=Strategy(ends=ends))
    for row, whole in zip(result.rows, free, strict=True):
        first = next((i for i, t in enumerate(whole) if t in ends), len(whole) - 1)
        assert row == whole[: first + 1]
    assert result.steps == max(map(len, result.rows))


def test_watching_changes_nothing_and_may_stop_rows(pairs, prompts_of):
    _, decoder, _ = pairs["scaled"]
    prompts, seen = prompts_of(9, 23, 14), []

    def watch(rows):
        seen.append([len(row) for row in rows])
        return [False, len(rows[1]) >= 8, False]

    options = {"max_new_tokens": 20, "strategy": Strategy()}
    whole = decode(decoder, prompts, **options).rows
    result = decode(decoder, prompts, **options, every=4, watch=watch).rows
    assert [result[0], result[1], result[2]] == [whole[0], whole[1][:8], whole[2]]
    assert seen == [[4, 4, 4], [8, 8, 8], [12, 8, 12], [16, 8, 16], [20, 8, 20]]


def test_nan_logits_stop_with_step_and_row(random_model):
    model = random_model()
    free = decode(make_decoder(model), [[1, 2], [3, 4, 5]], max_new_tokens=9, strategy=Strategy())
    poison = next(t for t in free.rows[1][2:] if t not in (1, 2, 3, 4, 5, *free.rows[0]))
    step = free.rows[1].index(poison) + 1
    model.wte[...] = model.wte[...].at[poison].set(jnp.nan)
    decoder = make_decoder(model)
    *leaves, _ = decoder.leaves
    leaves.append(make_decoder(random_model()).leaves[-1])
    broken = dataclasses.replace(decoder, leaves=leaves)
    with pytest.raises(ValueError, match=rf"NaN at step {step} of prompt 7;"):
        decode(broken, [[1, 2], [3, 4, 5]], max_new_tokens=9, numbers=[3, 7], strategy=Strategy())


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        ([], 5, "0 prompts"),
        ([[1]], 0, "max_new_tokens=0"),
        ([[1], []], 5, "prompt 1 has no tokens"),
        ([[1, 61]], 5, "ids from 1 to 61; expected 0 to 60"),
        ([[1] * 90], 7, "the model has 96 positions"),
    ],
)
def test_invalid_prompts_are_refused(pairs, prompts, new, message):
    with pytest.raises(ValueError, match=message):
        decode(pairs["scaled"][1], prompts, max_new_tokens=new)


@pytest.mark.parametrize("name", mostly_slow(["scaled", "window"], ["window"]))
def test_a_prompt_may_fill_the_positions(pairs, prompts_of, name):
    _, decoder, peer = pairs[name]
    prompts = prompts_of(90)
    ours = decode(decoder, prompts, max_new_tokens=6).rows
    assert ours == peer.generate(prompts, max_new_tokens=6)[0]


@pytest.mark.slow
def test_a_trained_model_decodes_as_in_transformers(trained, prompts_of):
    model, decoder, peer = trained
    prompts = [
        p[:n] for p, n in zip(prompts_of(20, 20, 20, vocab_size=30), (4, 9, 20), strict=True)
    ]
    ours = decode(decoder, prompts, max_new_tokens=40).rows
    assert ours == peer.generate(prompts, max_new_tokens=40)[0]
    assert isinstance(model, GPT2)
