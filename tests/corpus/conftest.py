"""A small tokenizer and token rows for the tests of this directory."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from biomedlm_jax.corpus.documents import Document
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens
from biomedlm_jax.errors import InputError

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


def shard_of(out: Path, split: str = "train") -> Path:
    return next((out / "rows").glob(f"*{split}*-00000"))


def forget_files(out: Path) -> None:
    """Make the manifest one of an earlier version, which lists no files."""
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["files"], manifest["checksum"]
    (out / "manifest.json").write_text(json.dumps(manifest))


def flip(file: Path, byte: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[byte] ^= 1 << bit
    file.write_bytes(content)


def value_or_line(read) -> tuple[Any, str]:
    """What `read` returns and "", or None and the message of its InputError."""
    try:
        return read(), ""
    except InputError as error:
        return None, str(error)


@pytest.fixture(scope="session")
def large_rows(tmp_path_factory, small_tokenizer) -> Path:
    """Rows of 64 ids in one shard of 512 KiB and one of 128 KiB; tests copy them."""
    path = tmp_path_factory.mktemp("large") / "tokens"
    build_tokens(make_documents(1500), small_tokenizer, path, length=64, validation_fraction=0.1)
    return path


@pytest.fixture(params=["listed", "unlisted"])
def damageable(request, large_rows, tmp_path) -> Path:
    """A copy of `large_rows`, with the list of files and as an earlier version built it."""
    shutil.copytree(large_rows, tmp_path / "tokens")
    if request.param == "unlisted":
        forget_files(tmp_path / "tokens")
    return tmp_path / "tokens"
