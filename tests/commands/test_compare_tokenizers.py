"""compare-tokenizers: a table, and the same figures as JSON."""

import json

from biomedlm_jax import cli
from biomedlm_jax.corpus.tokenizer import save_tokenizer, train_tokenizer

TEXTS = [f"Patient {i} was given {i * i} mg of drug {chr(97 + i % 26)}." for i in range(60)]
LONG = "pneumonoultramicroscopicsilicovolcanoconiosis" * 3


def test_the_command(tmp_path, capsys):
    corpus, out, figures = tmp_path / "a.jsonl", tmp_path / "tokenizer", tmp_path / "figures.json"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    save_tokenizer(train_tokenizer(TEXTS, vocab_size=280), out)
    names = [f"--tokenizer=a={out}", f"--tokenizer=[/b]={out}"]
    flags = [
        f"--input={corpus}",
        "--max_documents=50",
        f"--terms=gen,[/x],{LONG}",
        f"--json={figures}",
    ]
    assert cli.main(["compare-tokenizers", *names, *flags]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    first, second = json.loads(figures.read_text())
    assert (first["name"], second["name"]) == ("a", "[/b]")
    assert first["bytes"] == sum(map(len, TEXTS[:50]))
    assert first["tokens"] == second["tokens"] > 0
    assert list(first["terms"]) == ["gen", "[/x]", LONG]
    assert LONG in captured.out  # a pipe has no width at which a line is cut
    assert f"{first['tokens']:,}" in captured.out
    flags.pop()  # the file exists now
    for bad, message in (
        ([names[0], names[0], *flags], "give each tokenizer as NAME=PATH"),
        ([*names, flags[0], "--max_documents=0"], "--max_documents=0"),
    ):
        assert cli.main(["compare-tokenizers", *bad]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
