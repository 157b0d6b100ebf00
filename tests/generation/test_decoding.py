import jax
import numpy as np
import pytest

from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.generation.decoding import generate
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT

TEXTS = ["the kinase binds the receptor", "a trial of the drug", "renal tissue was examined"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter(TEXTS * 9), vocab_size=280)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = GPTConfig(
        vocab_size=280, context_length=32, layers=2, width=32, heads=2, initializer_range=0.4
    )
    return GPT(config, key=jax.random.key(0))


def test_greedy_tokens_are_the_argmax_of_the_full_forward_pass(model, tokenizer):
    ids = tokenizer.encode(TEXTS[0]).ids
    prompt = len(ids)
    forward = jax.jit(GPT.__call__)
    while len(ids) < prompt + 8:
        padded = np.zeros((1, 32), np.int32)  # later positions cannot be seen
        padded[0, : len(ids)] = ids
        ids.append(int(np.asarray(forward(model, padded))[0, len(ids) - 1].argmax()))
    new = ids[prompt:]
    expected = new[: new.index(279)] if 279 in new else new
    said = generate(model, tokenizer, [TEXTS[0]], max_new_tokens=8)
    assert said == [tokenizer.decode(expected)]


def test_an_answer_does_not_depend_on_its_company(model, tokenizer):
    together = generate(model, tokenizer, TEXTS, max_new_tokens=6)
    assert together == [generate(model, tokenizer, [t], max_new_tokens=6)[0] for t in TEXTS]


def test_sampling_follows_the_seed(model, tokenizer):
    options = {"max_new_tokens": 12, "temperature": 2.0}
    one = generate(model, tokenizer, [""], seed=1, **options)
    assert one == generate(model, tokenizer, [""], seed=1, **options)
    assert one != generate(model, tokenizer, [""], seed=2, **options)


def test_a_prompt_that_does_not_fit(model, tokenizer):
    with pytest.raises(ValueError, match="the model has 32 positions"):
        generate(model, tokenizer, TEXTS, max_new_tokens=32)
