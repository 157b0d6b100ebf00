"""`biomedlm evaluate`: its flags, its output and its errors."""

import json
import os
import socket

import jax
import pytest
from processes import Process

from biomedlm_jax import cli
from biomedlm_jax.corpus.tokenizer import load_tokenizer, train_tokenizer
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.qa.contamination import read_set
from biomedlm_jax.qa.exclusions import write_exclusions
from biomedlm_jax.qa.report import read_items
from biomedlm_jax.qa.scoring import WAYS

CONFIG = GPT2Config(vocab_size=270, context_length=64, layers=1, width=32, heads=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tokenizer = train_tokenizer(["cardiology renin"] * 20, vocab_size=270)
    release = tmp_path_factory.mktemp("evaluate") / "release"
    return export_hf(GPT2(CONFIG, key=jax.random.key(0)), tokenizer, release)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    rows = [
        {"id": f"q{n}", "question": "Which?", "options": ["renin", "ANP", "no"], "label": n % 3}
        for n in range(5)
    ]
    file = tmp_path_factory.mktemp("questions") / "dev.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(*arguments):
    return cli.main(["evaluate", *map(str, arguments)])


def test_it_prints_the_table_and_where_the_report_is(tmp_path, model, questions, capsys):
    out = tmp_path / "out"
    where = [f"--model={model}", f"--task=jsonl:{questions}", f"--out={out}"]
    assert run(*where, "--data=2", "--fsdp=2", "--tensor=2") == 0
    lines = capsys.readouterr().out.splitlines()
    name = f"jsonl:{questions}, dev"
    again = "used: 4 of the content of an earlier one"
    assert lines[0] == f"{name}: 5 questions; skipped: nothing; {again}"
    assert lines[-1] == f"wrote {out}"
    assert '<a href="option_per_token/report.html">' in (out / "report.html").read_text()
    page = (out / "letter" / "report.html").read_text()
    assert "Which?" in page  # the question of a wrong answer
    assert "data:image/png;base64," in page
    assert sum(line.startswith("| ") for line in lines) == 2 + len(WAYS["letter"] + WAYS["option"])
    assert run(*where) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("biomedlm evaluate: error: ")
    assert "pass --overwrite" in error


def test_one_way_of_scoring_prints_its_report(tmp_path, model, questions, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    export_hf(GPT2(CONFIG, key=jax.random.key(1)), load_tokenizer(model), other)
    where = ["--task=medqa", f"--path={questions}", "--format=questions", f"--out={out}"]
    assert run(f"--model={model}", f"--model={model}", "--mode=letter", *where) == 2
    assert "has the same weights as" in capsys.readouterr().err
    both = [f"--model={model}", f"--model={other}", "--mode=letter"]
    assert run(*both, *where) == 2
    assert "does not state what it was trained from" in capsys.readouterr().err
    for directory in (model, other):
        config = json.loads((directory / "config.json").read_text())
        config["facts"] = {"started_from": {"tokens": "t" * 64}}
        (directory / "config.json").write_text(json.dumps(config))
    assert run(*both, *where) == 0
    assert (out / "report.md").read_text().strip() in capsys.readouterr().out
    assert json.loads((out / "report.json").read_text())["seeds"]["n"] == 2


def test_both_scores_with_a_list_of_questions_to_exclude(tmp_path, model, questions, capsys):
    first = read_set(f"jsonl:{questions}").questions
    lists = [tmp_path / "list.json", tmp_path / "other.json"]
    for file, of in zip(lists, (first, first[1:]), strict=True):
        write_exclusions(file, of, ["q1", "q4"], rule="seen", about={"task": "mine"})
    where = [f"--model={model}", f"--task=jsonl:{questions}", "--mode=letter", "--limit=4"]
    where += [f"--out={tmp_path / 'out'}"]
    assert run(*where, f"--exclude={lists[1]}") == 2
    assert "is of other questions (mine, None, 4 questions)" in capsys.readouterr().err
    assert run(*where, f"--exclude={lists[0]}") == 0
    printed = capsys.readouterr().out
    assert "| excluded questions | 1, by " in printed
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    items = read_items(tmp_path / "out")
    right = [one["gold"] == one["prediction"] for one in items if one["id"] != "q1"]
    one = report["without_excluded"]
    assert (one["excluded"], one["ids"], report["n"]) == (1, ["q1"], 4)
    assert one["accuracy"]["value"] == pytest.approx(sum(right) / 3)
    unlabelled = tmp_path / "test.jsonl"
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows = [{name: row[name] for name in row if name != "label"} for row in rows]
    unlabelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    where[1] = f"--task=jsonl:{unlabelled}"
    assert run(*where, f"--exclude={lists[0]}", "--overwrite") == 2
    assert "have no labels; fix: leave out --exclude" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model"),
        (["--model=nowhere", "--out=o"], "--task"),
        (["--model=nowhere", "--out=o", "--task=medqa", "--harness_tasks=t"], "either"),
        (["--model=nowhere", "--out=o", "--task=medqa", "--shots=-1"], "shots"),
        (["--model=nowhere", "--out=o", "--task=medqa", "--batch_tokens=1"], "batch_tokens"),
        (["--model=nowhere", "--out=o", "--task=medqa", "--modes=letter"], "modes"),
        (
            ["--model=nowhere", "--out=o", "--task=medqa", "--mode=letters"],
            "one of auto, letter, option, classifier",
        ),
        (["--model=nowhere", "--out=o", "--task=medqa", "stray"], "'stray'"),
        (["--model=nowhere", "--out=o", "--task=medqa", "--path=nowhere"], "nowhere"),
        (["--model=nowhere", "--out=o", "--task=medqa", "--tensor=3"], "tensor=3"),
        (["--model=nowhere", "--out=o", "--task=mmlu:a/b"], "got 'mmlu:a/b'"),
        (["--model=m", "--versus=m", "--out=o", "--task=medqa", "--path=."], "as its base"),
        (["--model=m", "--versus=b", "--out=o", "--task=medqa", "--orders=2"], "--orders with --v"),
        (["--model=m", "--versus=b", "--out=o", "--task=medqa", "--exclude=e"], "--exclude with"),
        (["--model=m", "--out=o", "--task=medqa", "--dev_path=d"], "--dev_path without --versus"),
        (["--model=m", "--model=n", "--versus=b", "--out=o", "--task=medqa"], "got 2 --model"),
        (["--model=m", "--versus=b", "--out=o", "--harness_tasks=t"], "--versus with --harness"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("biomedlm evaluate: error: ")
    assert message in captured.err
    assert captured.out == ""


def test_versus_prints_and_writes_one_table(tmp_path, model, questions, capsys):
    other, out, figures = (tmp_path / name for name in ("other", "out", "figures.json"))
    export_hf(GPT2(CONFIG, key=jax.random.key(1)), load_tokenizer(model), other)
    test = tmp_path / "test.jsonl"
    test.write_text(questions.read_text().replace("Which?", "What?"))
    where = ["--task=medqa", f"--path={test}", f"--dev_path={questions}", "--format=questions"]
    where += [f"--model={other}", "--mode=option", "--limit=3", f"--json={figures}"]
    assert run(*where, f"--versus={model}", f"--out={out}") == 0
    assert (out / "report.md").read_text().strip() in capsys.readouterr().out
    written = json.loads(figures.read_text())
    assert written == json.loads((out / "report.json").read_text())
    assert [*written["models"]] == ["base", "model"]
    assert written["n"] == written["chosen_on"]["n"] == 3
    assert len(read_items(out / "model")) == 3


INTERRUPTED = """
import sys
from biomedlm_jax import cli
from biomedlm_jax.qa import states
original, calls = states.token_log_probabilities, []
def interrupting(*arguments):
    calls.append(None)
    if len(calls) == 3:
        raise KeyboardInterrupt
    return original(*arguments)
states.token_log_probabilities = interrupting
sys.exit(cli.main(sys.argv[1:]))
"""


def run_two(program, *flags):
    """Run `biomedlm evaluate` in two processes: (exit code, stdout, stderr) of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [*program, "evaluate", *flags, "--process_count=2"]
    environment = {"XLA_FLAGS": os.environ["FAST_COMPILATION"]}
    processes = [
        Process([*command, f"--coordinator=localhost:{port}", f"--process_id={n}"], env=environment)
        for n in range(2)
    ]
    return [(*process.communicate(timeout=120), process.returncode) for process in processes]


@pytest.mark.slow
def test_two_processes_write_one_report_and_resume_from_the_first_ones_batches(
    tmp_path, model, questions
):
    flags = [f"--model={model}", f"--task=jsonl:{questions}", "--mode=option", "--batch_tokens=64"]
    out = tmp_path / "two"
    interrupted = run_two(["-c", INTERRUPTED], *flags, f"--out={out}")
    assert 0 not in [code for *_, code in interrupted], interrupted
    assert [*tmp_path.glob("two.partial/*/*.npz")]
    ends = run_two(["-m", "biomedlm_jax.cli"], *flags, f"--out={out}")
    assert [code for *_, code in ends] == [0, 0], ends
    assert [output.count("wrote ") for output, *_ in ends] == [1, 0]
    assert [error.count("resuming an interrupted") for _, error, _ in ends] == [1, 0]
    assert not out.with_name("two.partial").exists()
    assert run(*flags, f"--out={tmp_path / 'one'}") == 0
    for way in WAYS["option"]:
        two, one = (read_items(tmp_path / name, way=way) for name in ("two", "one"))
        for item, alone in zip(two, one, strict=True):
            assert item["scores"] == pytest.approx(alone["scores"], abs=1e-5)
