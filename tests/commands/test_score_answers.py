import json

from biomedlm_jax import cli
from biomedlm_jax.commands import score_answers
from biomedlm_jax.files import write_jsonl
from biomedlm_jax.finetuning import answer_scores
from biomedlm_jax.finetuning.instructions import Layout, build_instructions


def test_choices_are_those_of_the_library():
    assert {*score_answers.FLAGS["resample"].parser.enum_values} == {*answer_scores.RESAMPLE}


def test_the_command(tmp_path, capsys):
    path, rows, answers = (tmp_path / name for name in ("a.tsv", "rows.jsonl", "answers.jsonl"))
    path.write_text("".join(f"@GENE$ {n}\t{'yes' if n % 2 else 'no'}\n" for n in range(20)))
    made, _ = build_instructions([path], Layout(task="relation", dataset="[gad]", negative="no"))
    write_jsonl(rows, made)
    of_rows = [
        {"id": row["id"], "answers": ["Yes." if n else "\ud800"]} for n, row in enumerate(made)
    ]
    write_jsonl(answers, of_rows)
    scores, items = tmp_path / "scores.json", tmp_path / "items.jsonl"
    flags = [f"--instructions={rows}", f"--answers={answers}"]
    assert cli.main(["score-answers", *flags, f"--json={scores}", f"--items={items}"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    figures = json.loads(scores.read_text())["[gad]"]
    assert figures["accuracy"]["value"] == 0.5
    assert figures["precision"]["value"] == 0.5  # 10 of 19 and the one that cannot be read
    assert "[gad]" in captured.out
    assert "50.00" in captured.out
    assert "20 examples; precision, recall and F1 leave out 'no'; F1 of labels" in captured.out
    assert "answers that could not be read, which count as wrong: 1\n" in captured.out
    assert [json.loads(line)["read"] for line in items.read_text().splitlines()].count(False) == 1
    write_jsonl(answers, of_rows[1:])
    for bad, message in (
        ([*flags, f"--items={items}"], "exists; name another file"),
        (flags, "1 example has no answer, 0 answers have no example; such as 'a.tsv:1'"),
        ([*flags, "--field=text"], "answers.jsonl:1: expected the text 'text', got no such field"),
    ):
        assert cli.main(["score-answers", *bad]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
