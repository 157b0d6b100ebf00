"""evaluation.py: the reports of every kind of model, and what is refused before any work."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from biomedlm_jax import cli
from biomedlm_jax.commands import evaluate as command
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.model.heads import CHOICE, CLASSIFICATION
from biomedlm_jax.qa import evaluation
from biomedlm_jax.qa.evaluation import evaluate
from biomedlm_jax.qa.report import FILES, read_items
from biomedlm_jax.qa.rows import ADDED_TOKENS, PAPER, add_tokens
from biomedlm_jax.qa.scoring import score
from biomedlm_jax.qa.setup import Head
from biomedlm_jax.qa.tasks import find_task, read_examples
from biomedlm_jax.qa.tuned import load_tuned, save_tuned, with_head

CONFIG = GPTConfig(
    vocab_size=280, context_length=64, layers=2, width=64, heads=4, initializer_range=0.2
)
WAYS = ("option", "option per character", "option per token", "option minus unconditional")
CLASSES = ("maybe", "no", "yes")


def silent(line):
    pass


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["cardiology neuropathy hepatogram renin"] * 20, vocab_size=280)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def medqa(root):
    """A folder of questions: train, dev, and a test split whose answers are secret."""
    rows = [
        {
            "id": f"q{n}",
            "question": "Which hormone " + "rises " * (n % 5) + "?",
            "options": {"A": "renin", "B": f"↓ ANP {n}", "C": "x" * (1 + n), "D": "none"},
            "answer_idx": "ABCD"[n % 4],
        }
        for n in range(12)
    ]
    secret = [{k: v for k, v in row.items() if k != "answer_idx"} for row in rows]
    write(root / "medqa" / "train.jsonl", [{**row, "id": "t" + row["id"]} for row in rows[:3]])
    write(root / "medqa" / "dev.jsonl", rows)
    write(root / "medqa" / "test.jsonl", secret)
    return root / "medqa"


@pytest.fixture(scope="module")
def pubmedqa(root):
    rows = [
        {
            "id": f"p{n}",
            "sentence1": "Does it?",
            "sentence2": "It did. " * n,
            "label": CLASSES[n % 3],
        }
        for n in range(6)
    ]
    write(root / "pubmedqa" / "test.jsonl", rows)
    return root / "pubmedqa"


@pytest.fixture(scope="module")
def release(root, tokenizer):
    return export_hf(GPT(CONFIG, key=jax.random.key(0)), tokenizer, root / "release")


def tuned(path, tokenizer, kind, *, seed, classes=()):
    head = Head(kind, "medqa", PAPER, 64, classes)
    gpt = GPT(CONFIG, key=jax.random.key(0))
    added = len(ADDED_TOKENS[kind])
    made = with_head(gpt, head, added=added, key=jax.random.key(seed))
    made.score.kernel[...] = 30 * made.score.kernel[...]
    save_tuned(path, made, add_tokens(tokenizer, kind), head, step=1, facts={})
    return path


@pytest.fixture(scope="module")
def seeds(root, tokenizer):
    return [tuned(root / f"seed{n}", tokenizer, CHOICE, seed=n) for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def classifier(root, tokenizer):
    path = root / "classifier"
    return tuned(path, tokenizer, CLASSIFICATION, seed=5, classes=CLASSES)


@pytest.fixture(scope="module")
def reported(root, release, medqa):
    """A language model's report: the ways of scoring, each in a folder of its own."""
    out, said = root / "report", []
    summaries = evaluate([release], out, task="medqa", path=medqa, split="dev", notify=said.append)
    return out, summaries, said


@pytest.fixture(scope="module")
def first_seed(root, seeds, medqa):
    out = root / "first"
    (summary,) = evaluate(seeds[:1], out, task="medqa", path=medqa, split="dev", notify=silent)
    return out, summary


def accuracy(items):
    return np.mean([item["prediction"] == item["gold"] for item in items])


# ---- What is reported.


