"""Beam search beside transformers' `generate`: every token and every score."""

import dataclasses

import jax
import numpy as np
import pytest
from cases import mostly_slow

from biomedlm_jax import mesh as meshes
from biomedlm_jax.generation import beam, decoding
from biomedlm_jax.generation.beam import Beams, search
from biomedlm_jax.generation.decoder import make_decoder
from biomedlm_jax.generation.sampling import Strategy
from biomedlm_jax.model.families import abstract_model

GRID = [
    {"beams": 5},
    {"beams": 2, "length_penalty": -0.5},
    {"beams": 5, "length_penalty": -0.5, "no_repeat_ngram_size": 6},
    {"beams": 3, "length_penalty": 2.0, "early_stopping": True},
    {"beams": 4, "length_penalty": 0.0, "early_stopping": "never"},
    {"beams": 4, "length_penalty": 1.5, "early_stopping": "never", "no_repeat_ngram_size": 2},
    {"beams": 5, "early_stopping": True, "no_repeat_ngram_size": 3},
    {"beams": 3, "repetition_penalty": 1.7, "bad_words": ((7,), (3, 9), (11, 12, 13))},
    {"beams": 3, "min_new_tokens": 9, "length_penalty": -1.0},
    {"beams": 3, "ends": (60, 5, 17)},
    {"beams": 1, "length_penalty": 0.7},
]


def both(pair, prompts, *, new: int, returned: int = 1, **options):
    model, decoder, peer = pair
    ends = options.pop("ends", (model.config.eos_token_id,))
    shape = {k: options[k] for k in ("beams", "length_penalty", "early_stopping") if k in options}
    strategy = {k: v for k, v in options.items() if k not in shape}
    ours = search(
        decoder,
        prompts,
        beams=Beams(**shape, samples=returned),
        max_new_tokens=new,
        strategy=Strategy(ends=ends, **strategy),
    )
    theirs = {k: v for k, v in options.items() if k not in ("beams", "bad_words")}
    if "bad_words" in options:
        theirs["bad_words_ids"] = [list(word) for word in options["bad_words"]]
    tokens, scores = peer.generate(
        prompts,
        num_beams=options["beams"],
        num_return_sequences=returned,
        max_new_tokens=new,
        eos_token_id=list(ends),
        **theirs,
    )
    return ours, tokens, scores


@pytest.mark.parametrize(
    ("name", "options"),
    [("scaled", GRID[i]) for i in (5, 9)]
    + [("rotary", GRID[2]), ("window", GRID[3]), ("late window", GRID[0])]
    + [
        pytest.param(name, GRID[i], marks=pytest.mark.slow)
        for name, numbers in (
            ("scaled", (0, 1, 2, 3, 4, 6, 7, 8, 10)),
            ("plain", (2, 3)),
            ("window", (0, 7)),
        )
        for i in numbers
    ],
    ids=str,
)
def test_tokens_and_scores_are_those_of_transformers(pairs, prompts_of, name, options):
    prompts = prompts_of(9, 23, 14, 12)
    if options["beams"] == 1:  # not a beam search there
        options = {k: v for k, v in options.items() if k != "length_penalty"}
    ours, tokens, scores = both(pairs[name], prompts, new=21, **options)
    assert [row[0] for row in ours.tokens] == tokens
    if scores is not None:
        np.testing.assert_allclose([row[0] for row in ours.scores], scores, rtol=2e-5, atol=2e-5)


def test_new_penalties_do_not_compile_the_loop_again(pairs, prompts_of):
    decoding.compiles.clear()
    beam._loop.clear_cache()
    for penalty, repeated in ((0.5, 1.1), (2.0, 1.7)):
        strategy = Strategy(ends=(60,), repetition_penalty=repeated)
        beams = Beams(beams=3, length_penalty=penalty)
        options = {"beams": beams, "strategy": strategy, "max_new_tokens": 8}
        search(pairs["plain"][1], prompts_of(9), **options)
    assert sum(n for key, n in decoding.compiles.items() if key[0] == "beam loop") == 1


