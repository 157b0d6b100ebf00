import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax.model.families import make_model
from biomedlm_jax.model.gpt2 import GPT2Config
from biomedlm_jax.model.llama import LlamaConfig, MistralConfig
from biomedlm_jax.qa.packing import (
    LAST,
    TOKENS,
    Prompt,
    batches,
    make_buckets,
    one_prompt_per_option,
)
from biomedlm_jax.qa.states import scored_states, token_log_probabilities

SHAPE = {"vocab_size": 300, "context_length": 64, "layers": 3, "width": 64, "heads": 4}
CONFIG = GPT2Config(**SHAPE, initializer_range=0.2)
GROUPED = {**SHAPE, "key_value_heads": 2, "mlp_width": 96, "initializer_range": 0.2}
# Rotary positions, and a window that ends within most prefixes and branches.
CONFIGS = [
    CONFIG,
    LlamaConfig(**GROUPED, rope_theta=500.0, tie_word_embeddings=True),
    MistralConfig(**GROUPED, sliding_window=6),
]


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda config: config.model_type)
def model(request):
    return make_model(request.param, key=jax.random.key(0))


def some_prompts(count=9, seed=0, branches=None):
    rng = np.random.default_rng(seed)

    def text(low, high):
        return rng.integers(0, 299, rng.integers(low, high)).tolist()

    def number(q):
        return branches or 2 + q % 4

    return [Prompt(text(3, 40), [text(1, 9) for _ in range(number(q))], q) for q in range(count)]


def alone(model, prompt, option):
    """Log-probabilities of one row that holds the prefix and one branch and nothing else."""
    ids = [*prompt.prefix, *prompt.branches[option]]
    padded = ids + [0] * (64 - len(ids))  # what follows is not seen: one shape compiles
    return np.asarray(log_softmax(model, jnp.array([padded]))[0]), ids


@jax.jit
def log_softmax(model, tokens):
    return jax.nn.log_softmax(model(tokens), -1)


@pytest.mark.parametrize(("lengths", "branches"), [(None, None), ([512], None), ([192], 1)])
def test_probabilities_are_those_of_one_row_per_option(model, lengths, branches):
    prompts = some_prompts(branches=branches)
    seen = {}
    for bucket in make_buckets(prompts, read=TOKENS, lengths=lengths):
        for rows in batches(prompts, bucket, batch_size=2, read=TOKENS):
            logp, argmax = (np.asarray(a) for a in token_log_probabilities(model, rows))
            for b, e in np.argwhere(rows.question_BxE >= 0):
                key = (rows.question_BxE[b, e], rows.option_BxE[b, e])
                seen.setdefault(key, []).append((logp[b, e], argmax[b, e]))
    assert len(seen) == sum(len(p.branches) for p in prompts)
    for (q, option), got in seen.items():
        reference, ids = alone(model, prompts[q], option)
        begin = len(prompts[q].prefix)
        at = np.arange(begin, len(ids))
        expected = reference[at - 1, np.array(ids)[at]]
        np.testing.assert_allclose([p for p, _ in got], expected, atol=1e-5)
        assert [bool(g) for _, g in got] == (reference[at - 1].argmax(-1) == ids[begin:]).tolist()


def last_states(model, prompts, **options):
    states = {}
    for bucket in make_buckets(prompts, read=LAST, **options):
        for rows in batches(prompts, bucket, batch_size=3, read=LAST):
            x = jax.jit(scored_states)(model, rows)
            for b, e in np.argwhere(rows.question_BxE >= 0):
                key = (int(rows.question_BxE[b, e]), int(rows.option_BxE[b, e]))
                states[key] = x[b, rows.slot_BxE[b, e]]
    return states


def test_last_states_do_not_depend_on_company_or_sharing(model):
    prompts = some_prompts()
    together = last_states(model, prompts, lengths=[512])
    apart = last_states(model, one_prompt_per_option(prompts))
    assert together.keys() == apart.keys()
    for key, state in together.items():
        np.testing.assert_allclose(state, apart[key], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(CONFIGS[0], id="gpt2"),
        pytest.param(CONFIGS[2], id="mistral", marks=pytest.mark.slow),
    ],
    indirect=True,
)
def test_gradients_are_those_of_one_row_per_option(model):
    prompts = some_prompts(3)

    def loss(model, prompts):
        total = 0.0
        for (question, option), state in last_states(model, prompts, lengths=[256]).items():
            direction = jax.random.normal(jax.random.key(10 * question + option), state.shape)
            total += direction @ state
        return total

    together = jax.jit(jax.grad(lambda m: loss(m, prompts)))(model)
    apart = jax.jit(jax.grad(lambda m: loss(m, one_prompt_per_option(prompts))))(model)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(apart))
    leaves = jax.tree_util.tree_leaves_with_path(together)
    for (path, ours), theirs in zip(leaves, jax.tree.leaves(apart), strict=True):
        scale = float(jnp.abs(theirs).max())
        if "key.bias" in jax.tree_util.keystr(path).replace("['", ".").replace("']", ""):
            scale = largest  # attention does not depend on it: zero but for rounding
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-5)


def test_an_empty_branch_is_read_at_the_end_of_the_prefix(model):
    whole = last_states(model, [Prompt([5, 6, 7], [[]], 0)])
    np.testing.assert_allclose(whole[0, 0], model.hidden(jnp.array([[5, 6, 7]]))[0, -1], atol=1e-5)


def test_log_probabilities_are_float32():
    half = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    prompts = some_prompts(2)
    (bucket,) = make_buckets(prompts, read=TOKENS, lengths=[256])
    (rows,) = batches(prompts, bucket, batch_size=1, read=TOKENS)
    logp, _ = token_log_probabilities(make_model(half, key=jax.random.key(0)), rows)
    assert logp.dtype == jnp.float32
