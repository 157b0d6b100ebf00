"""tokenization.py: every side is measured on the same text."""

import json

import pytest

from biomedlm_jax.benchmarks.tokenization import run_benchmark
from biomedlm_jax.corpus.tokenizer import train_tokenizer

TEXTS = [f"Patient {i} was given {i * i} mg of drug {chr(97 + i % 26)}." for i in range(60)]


def test_every_side_is_measured(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    train_tokenizer(TEXTS, vocab_size=280).save(str(tmp_path / "tokenizer.json"))
    figures = run_benchmark([file], tmp_path, length=16, repeats=1)
    assert figures["documents"] == len(TEXTS)
    assert figures["text_bytes"] == sum(map(len, TEXTS))
    assert all(side["ratio"] > 0 for side in figures["sides"].values())
    with pytest.raises(ValueError, match="repeats=0"):
        run_benchmark([file], tmp_path, repeats=0)