def test_all_hypotheses_are_returned_with_their_scores(pairs, prompts_of):
    options = {"beams": 4, "length_penalty": -0.5, "no_repeat_ngram_size": 4}
    ours, tokens, scores = both(pairs["scaled"], prompts_of(8, 30), new=17, returned=4, **options)
    assert [hypothesis for row in ours.tokens for hypothesis in row] == tokens
    np.testing.assert_allclose(np.ravel(ours.scores), scores, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", mostly_slow(["scaled", "window"], ["window"]))
def test_a_search_does_not_depend_on_its_batch(pairs, prompts_of, name):
    _, decoder, _ = pairs[name]
    prompts = prompts_of(9, 23, 14)
    options = {"beams": Beams(beams=4, length_penalty=-0.5), "max_new_tokens": 19}
    together = search(decoder, prompts, **options).tokens
    assert together == [search(decoder, [p], **options).tokens[0] for p in prompts]


def test_nan_logits_name_the_prompt(random_model):
    model = random_model()
    model.wte[...] = model.wte[...].at[5].set(np.nan)
    decoder = make_decoder(model)
    # The embedding of 5 is NaN, the head is not.
    *leaves, _ = decoder.leaves
    leaves.append(make_decoder(random_model()).leaves[-1])
    broken = dataclasses.replace(decoder, leaves=leaves)
    options = {"beams": Beams(beams=2), "max_new_tokens": 4}
    for numbers, number in ((None, 1), ([3, 7], 7)):
        with pytest.raises(ValueError, match=f"NaN at step 0 of prompt {number};"):
            search(broken, [[1, 2], [3, 4, 5]], numbers=numbers, **options)


def test_invalid_beams_are_refused():
    with pytest.raises(ValueError, match="samples=3"):
        Beams(beams=2, samples=3)
    with pytest.raises(ValueError, match="early_stopping='soon'"):
        Beams(beams=2, early_stopping="soon")


def test_beam_search_does_not_sample(pairs):
    with pytest.raises(ValueError, match="beam search does not sample"):
        search(
            pairs["scaled"][1],
            [[1]],
            beams=Beams(beams=2),
            max_new_tokens=2,
            strategy=Strategy(temperature=0.5),
        )


@pytest.mark.slow
def test_a_trained_model_searches_as_in_transformers(trained):
    prompts = [[3, 4, 5, 6], [20, 22, 24], [7, 10, 13, 16, 19]]
    options = {"beams": 5, "length_penalty": -0.5, "no_repeat_ngram_size": 6, "min_length": 5}
    ours, tokens, scores = both(trained, prompts[2:], new=40, returned=5, **options)
    assert ours.tokens[0] == tokens
    np.testing.assert_allclose(ours.scores[0], scores, rtol=2e-5, atol=2e-5)
    del options["min_length"]
    ours, tokens, scores = both(trained, prompts, new=40, **options)
    assert [row[0] for row in ours.tokens] == tokens
    np.testing.assert_allclose(np.ravel(ours.scores), scores, rtol=2e-5, atol=2e-5)


def test_sharded_is_unsharded_and_compiles_once(random_model, prompts_of):
    mesh = meshes.make_mesh(data=2, fsdp=1, tensor=2, devices=jax.devices()[:4])
    model = random_model()
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract_model(model.config, mesh))
    sharded = make_decoder(jax.device_put(model, layout))
    options = {"beams": Beams(beams=3), "max_new_tokens": 12}
    prompts = prompts_of(9, 23, 14)
    expected = search(make_decoder(model), prompts, **options)
    decoding.compiles.clear()
    result = [search(sharded, prompts[:n], **options).tokens for n in (3, 3)]
    assert result == [expected.tokens] * 2
    assert list(decoding.compiles.values()) == [1, 1]
