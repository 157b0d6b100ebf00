"""A small dataset and the tiny run's config, for the tests of this folder."""

import random
import runpy
from pathlib import Path

import pytest

from biomedlm_jax.corpus.documents import Document
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens

ROOT = Path(__file__).parents[2]
WORDS = ["cell", "gene", "protein", "patient", "trial", "dose", "liver", "kidney", "tumour"]


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=40)) + f" {rng.random()}." for _ in range(count)]


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(iter(sentences(200)), vocab_size=300)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, tokenizer) -> Path:
    """Rows of 32 tokens, vocabulary 300, with a validation split."""
    path = tmp_path_factory.mktemp("data") / "tokens"
    documents = (Document(text, f"{i}") for i, text in enumerate(sentences(200)))
    build_tokens(documents, tokenizer, path, length=32, validation_fraction=0.1)
    return path


@pytest.fixture
def config(dataset):
    """The tiny run on the small dataset."""
    return tiny_config(dataset)


def tiny_config(dataset):
    config = runpy.run_path(str(ROOT / "configs" / "pretrain.py"))["get_config"]("tiny")
    config.data.path = str(dataset)
    config.model.residual_dropout = 0.1
    config.training.steps = 12
    config.training.evaluate_every = 6
    config.checkpoint.every = 4
    config.logging.every = 1
    config.logging.trackers = ()
    return config


@pytest.fixture(scope="session")
def finished(tmp_path_factory, dataset) -> Path:
    """A finished tiny run, with dropout; tests copy it."""
    from biomedlm_jax import pretrain

    config = tiny_config(dataset)
    run = tmp_path_factory.mktemp("finished") / "run"
    pretrain(config, run)
    return run
