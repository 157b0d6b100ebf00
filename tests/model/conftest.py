"""Models made once for this folder, whose tests run without implicit rank promotion."""

import functools

import jax
import pytest

from biomedlm_jax.model.gpt2 import GPT2


@pytest.fixture(scope="module", autouse=True)
def no_rank_promotion():
    """Let jax raise where an operand of lower rank would be broadcast without a word."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session")
def make_gpt2():
    """GPT2 of a config, its parameters made from key 0 by one program, once for each config."""
    return functools.cache(lambda config: jax.jit(lambda: GPT2(config, key=jax.random.key(0)))())
