import json

import pytest

from biomedlm_jax import cli
from biomedlm_jax.commands import build_instructions
from biomedlm_jax.finetuning import instructions, spans

TEXT = "BRCA1 B\nand O\n\ncancer O\n"


def test_choices_are_those_of_the_library():
    flags = build_instructions.FLAGS
    assert {*build_instructions.TASKS} == {*instructions.TASKS}
    assert {*flags["scheme"].parser.enum_values} == {*spans.SCHEMES}
    assert {*flags["answer"].parser.enum_values} == {*instructions.ANSWERS}


def test_the_command(tmp_path, capsys):
    path, out, figures = tmp_path / "a.tsv", tmp_path / "out.jsonl", tmp_path / "figures.json"
    path.write_text(TEXT)
    flags = ["--task=ner", f"--input={path}", f"--out={out}", "--entity_type=Gene"]
    more = ["--label_name=Gene=gene", "--paraphrases", "--seed=2", f"--json={figures}"]
    assert cli.main(["build-instructions", *flags, *more]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "entities of gene: 1\n" in captured.out
    assert f"wrote 2 instructions to {out}" in captured.out
    written = out.read_bytes()
    assert [json.loads(line)["output"] for line in written.splitlines()] == ["gene: BRCA1", "None"]
    assert json.loads(figures.read_text())["without_entity"] == 1
    assert cli.main(["build-instructions", *flags]) == 2
    assert f"{out} exists; name another file, or pass --overwrite" in capsys.readouterr().err
    assert cli.main(["build-instructions", *flags, *more[:3], "--overwrite"]) == 0
    assert out.read_bytes() == written


def test_what_was_left_out_is_printed(tmp_path, capsys):
    path, pair = tmp_path / "a.jsonl", {"sentence1": "a", "sentence2": "b"}
    labels = ("neutral", "-", "entailment")
    path.write_text("".join(json.dumps({**pair, "gold_label": one}) + "\n" for one in labels))
    flags = ["--task=nli", f"--input={path}", f"--out={tmp_path}/out.jsonl"]
    assert cli.main(["build-instructions", *flags]) == 0
    printed = capsys.readouterr().out
    assert "examples whose input has several outputs: 2" in printed
    assert f"left out: 1 of {path}: no gold label" in printed
    assert "wrote 2 instructions" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task=ner"], "a.tsv:1: got the tag B without a type; fix: pass --entity_type=NAME"),
        (["--task=nli", "--scheme=iob1"], "got --scheme with --task=nli; it has an effect for ner"),
        (["--task=ner", "--marks=x"], "got --marks with --task=ner; it has an effect for relation"),
        (["--task=ner", "--seed=1"], "got --seed without --paraphrases"),
        (["--task=ner", "--label_name=a"], "got --label_name=a; expected OLD=NEW"),
        (["--task=ner", "--label_name=a=b", "--label_name=a=c"], "OLD=NEW, once for each label"),
        (["--task=qa"], "got --task=qa; expected one of ner, relation, nli, classification"),
    ],
)
def test_bad_flags(tmp_path, capsys, flags, message):
    (tmp_path / "a.tsv").write_text(TEXT)
    files = [f"--input={tmp_path}/a.tsv", f"--out={tmp_path}/out.jsonl"]
    assert cli.main(["build-instructions", *files, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out.jsonl").exists()