def test_a_language_model_is_scored_by_letter_and_by_option(reported):
    out, summaries, said = reported
    ways = ("letter", *WAYS)
    assert sorted(path.name for path in out.iterdir()) == sorted(w.replace(" ", "_") for w in ways)
    # A model of so few positions cuts questions, and that is said beside the table.
    cut = [
        f"{way}: {summary['truncated']} of 12 questions were cut to fit"
        for way, summary in zip(ways, summaries, strict=True)
    ]
    assert summaries[0]["truncated"] == 12
    assert said == ["medqa, dev: 12 questions; skipped: nothing", *cut]
    for way, summary in zip(ways, summaries, strict=True):
        folder = out / way.replace(" ", "_")
        assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
        assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(summary))
        items = read_items(folder)
        assert [item["id"] for item in items] == [f"q{n}" for n in range(12)]
        assert [item["gold"] for item in items] == [n % 4 for n in range(12)]
        assert summary["accuracy"]["value"] == pytest.approx(accuracy(items))
        assert summary["what"].endswith(f"release, {way}")
        assert (summary["n"], summary["task"]) == (12, "medqa, dev")
        assert summary["truncated"] == sum(item["truncated"] for item in items)
        assert summary["published_percent"]["BioMedLM"] == 50.3
        assert (summary["baseline"], summary["seeds"]) == (None, None)


def test_a_report_of_several_ways_can_be_written_again(reported, release, medqa, monkeypatch):
    out, before, _ = reported
    answers = {
        summary["what"].rsplit(", ", 1)[1]: read_items(folder)
        for summary, folder in zip(
            before,
            [out / name for name in ("letter", *(way.replace(" ", "_") for way in WAYS))],
            strict=True,
        )
    }

    def again(gpt, tokenizer, examples, task, *, mode, **options):
        return {way: items for way, items in answers.items() if way.split()[0] == mode}

    monkeypatch.setattr(evaluation, "score", again)
    read = {"task": "medqa", "path": medqa, "split": "dev", "notify": silent}
    with pytest.raises(FileExistsError, match="exists; name another directory, or pass --overwr"):
        evaluate([release], out, **read)
    assert evaluate([release], out, overwrite=True, **read) == before


def test_a_tuned_model_is_scored_by_its_head(first_seed, seeds, medqa):
    out, summary = first_seed
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert summary["what"].endswith("seed1, classifier")
    model, tokenizer, head = load_tuned(seeds[0])
    examples = read_examples(find_task("medqa"), medqa, split="dev")
    expected = score(
        model,
        tokenizer,
        examples,
        find_task("medqa"),
        mode="classifier",
        max_length=head.max_length,
    )["classifier"]
    for item, other in zip(read_items(out), expected, strict=True):
        np.testing.assert_allclose(item["scores"], other["scores"], atol=1e-5)
    assert summary["accuracy"]["value"] == pytest.approx(accuracy(expected))


def test_seeds_and_a_baseline(tmp_path, seeds, first_seed, reported, medqa):
    baseline = reported[0] / "option_per_character"
    (summary,) = evaluate(
        seeds,
        tmp_path / "out",
        task="medqa",
        path=medqa,
        split="dev",
        mode="classifier",
        baseline=baseline,
        notify=silent,
    )
    items, before = read_items(tmp_path / "out"), read_items(baseline)
    assert items == read_items(first_seed[0])  # beside the mean, those of the first
    found = summary["seeds"]
    assert found["n"] == 3
    assert found["values"][0] == pytest.approx(accuracy(items))
    assert found["mean"] == pytest.approx(np.mean(found["values"]))
    assert found["deviation"] == pytest.approx(np.std(found["values"], ddof=1))
    right, other = ([i["prediction"] == i["gold"] for i in one] for one in (items, before))
    paired = summary["baseline"]
    assert paired["name"] == str(baseline)
    assert paired["difference"]["value"] == pytest.approx(np.mean(right) - np.mean(other))
    assert paired["only_first"] == sum(a and not b for a, b in zip(right, other, strict=True))
    assert paired["only_second"] == sum(b and not a for a, b in zip(right, other, strict=True))


def test_classes_get_a_macro_f1(tmp_path, classifier, pubmedqa):
    (summary,) = evaluate(
        [classifier], tmp_path / "out", task="pubmedqa", path=pubmedqa, notify=silent
    )
    items = read_items(tmp_path / "out")
    assert [item["options"] for item in items] == [list(CLASSES)] * 6
    assert summary["accuracy"]["value"] == pytest.approx(accuracy(items))
    f1 = []
    for n in {item["gold"] for item in items} | {item["prediction"] for item in items}:
        both = sum((i["gold"] == n) + (i["prediction"] == n) for i in items)
        f1.append(2 * sum(i["gold"] == i["prediction"] == n for i in items) / both)
    assert summary["macro_f1"]["value"] == pytest.approx(np.mean(f1))
    assert summary["truncated"] == sum(item["truncated"] for item in items)


