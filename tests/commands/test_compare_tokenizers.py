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
    (tmp_path / "mine.txt").write_text("# of the user\nPatient drug\nzygote\n")
    flags = [
        f"--input={corpus}",
        "--max_documents=50",
        f"--terms=gen,[/x],{LONG}",
        f"--term_list=mine={tmp_path / 'mine.txt'}",
        f"--plot={tmp_path / 'plot.png'}",
        f"--json={figures}",
    ]
    assert cli.main(["compare-tokenizers", *names, *flags]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    content = json.loads(figures.read_text())
    assert content["published_splits"]["splits"]["myocardium"] == ["my", "ocard", "ium"]
    first, second = content["tokenizers"]
    assert (first["name"], second["name"]) == ("a", "[/b]")
    assert first["bytes"] == sum(map(len, TEXTS[:50]))
    assert first["tokens"] == second["tokens"] > 0
    assert list(first["terms"]) == ["gen", "[/x]", LONG]
    mine = first["lists"]["mine"]
    assert (mine["terms"], mine["words"], mine["whole_words"]) == (2, 3, 2)
    assert [*mine["split"]] == ["zygote"]
    assert LONG in captured.out  # a pipe has no width at which a line is cut
    assert "whole words of mine (3)" in captured.out
    assert f"{first['tokens']:,}" in captured.out
    assert "published" not in captured.out  # no term of the paper's table
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    flags.pop()  # the file exists now
    for bad, message in (
        ([names[0], names[0], *flags], "give each tokenizer as NAME=PATH"),
        ([*names, flags[0], "--max_documents=0"], "--max_documents=0"),
        ([*names, flags[0], "--term_list=mine"], "give each term_list as NAME=PATH"),
        ([*names, flags[0], "--term_list=a=missing.txt"], "missing.txt"),
        ([*names, flags[0], "--plot=plot.svg"], "expected a new file that ends in .png"),
        ([*names, flags[0], flags[4]], "expected a new file that ends in .png"),
        ([*names, flags[0], "--terms=--"], "expected one with a letter or digit"),
        ([*names, flags[0], "--terms=a\udcff"], "expected one with a letter or digit, in UTF-8"),
        ([f"--tokenizer=a\udcff={out}", flags[0]], "with a different name in UTF-8"),
    ):
        assert cli.main(["compare-tokenizers", *bad]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_without_terms_the_table_of_the_paper_is_split(tmp_path, capsys):
    corpus, out = tmp_path / "a.jsonl", tmp_path / "tokenizer"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    save_tokenizer(train_tokenizer(TEXTS, vocab_size=280), out)
    assert cli.main(["compare-tokenizers", f"--tokenizer=a={out}", f"--input={corpus}"]) == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines()]
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows if len(row) == 3}
    assert rows["myocardium"][1] == "my/ocard/ium"
    assert rows["bytes with an entry"][0] == "256 of 256"
    assert [name for name in rows if name.startswith("whole words of")] == [
        "whole words of the texts",
        "whole words of diseases (44)",
        "whole words of drugs (40)",
        "whole words of genes (40)",
        "whole words of procedures (40)",
    ]
