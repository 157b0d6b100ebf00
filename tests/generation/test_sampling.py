"""Each processor beside transformers' own, and draws that follow their seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import generation as peers

from biomedlm_jax.generation.decoding import decode
from biomedlm_jax.generation.sampling import Strategy, process_logits, row_keys, warp_logits

V, ENDS = 40, (39, 17)


@pytest.fixture(scope="module")
def case():
    """Scores [6, V], histories of 20 ids (few, so that they repeat), and their mirror for torch."""
    random = np.random.default_rng(0)
    scores = random.normal(0, 3, (6, V)).astype(np.float32)
    history = random.integers(0, 5, (6, 20)).astype(np.int32)
    return scores, history


def ours(case, **fields):
    scores, history = case
    padded = np.concatenate([np.full((6, 4), -1), history, np.full((6, 8), -1)], 1).astype("i4")
    strategy = Strategy(**{"ends": ENDS, **fields})
    lengths = np.full(6, 20, np.int32)
    rules, history = strategy.rules(), jnp.asarray(padded)
    result = process_logits(rules, jnp.asarray(scores), history, 24, lengths, jnp.int32(7))
    return np.asarray(result)


def theirs(case, *processors):
    scores, history = torch.from_numpy(case[0]), torch.from_numpy(case[1]).long()
    for processor in processors:
        scores = processor(history, scores)
    return scores.numpy()


@pytest.mark.parametrize(
    ("fields", "processor"),
    [
        ({"repetition_penalty": 1.3}, lambda: peers.RepetitionPenaltyLogitsProcessor(1.3)),
        ({"repetition_penalty": 0.6}, lambda: peers.RepetitionPenaltyLogitsProcessor(0.6)),
        *(
            ({"no_repeat_ngram_size": n}, lambda n=n: peers.NoRepeatNGramLogitsProcessor(n))
            for n in (1, 2, 3, 4, 25)
        ),
        (
            {"bad_words": ((3,), (1, 2), (4, 4, 9), (0, 1, 2, 3, 0, 6))},
            lambda: peers.NoBadWordsLogitsProcessor([[3], [1, 2], [4, 4, 9], [0, 1, 2, 3, 0, 6]]),
        ),
        ({"min_length": 21}, lambda: peers.MinLengthLogitsProcessor(21, torch.tensor(ENDS))),
        ({"min_length": 20}, lambda: peers.MinLengthLogitsProcessor(20, torch.tensor(ENDS))),
        (
            {"min_new_tokens": 8},
            lambda: peers.MinNewTokensLengthLogitsProcessor(13, 8, torch.tensor(ENDS)),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "theirs",
)
def test_a_processor_is_that_of_transformers(case, fields, processor):
    np.testing.assert_allclose(ours(case, **fields), theirs(case, processor()), rtol=1e-6)


def test_processors_change_something(case):
    plain = ours(case)
    np.testing.assert_array_equal(plain, case[0])
    for fields in ({"no_repeat_ngram_size": 2}, {"bad_words": ((3,),)}, {"min_length": 21}):
        assert (ours(case, **fields) != plain).any(), fields


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "top_k": 100},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_k": 200},
        {"temperature": 2.0, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 0.01},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_warpers_are_those_of_transformers(case, fields):
    chain = [peers.TemperatureLogitsWarper(fields["temperature"])]
    if "top_k" in fields:
        chain.append(peers.TopKLogitsWarper(fields["top_k"]))
    if "top_p" in fields:
        chain.append(peers.TopPLogitsWarper(fields["top_p"]))
    if "min_p" in fields:
        chain.append(peers.MinPLogitsWarper(fields["min_p"]))
    result = np.asarray(warp_logits(Strategy(**fields).rules(), jnp.asarray(case[0])))
    np.testing.assert_allclose(result, theirs(case, *chain), rtol=1e-5)


def test_a_bad_word_that_is_an_end_token_has_no_effect_as_in_transformers(case):
    words = [[3], [39], [5, 39], [17]]
    result = ours(case, bad_words=tuple(map(tuple, words)))
    expected = theirs(case, peers.NoBadWordsLogitsProcessor(words, torch.tensor(ENDS)))
    np.testing.assert_array_equal(result, expected)
    assert np.isfinite(result[:, 17]).all()


@pytest.mark.parametrize("top_k", [1, 5, 130, 200, 300])
def test_a_top_k_of_any_size_keeps_the_tokens_of_transformers(top_k):
    scores = np.random.default_rng(1).normal(0, 3, (4, 250)).astype(np.float32)
    strategy = Strategy(temperature=1.0, top_k=top_k)
    expected = peers.TopKLogitsWarper(top_k)(None, torch.from_numpy(scores)).numpy()
    np.testing.assert_array_equal(warp_logits(strategy.rules(), jnp.asarray(scores)), expected)


def test_samples_have_the_models_probabilities():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    keys = row_keys(3, np.arange(20_000), 1)
    drawn = np.asarray(jax.vmap(lambda key: jax.random.categorical(key, logits))(keys))
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, [0.5, 0.3, 0.2], atol=0.012)


def test_a_temperature_below_float32_takes_the_likeliest_token(pairs):
    _, decoder, _ = pairs["scaled"]
    rows = [
        decode(decoder, [[5, 6, 7]], max_new_tokens=10, strategy=Strategy(temperature=t)).rows
        for t in (0.0, 1e-30, 1e-40, 5e-324)
    ]
    assert rows[1:] == rows[:1] * 3


def test_samples_follow_seed_prompt_and_sample(pairs):
    _, decoder, _ = pairs["scaled"]
    strategy = Strategy(temperature=2.0)

    def draw(seed, numbers):
        prompts = [[5, 6, 7]] * len(numbers)
        options = {"max_new_tokens": 10, "strategy": strategy, "samples": 2}
        return decode(decoder, prompts, seed=seed, numbers=numbers, **options).rows

    one = draw(1, [0, 1])
    assert one == draw(1, [0, 1])
    assert len({tuple(row) for row in (*one, *draw(2, [0, 1]))}) == 8
    assert draw(1, [1, 0]) == [*one[2:], *one[:2]]
