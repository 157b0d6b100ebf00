"""build-tokens: the library's token rows, with progress on standard error."""

import json

from biomedlm_jax import cli
from biomedlm_jax.corpus import tokens
from biomedlm_jax.corpus.manifest import read_manifest
from biomedlm_jax.corpus.tokenizer import save_tokenizer, train_tokenizer

TEXTS = [f"Patient {i} was given {i * i} mg of drug {chr(97 + i % 26)}." for i in range(100)]


def test_the_command(tmp_path, capsys, report_at_both_ends):
    report_at_both_ends(tokens)
    corpus, out, figures = tmp_path / "a.jsonl", tmp_path / "tokens", tmp_path / "figures.json"
    corpus.write_text("".join(json.dumps({"body": text}) + "\n" for text in [*TEXTS, ""]))
    save_tokenizer(train_tokenizer(TEXTS, vocab_size=280), tmp_path / "tokenizer")
    flags = [f"--input={corpus}", f"--tokenizer={tmp_path / 'tokenizer'}", f"--out={out}"]
    flags += ["--length=32", "--validation_fraction=0.2"]
    assert cli.main(["build-tokens", *flags]) == 2
    assert "use --text_field=body" in capsys.readouterr().err
    assert cli.main(["build-tokens", *flags, "--text_field=body", f"--json={figures}"]) == 0
    captured = capsys.readouterr()
    manifest = read_manifest(out)
    assert json.loads(figures.read_text()) == manifest
    assert manifest["length"] == 32
    assert manifest["inputs"][0]["path"] == str(corpus)
    assert f"train       {manifest['splits']['train']['documents']} documents" in captured.out
    assert "skipped     1 empty text" in captured.out
    assert " s  " in captured.err
    assert " MB/s" in captured.err
    assert cli.main(["build-tokens", *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_summary_accounts_for_every_file(tmp_path, capsys):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    lines = "".join(json.dumps({"text": f"{text} <|endoftext|>"}) + "\n" for text in TEXTS)
    for name in ("a.json", "b.jsonl", "c.csv"):
        (corpus / name).write_text(lines)
    (corpus / "d.jsonl").write_text(json.dumps({"text": "x" * 2000}))
    save_tokenizer(train_tokenizer(TEXTS, vocab_size=280), tmp_path / "tokenizer")
    flags = [f"--input={corpus}", f"--tokenizer={tmp_path / 'tokenizer'}"]
    flags += [f"--out={tmp_path / 'tokens'}", "--length=32", "--max_document_bytes=1000"]
    assert cli.main(["build-tokens", *flags]) == 2
    assert "d.jsonl:1: the line is longer than 1,000 bytes" in capsys.readouterr().err
    assert cli.main(["build-tokens", *flags, "--on_error=skip"]) == 0
    out = capsys.readouterr().out
    assert f"1 file, hidden or of unknown format: {corpus / 'c.csv'}" in out
    assert f"{corpus / 'b.jsonl'} has the content of {corpus / 'a.json'}" in out
    assert "special     200 times the text spells <|endoftext|>" in out
