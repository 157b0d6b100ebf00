"""A small tokenizer and token rows for the tests of this directory."""

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from biomedlm_jax.corpus.documents import Document
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens

LENGTH = 16


def make_documents(count: int = 150, seed: int = 0) -> list[Document]:
    """Texts of very different lengths, a few of them long, one of them twice."""
    rng = random.Random(seed)
    syllables = ["ka", "thrombin", "é", " dose", "-12 ", "\n\n", "mg", " of", " the", "漢"]
    lengths = rng.choices((1, 9, 40, 400), k=count)
    texts = ["a" + "".join(rng.choices(syllables, k=length)) for length in lengths]
    return [Document(text, f"texts:{i}") for i, text in enumerate([*texts, texts[0]])]


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    return make_documents()


@pytest.fixture(scope="session")
def other_documents() -> list[Document]:
    return make_documents(seed=1)


@pytest.fixture(scope="session")
def small_tokenizer(documents) -> Tokenizer:
    """300 entries, trained on `documents`."""
    return train_tokenizer((document.text for document in documents), vocab_size=300)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


@pytest.fixture
def build(documents, small_tokenizer, out):
    """Build token rows of 16 ids, by default of `documents` in `out`."""

    def build(path=out, texts=documents, tokenizer=small_tokenizer, **options):
        options = {"length": LENGTH, "validation_fraction": 0.2, **options}
        return build_tokens(texts, tokenizer, path, **options)

    return build
