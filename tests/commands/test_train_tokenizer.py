"""train-tokenizer: the library's tokenizer on disk, with progress on standard error."""

import json
import random

import pytest

from biomedlm_jax import cli
from biomedlm_jax.commands import train_tokenizer
from biomedlm_jax.corpus import tokenizer
from biomedlm_jax.corpus.tokenizer import load_tokenizer, tokenizer_hash

TEXTS = [
    " ".join(random.Random(i).choices(["cardio", "gram", "osis", "é"], k=9)) for i in range(50)
]
SIZE = 270


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS) + "{\n")
    return path


def test_the_command(corpus, tmp_path, capsys):
    out = tmp_path / "tokenizer"
    command = ["train-tokenizer", f"--input={corpus},{corpus}", f"--vocab_size={SIZE}"]
    command += [f"--out={out}"]

    def fails(*flags) -> str:
        assert cli.main([*command, *flags]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        return line

    assert f"{corpus}:51: expected a JSON object, got '{{'" in fails()
    assert not out.exists()
    assert cli.main([*command, "--on_error=skip"]) == 0
    printed = capsys.readouterr().out
    expected = tokenizer_hash(tokenizer.train_tokenizer(TEXTS, vocab_size=SIZE))
    assert f"{SIZE} entries, {expected}" in printed
    assert "50 documents" in printed
    assert "skipped    1 bad line" in printed
    assert tokenizer_hash(load_tokenizer(out)) == expected
    assert "pass --overwrite" in fails("--on_error=skip")
    assert "too small for vocab_size=28896" in fails(
        "--on_error=skip", "--overwrite", "--vocab_size=28896"
    )
    assert tokenizer_hash(load_tokenizer(out)) == expected
    assert cli.main([*command, "--on_error=skip", "--overwrite", "--vocab_size=265"]) == 0
    assert load_tokenizer(out).get_vocab_size() == 265
    capsys.readouterr()
    (out / "model.safetensors").touch()
    assert "something else" in fails("--on_error=skip", "--overwrite")
    assert "no such file" in fails("--input=nowhere.txt")


def test_progress_is_one_line_every_few_seconds(corpus, tmp_path, capsys, report_at_both_ends):
    report_at_both_ends(train_tokenizer)
    flags = [f"--input={corpus}", "--on_error=skip", f"--vocab_size={SIZE}"]
    assert cli.main(["train-tokenizer", *flags, f"--out={tmp_path / 'tokenizer'}"]) == 0
    first, last = lines = capsys.readouterr().err.splitlines()
    assert "reading: 0 documents" in first
    assert "merging pairs: 50 documents" in last
    assert all(" documents, " in line and line.startswith("0 s  ") for line in lines)