def answering(calls):
    """A stand-in for `score` that answers at once and keeps what it was asked."""

    def score(model, tokenizer, examples, task, **options):
        calls.append({"ids": [example.id for example in examples], **options})
        return {
            options["mode"]: [
                {
                    "id": e.id,
                    "options": list(e.options),
                    "gold": e.label,
                    "prediction": 0,
                    "scores": [0.0] * len(e.options),
                    "probabilities": [1 / len(e.options)] * len(e.options),
                    "truncated": False,
                }
                for e in examples
            ]
        }

    return score


def test_shots_are_the_first_answered_questions_of_train(tmp_path, release, medqa, monkeypatch):
    calls = []
    monkeypatch.setattr(evaluation, "score", answering(calls))
    summaries = evaluate(
        [release], tmp_path / "out", task="medqa", path=medqa, split="dev", shots=2, notify=silent
    )
    letter, option = calls
    assert [shot.id for shot in letter["shots"]] == ["tq0", "tq1"]
    assert (letter["mode"], option["mode"]) == ("letter", "option")
    assert not option["shots"]
    assert summaries[0]["what"].endswith("letter, 2 shots")
    assert summaries[1]["what"].endswith("option")


def test_one_mode_needs_no_folder_of_its_own(tmp_path, release, medqa, monkeypatch):
    calls = []
    monkeypatch.setattr(evaluation, "score", answering(calls))
    read = {"task": "medqa", "path": medqa, "split": "dev", "notify": silent, "mode": "letter"}
    evaluate([release], tmp_path / "out", **read)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        evaluate([release], tmp_path / "out", **read)
    evaluate([release], tmp_path / "out", overwrite=True, **read)
    assert [call["mode"] for call in calls] == ["letter"] * 2


def test_what_is_skipped_is_said(tmp_path, release, root, monkeypatch):
    good = {"question": "q?", "options": ["x", "y"], "label": 0}
    file = write(root / "some.jsonl", [good, {**good, "label": 2}, {**good, "options": ["x"] * 3}])
    said = []
    monkeypatch.setattr(evaluation, "score", answering([]))
    (summary,) = evaluate(
        [release],
        tmp_path / "out",
        task=f"jsonl:{file}",
        mode="option",
        on_error="skip",
        notify=said.append,
    )
    assert summary["n"] == 1
    assert "1 questions; skipped: 2 bad rows" in said[0]


# ---- What is refused, in one line, before anything is computed.


@pytest.fixture
def places(root, release, seeds, classifier, medqa, pubmedqa, tmp_path):
    other = write(tmp_path / "other.jsonl", [{**item, "id": "z" + item["id"]} for item in ITEMS])
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    mute = export_hf(GPT(CONFIG, key=jax.random.key(0)), None, tmp_path / "mute")
    return {
        "lm": release,
        "seed": seeds[0],
        "classifier": classifier,
        "medqa": medqa,
        "pubmedqa": pubmedqa,
        "other": other,
        "full": full,
        "mute": mute,
        "new": tmp_path / "new",
    }


