import dataclasses
import functools
import json
import types

import jax
import numpy as np
import pytest
import tiny
from peers import random_model
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from biomedlm_jax import cli
from biomedlm_jax.corpus.tokenizer import copy_tokenizer, train_tokenizer
from biomedlm_jax.interop.finetuned import Head, with_head
from biomedlm_jax.interop.huggingface import export_hf, load
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.model.language_model import named_leaves
from biomedlm_jax.model.vocabulary import grow_vocabulary

TINY = {"vocab_size": 300, "context_length": 24, "layers": 3, "width": 32, "heads": 4}


def make_model(*, seed: int = 0, deviation: float = 0.25, **fields) -> GPT2:
    """A GPT-2 whose parameters are all random, biases too; the vocabulary padding is zero."""
    config = GPT2Config(**{**TINY, **fields})
    random = np.random.default_rng(seed)

    def fill(path, leaf):
        values = deviation * random.standard_normal(leaf.shape, np.float32)
        return jax.numpy.asarray(values + (path[-2].name == "scale"))

    model = jax.tree_util.tree_map_with_path(fill, abstract_model(config))
    model.wte[...] = model.wte[...].at[config.vocab_size :].set(0)
    return model


def assert_same(one: GPT2, other: GPT2) -> None:
    ours, theirs = named_leaves(one), named_leaves(other)
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        assert np.asarray(leaf).tobytes() == np.asarray(theirs[name]).tobytes(), name


def rewrite(directory, change) -> None:
    """Apply `change(tensors)` to model.safetensors, as a person with a script would."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, file, {"format": "pt"})
    (directory / "SHA256SUMS").unlink(missing_ok=True)  # with it, the change would be refused


def edit_config(directory, **changes) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture(scope="session", name="make_model")
def _make_model():
    return make_model


@pytest.fixture(scope="session", name="assert_same")
def _assert_same():
    return assert_same


@pytest.fixture(name="rewrite")
def _rewrite():
    return rewrite


@pytest.fixture(name="edit_config")
def _edit_config():
    return edit_config


@pytest.fixture(scope="session")
def model() -> GPT2:
    return make_model()


@pytest.fixture(scope="session")
def tokenizer():
    organs, ends = (
        ("cardio", "neuro", "hepato", "gastro"),
        ("logy", "pathy", "gram", "sis", "scopy"),
    )
    words = [organ + end for organ in organs for end in ends]
    return train_tokenizer([" ".join(words)] * 20, vocab_size=300)


@pytest.fixture
def release(model, tokenizer, tmp_path):
    """A fresh Hugging Face directory of `model`."""
    return export_hf(model, tokenizer, tmp_path / "release")


@pytest.fixture(scope="session")
def make_finetuned(tokenizer):
    """A function: kind and row format -> a model with its head, its tokenizer and its Head.

    The model is a GPT-2, or of the `config`.
    """
    added = {
        "choice": ["[PAD]", "[CLS]", "[SEP]"],
        "classification": ["[PAD]", "<|CONTEXT|>", "<|QUESTION1|>", "<|QUESTION2|>", "<|ANSWER|>"],
    }

    def make(kind, row_format="keep_end", source=None, config=None, **fields):
        if source is None:
            base, grown = None, Tokenizer.from_str(tokenizer.to_str())
        else:  # a Hugging Face directory, whose vocabulary grows
            base, of_base = load(source)
            grown = copy_tokenizer(of_base)
        grown.add_special_tokens([AddedToken(name, normalized=False) for name in added[kind]])
        size = {"vocab_size": grown.get_vocab_size(), "eos_token_id": 299, "context_length": 64}
        if base is not None:
            model = grow_vocabulary(base, len(added[kind]), key=jax.random.key(2))
        elif config is not None:
            model = random_model(dataclasses.replace(config, **size, bos_token_id=299))
        else:
            model = make_model(**{**size, **fields})
        classes = ("maybe", "no", "yes") if kind == "classification" else ()
        head = Head(kind=kind, task="medqa", row_format=row_format, max_length=40, classes=classes)
        finetuned = with_head(model, head, key=jax.random.key(3))
        finetuned.score.kernel[...] *= 20
        if kind == "choice":
            finetuned.score.bias[...] += 0.375
        return finetuned, grown, head

    return make


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory):
    """A function: model type -> what transformers saves of a tiny model; not to be changed."""
    pytest.importorskip("transformers", reason="makes the tiny models")
    folder = tmp_path_factory.mktemp("tiny")

    @functools.cache
    def make(model_type: str):
        return tiny.directory_of(model_type, folder / model_type)

    return make


@pytest.fixture(params=tiny.TYPES)
def source(request, tiny_source):
    """That of each type."""
    return tiny_source(request.param)


@pytest.fixture(scope="session")
def llama_source(tiny_source):
    """That of a Llama."""
    return tiny_source("llama")


@pytest.fixture
def command(capsys):
    """Run a command in this process: its exit code and what it printed."""

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return types.SimpleNamespace(code=code, out=printed.out, error=printed.err)

    return run
