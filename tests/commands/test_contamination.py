"""`biomedlm contamination`: the table, the lists and one line for bad input."""

import json

import pytest

from biomedlm_jax import cli
from biomedlm_jax.commands.contamination import FLAGS
from biomedlm_jax.qa.contamination import PARTS

QUESTION = "A 40-year-old man has had a fever, chills and a cough for the last three days. Why?"
OTHER = "Which one?"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    rows = [
        {"id": f"q{n}", "question": text, "options": {"A": "flu", "B": f"{n}"}, "answer_idx": "A"}
        for n, text in enumerate([QUESTION, OTHER])
    ]
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bad_dev.jsonl").write_text('{"id": "q0"}\n')
    text = f"Case 1. {QUESTION.replace(', ', ' - ')} He recovered."
    (folder / "corpus.jsonl").write_text(json.dumps({"body": text, "pmid": "7"}) + "\n")
    return folder


def test_the_command(files, tmp_path, capsys):
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    arguments = [f"--input={files / 'corpus.jsonl'}", "--text_field=body", f"--out={out}"]
    arguments += [f"--task=medqa={files / 'dev.jsonl'}", f"--json={figures}"]
    assert cli.main(["contamination", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "medqa, dev: 2 questions; skipped: nothing" in printed
    assert (
        "| medqa, dev | 13 words | 2 | 1 (50.0%) | 0 (0.0%) | 1 (50.0%) | 1 / 1, 100.00%" in printed
    )
    assert (out / "report.md").read_text().strip() in printed
    assert printed.rstrip().endswith(f"wrote {out}")
    assert json.loads(figures.read_text()) == json.loads((out / "report.json").read_text())
    first = json.loads((out / "medqa-dev.questions.jsonl").read_text().splitlines()[0])
    (example,) = first["units"]["words"]["examples"]
    assert example["document"] == {"pmid": "7"}
    assert example["text"] == QUESTION
    figures.unlink()
    arguments[3] = f"--task=jsonl:{files / 'dev.jsonl'}"
    arguments += ["--overwrite", "--words=0", "--parts=answer", "--characters=2", "--share=0.5"]
    assert cli.main(["contamination", *arguments]) == 0
    assert [*json.loads((out / "report.json").read_text())["lengths"]] == ["characters"]
    assert sorted(one.name for one in out.glob("*exclude*")) == ["dev-dev.exclude-characters.json"]
    assert FLAGS["parts"].default == [*PARTS]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task=medqa={bad}"], "skip bad rows with --on_bad_question=skip"),
        (["--task=medqa"], "expected TASK=PATH or jsonl:PATH"),
        (["--task=medqa=nowhere"], "nowhere"),
        (["--task=other={dev}"], "expected a task among"),
        (["--task=medqa={dev}", "--words=1"], "got n-grams of 1 words"),
        (["--task=medqa={dev}", "--words=0", "--characters=0"], "expected n-grams of one"),
        (["--task=medqa={dev}", "--parts=title"], "got the part 'title'"),
        (["--task=medqa={dev}", "--share=2"], "expected 0 to 1"),
        (["--task=medqa={dev}"], "--text_field"),
        ([], "--task is required"),
    ],
)
def test_bad_input_is_one_line(files, tmp_path, capsys, flags, message):
    flags = [flag.format(dev=files / "dev.jsonl", bad=files / "bad_dev.jsonl") for flag in flags]
    where = [f"--input={files / 'corpus.jsonl'}", f"--out={tmp_path / 'out'}"]
    assert cli.main(["contamination", *where, *flags]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line != "starting"]
    assert len(lines) == 1
    assert message in lines[0]
    assert not [*tmp_path.iterdir()]