ITEMS = [
    {
        "id": f"q{n}",
        "gold": n % 4,
        "prediction": 0,
        "scores": [0.0] * 4,
        "probabilities": [0.25] * 4,
        "options": list("abcd"),
        "truncated": False,
    }
    for n in range(12)
]
REFUSED = {
    "no model": ({"models": []}, "at least one model"),
    "unknown task": ({"task": "medqq"}, "got the task 'medqq'; the tasks are"),
    "unknown split": ({"split": "tset"}, "no split 'tset'"),
    "unknown on_error": ({"on_error": "ignore"}, "on_error='ignore'"),
    "no fold": ({"fold": 3}, "got fold 3"),
    "no such file": ({"path": "nowhere"}, "no such file or directory: nowhere"),
    "no path": ({"path": None}, "needs the path of its data"),
    "no such model": ({"models": ["nowhere"]}, "nowhere"),
    "second model missing": ({"models": ["{lm}", "nowhere"]}, "nowhere"),
    "second seed missing": ({"models": ["{seed}", "nowhere"]}, "nowhere"),
    "tuned and not": ({"models": ["{seed}", "{lm}"]}, "is fine-tuned and"),
    "head asked of a language model": ({"mode": "classifier"}, "mode=classifier does not fit"),
    "options asked of a head": ({"models": ["{seed}"], "mode": "option"}, "mode=option does not"),
    "head of another kind": ({"models": ["{classifier}"]}, "has a classification head"),
    "second head of another kind": (
        {"models": ["{seed}", "{classifier}"]},
        "has a classification head",
    ),
    "no tokenizer": ({"models": ["{mute}"]}, "has no tokenizer"),
    "secret answers": ({"split": "test"}, "label"),
    "too many shots": ({"shots": 9}, "got shots=9; train has 3 with answers"),
    "shots without letters": ({"shots": 1, "mode": "option"}, "shots=1"),
    "negative shots": ({"shots": -1}, "shots=-1"),
    "shots among the questions": ({"shots": 2, "path": "{medqa}/dev.jsonl"}, "shots"),
    "shots of the same split": ({"shots": 2, "split": "train"}, "shots"),
    "no such baseline": ({"baseline": "nowhere"}, "nowhere"),
    "baseline of other questions": ({"baseline": "{other}"}, "differ in questions"),
    "baseline that is no report": ({"baseline": "{medqa}/dev.jsonl"}, "dev.jsonl, line 1"),
    "somebody's directory": ({"out": "{full}"}, "which is no part of a report"),
    "somebody's directory, forced": ({"out": "{full}", "overwrite": True}, "no part of a report"),
    "a file for a directory": ({"out": "{medqa}/dev.jsonl"}, "is a file; name a directory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_at_once(case, places, monkeypatch):
    changes, said = REFUSED[case]
    calls = []
    monkeypatch.setattr(evaluation, "score", answering(calls))
    asked = {"models": ["{lm}"], "out": "{new}", "task": "medqa", "path": "{medqa}", "split": "dev"}
    asked = {**asked, **changes}
    for name, value in asked.items():
        if isinstance(value, str):
            asked[name] = value.format(**places)
    asked["models"] = [model.format(**places) for model in asked["models"]]
    models, out = asked.pop("models"), asked.pop("out")
    with pytest.raises(cli.INPUT_ERRORS) as caught:
        evaluate(models, out, notify=silent, **asked)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert calls == []
    assert not places["new"].exists()
    assert [path.name for path in places["full"].iterdir()] == ["notes.txt"]


def test_an_unknown_mode_lists_the_known_ones(tmp_path, release, medqa):
    read = {"task": "medqa", "path": medqa, "split": "dev", "mode": "letters", "notify": silent}
    with pytest.raises(ValueError, match=r"mode='letters'; choose one of .*letter, option, class"):
        evaluate([release], tmp_path / "out", **read)
    assert not (tmp_path / "out").exists()


# ---- The command line.


def run(*arguments):
    command.FLAGS.unparse_flags()  # a repeated flag would add to the last call's
    return cli.main(["evaluate", *map(str, arguments)])


def test_the_command_prints_the_table(tmp_path, seeds, medqa, capsys):
    where = [f"--path={medqa}", "--split=dev", f"--out={tmp_path / 'out'}"]
    assert run(f"--model={seeds[0]}", f"--model={seeds[1]}", "--task=medqa", *where) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "report.json").read_text())
    assert summary["seeds"]["n"] == 2
    assert (tmp_path / "out" / "report.md").read_text().strip() in printed
    assert printed.splitlines()[0] == "medqa, dev: 12 questions; skipped: nothing"
    assert printed.splitlines()[-1] == f"wrote {tmp_path / 'out'}"
    assert run(f"--model={seeds[0]}", "--task=medqa", *where) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("biomedlm evaluate: error: ")
    assert "pass --overwrite" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--model"),
        (["--model=nowhere", "--out=o"], "--task"),
        (["--model=nowhere", "--out=o", "--task=medqa", "--shots=-1"], "shots"),
        (["--model=nowhere", "--out=o", "--task=medqa", "--batch_tokens=1"], "batch_tokens"),
        (["--model=nowhere", "--out=o", "--task=medqa", "--modes=letter"], "modes"),
        (["--model=nowhere", "--out=o", "--task=medqa", "stray"], "'stray'"),
        (["--model=nowhere", "--out=o", "--task=medqa", "--path=nowhere"], "nowhere"),
        (["--model=nowhere", "--out=o", "--task=mmlu:a/b"], "got the task 'mmlu:a/b'"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(arguments, said, capsys):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("biomedlm evaluate: error: ")
    assert said in captured.err
    assert captured.out == ""


def test_the_command_in_a_process_of_its_own(tmp_path, release, root):
    good = {"question": "q?", "options": ["x", "y"], "label": 0}
    file = write(root / "own.jsonl", [good, {**good, "options": ["x", "y", "z"], "label": 2}])
    arguments = [f"--model={release}", f"--task=jsonl:{file}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, "-m", "biomedlm_jax.cli", "evaluate", *arguments, "--mode=letter"],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "2 questions" in done.stdout
    assert [len(item["options"]) for item in read_items(tmp_path / "out")] == [2, 3]
