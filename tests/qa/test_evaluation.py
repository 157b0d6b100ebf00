"""evaluation.py: the reports of every kind of model, and what is refused before any work."""

import dataclasses
import datetime
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
from cases import mostly_slow
from tokenizers import Tokenizer

import biomedlm_jax
from biomedlm_jax import mesh as meshes
from biomedlm_jax.corpus.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.finetuned import KEEP_END, Head, load_finetuned, save_finetuned, with_head
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.model.heads import CHOICE, CLASSIFICATION
from biomedlm_jax.model.vocabulary import grow_vocabulary
from biomedlm_jax.qa import calibration, evaluation, models, states
from biomedlm_jax.qa.evaluation import evaluate
from biomedlm_jax.qa.presentation import table
from biomedlm_jax.qa.prompts import ADDED_TOKENS
from biomedlm_jax.qa.questions import questions_hash
from biomedlm_jax.qa.report import FILES, PLOT, read_items, read_seeds
from biomedlm_jax.qa.scoring import NOT_PROBABILITIES, WAYS, score
from biomedlm_jax.qa.splits import read_questions
from biomedlm_jax.qa.tasks import find_task
from biomedlm_jax.training.provenance import weights_hash

CONFIG = GPT2Config(
    vocab_size=280, context_length=64, layers=2, width=64, heads=4, initializer_range=0.2
)
MEDQA_WAYS = (*WAYS["letter"], *WAYS["option"])
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
    return export_hf(GPT2(CONFIG, key=jax.random.key(0)), tokenizer, root / "release")


FACTS = {
    "task": "medqa",
    "dev_accuracy": 40.0,
    "dev_split": "dev",
    "started_from": {"path": "here", "weights": "w" * 64, "questions": "q" * 64},
}


def finetuned(path, tokenizer, kind, *, seed, classes=(), facts=FACTS):
    head = Head(kind=kind, task="medqa", row_format=KEEP_END, max_length=64, classes=classes)
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    added = tokenizer.add_special_tokens(list(ADDED_TOKENS[kind]))
    trunk = grow_vocabulary(GPT2(CONFIG, key=jax.random.key(0)), added, key=jax.random.key(0))
    model = with_head(trunk, head, key=jax.random.key(seed))
    model.score.kernel[...] = 30 * model.score.kernel[...]
    return save_finetuned(path, model, tokenizer, head, step=1, facts=facts)


@pytest.fixture(scope="module")
def seeds(root, tokenizer):
    return [finetuned(root / f"seed{n}", tokenizer, CHOICE, seed=n) for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def classifier(root, tokenizer):
    path = root / "classifier"
    return finetuned(path, tokenizer, CLASSIFICATION, seed=5, classes=CLASSES)


@pytest.fixture(scope="module")
def reported(root, release, medqa):
    """A language model's report: the ways of scoring, each in a folder of its own."""
    out, lines = root / "report", []
    summaries = evaluate([release], out, task="medqa", path=medqa, split="dev", notify=lines.append)
    return out, summaries, lines


@pytest.fixture(scope="module")
def first_seed(root, seeds, medqa):
    out = root / "first"
    (summary,) = evaluate(seeds[:1], out, task="medqa", path=medqa, split="dev", notify=silent)
    return out, summary


def accuracy(items):
    return np.mean([item["prediction"] == item["gold"] for item in items])


# ---- Reports.


def test_a_language_model_is_scored_by_letter_and_by_option(reported):
    out, summaries, lines = reported
    ways = MEDQA_WAYS
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert folders == sorted(w.replace(" ", "_") for w in ways)
    # A model of so few positions cuts questions, and the count is printed beside the table.
    cut = [
        f"{way}: {summary['truncated']} of 12 questions were cut to fit"
        for way, summary in zip(ways, summaries, strict=True)
    ]
    assert summaries[0]["truncated"] == 12
    official = "12 questions (the official dev split has 1,272)"
    assert lines == [f"medqa, dev: {official}; skipped: nothing; used: 3 also in train", *cut]
    for way, summary in zip(ways, summaries, strict=True):
        folder = out / way.replace(" ", "_")
        files = {*FILES} - ({PLOT} if way in NOT_PROBABILITIES else set())
        assert {path.name for path in folder.iterdir()} == files
        assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(summary))
        items = read_items(folder)
        assert [item["id"] for item in items] == [f"q{n}" for n in range(12)]
        assert [item["gold"] for item in items] == [n % 4 for n in range(12)]
        assert summary["accuracy"]["value"] == pytest.approx(accuracy(items))
        assert summary["what"].endswith(f"release, {way}")
        assert (summary["n"], summary["task"]) == (12, "medqa, dev")
        assert summary["truncated"] == sum(item["truncated"] for item in items)
        assert (summary["official_n"], summary["published_percent"]) == (1_272, {})
        assert (summary["baseline"], summary["seeds"]) == (None, None)


@pytest.mark.parametrize(
    ("split", "n", "options", "bad", "shown"),
    [
        ("test", 3, "wxyz", 0, 1),
        ("test", 4, "wxyz", 0, 0),
        ("test", 3, "wxyz", 1, 0),
        ("test", 3, "vwxyz", 0, 0),  # MedQA with five options is another task
        ("dev", 3, "wxyz", 0, 0),
    ],
)
def test_published_scores_stand_beside_the_complete_official_split(
    split, n, options, bad, shown, tmp_path, release, monkeypatch
):
    good = {"question": "q?", "options": [*options], "label": 0}
    rows = [*[good] * (n - bad), *[{**good, "label": 9}] * bad]
    file = write(tmp_path / f"{split}.jsonl", rows)
    task = dataclasses.replace(find_task("medqa"), sizes={"test": 3, "dev": 3})
    monkeypatch.setattr(evaluation, "find_task", lambda *_, **__: task)
    monkeypatch.setattr(evaluation, "score", answering([]))
    read = {"task": "medqa", "path": file, "mode": "letter", "on_error": "skip"}
    (summary,) = evaluate(release, tmp_path / "out", notify=silent, **read)
    assert (summary["n"], summary["official_n"]) == (n - bad, 3)
    assert summary["published_percent"] == (task.published if shown else {})


def test_a_report_of_several_ways_can_be_written_again(reported, release, medqa, monkeypatch):
    out, before, _ = reported
    answers = {
        summary["what"].rsplit(", ", 1)[1]: read_items(folder)
        for summary, folder in zip(
            before,
            [out / way.replace(" ", "_") for way in MEDQA_WAYS],
            strict=True,
        )
    }

    def again(model, tokenizer, questions, task, *, mode, **options):
        return {way: items for way, items in answers.items() if way.split()[0] == mode}

    monkeypatch.setattr(evaluation, "score", again)
    read = {"task": "medqa", "path": medqa, "split": "dev", "notify": silent}
    with pytest.raises(InputError, match="exists; name another directory, or pass --overwr"):
        evaluate([release], out, **read)
    after = evaluate([release], out, overwrite=True, **read)
    for summary in (*before, *after):
        summary["provenance"] = {**summary["provenance"], "date": ""}
    assert after == before


def test_a_finetuned_model_is_scored_by_its_head(first_seed, seeds, medqa):
    out, summary = first_seed
    assert {path.name for path in out.iterdir()} == {*FILES, "SHA256SUMS"}
    assert summary["what"].endswith("seed1, classifier")
    model, tokenizer, head = load_finetuned(seeds[0])
    questions = read_questions(find_task("medqa"), medqa, split="dev")
    expected = score(
        model,
        tokenizer,
        questions,
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
    every, before = read_seeds(tmp_path / "out"), read_items(baseline)
    items = read_items(tmp_path / "out")
    assert items == every[0] == read_items(first_seed[0])
    values = [accuracy(one) for one in every]
    over_seeds = summary["seeds"]
    assert over_seeds["n"] == len(every) == 3
    assert len({*values}) > 1
    assert over_seeds["values"] == pytest.approx(values)
    assert over_seeds["mean"] == pytest.approx(np.mean(values))
    assert summary["accuracy"]["value"] == pytest.approx(np.mean(values))
    assert over_seeds["deviation"] == pytest.approx(np.std(over_seeds["values"], ddof=1))
    right = [[i["prediction"] == i["gold"] for i in one] for one in every]
    other = [i["prediction"] == i["gold"] for i in before]
    paired = summary["baseline"]
    assert paired["name"] == str(baseline)
    assert paired["difference"]["value"] == pytest.approx(np.mean(right) - np.mean(other))
    pairs = [(a, b) for one in right for a, b in zip(one, other, strict=True)]
    assert paired["only_first"] == sum(a and not b for a, b in pairs)
    assert paired["only_second"] == sum(b and not a for a, b in pairs)
    # Of a report of several seeds as the baseline all seeds count.
    read = {"task": "medqa", "path": medqa, "split": "dev", "notify": silent}
    (single,) = evaluate(seeds[1], tmp_path / "one", baseline=tmp_path / "out", **read)
    difference = single["baseline"]["difference"]["value"]
    assert difference == pytest.approx(values[1] - np.mean(values))


def test_a_report_states_what_it_is_of(first_seed, seeds, medqa, monkeypatch):
    """The hashes are computed here from the definitions, not by the package."""
    out, summary = first_seed
    states = summary["provenance"]
    model, tokenizer, _ = load_finetuned(seeds[0])
    (described,) = states["models"]
    assert described["weights"] == weights_hash(model)
    assert described["tokenizer"] == tokenizer_hash(tokenizer)
    assert (described["dtype"], described["max_length"]) == ("float32", 64)
    assert described["row_format"] == KEEP_END
    assert described["path"] == str(seeds[0])
    of_each, whole = [], []
    for line in (medqa / "dev.jsonl").read_text().splitlines():
        row = json.loads(line)
        content = ["", row["question"], [*row["options"].values()]]
        of_each.append(hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16])
        _, text, options = content
        whole.append([row["id"], text, options, "ABCD".index(row["answer_idx"]), "", None, ""])
    questions = states["questions"]
    assert questions["hash"] == hashlib.sha256(json.dumps(whole).encode()).hexdigest()
    assert [item["content"] for item in read_items(out)] == of_each
    assert (questions["task"], questions["split"], questions["scored"]) == ("medqa", "dev", 12)
    assert states["shots"] == {"count": 0, "hash": None}
    assert biomedlm_jax.__version__ in states["version"]
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(states["date"])
    assert 0 <= age.total_seconds() < 3600
    assert states["command"]
    text = (out / "report.md").read_text()
    for value in (described["weights"], questions["hash"], states["date"], "float32"):
        assert str(value) in text


@pytest.mark.parametrize(
    ("facts", "split", "biased"),
    [
        (FACTS, "dev", True),
        (FACTS, "train", False),
        ({**FACTS, "task": "medmcqa"}, "dev", False),
        ({k: v for k, v in FACTS.items() if k != "dev_accuracy"}, "dev", False),
    ],
)
def test_the_split_that_chose_the_checkpoint_is_named(
    facts, split, biased, tmp_path, tokenizer, medqa, monkeypatch
):
    monkeypatch.setattr(evaluation, "score", answering([]))
    model = finetuned(tmp_path / "model", tokenizer, CHOICE, seed=1, facts=facts)
    read = {"task": "medqa", "path": medqa, "split": split, "notify": silent}
    (summary,) = evaluate(model, tmp_path / "out", **read)
    assert summary["chose_checkpoint"] == biased
    text = (tmp_path / "out" / "report.md").read_text()
    assert ("This split chose the checkpoint" in text) == biased


def test_skipped_and_cut_questions_stand_in_the_report(tmp_path, release, root):
    good = {"id": "good", "question": "q?", "options": ["x", "y"], "label": 0}
    long = {**good, "id": "long", "question": "Which hormone rises? " * 20}
    file = write(tmp_path / "some.jsonl", [good, long, {**good, "id": "bad", "label": 2}])
    read = {"task": f"jsonl:{file}", "mode": "letter", "on_error": "skip", "notify": silent}
    (summary,) = evaluate(release, tmp_path / "out", **read)
    assert summary["truncated_ids"] == ["long"]
    ((reason, places),) = summary["skipped"]["places"].items()
    assert places == ["some.jsonl:3"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| truncated to fit | 1: long |" in text
    assert f"| bad row: {reason} | 1: some.jsonl:3 |" in text
    assert (
        json.loads((tmp_path / "out" / "report.json").read_text())["skipped"] == summary["skipped"]
    )


@pytest.mark.parametrize(("limit", "n"), [(5, 5), (0.25, 3), (0.01, 1), (99, 12)])
def test_a_limit_scores_the_first_questions(limit, n, tmp_path, release, medqa, monkeypatch):
    monkeypatch.setattr(evaluation, "score", answering([]))
    lines = []
    read = {"task": "medqa", "path": medqa, "split": "dev", "mode": "letter"}
    (summary,) = evaluate(release, tmp_path / "out", limit=limit, notify=lines.append, **read)
    assert [item["id"] for item in read_items(tmp_path / "out")] == [f"q{k}" for k in range(n)]
    assert "(the first of 12)" in lines[0]
    assert summary["provenance"]["questions"]["in_split"] == 12
    assert f"Only the first {n} of 12" in (tmp_path / "out" / "report.md").read_text()


def test_no_published_scores_beside_a_limit(tmp_path, release, medqa, monkeypatch):
    task = dataclasses.replace(find_task("medqa"), sizes={"dev": 12}, published_split="dev")
    monkeypatch.setattr(evaluation, "find_task", lambda *_, **__: task)
    monkeypatch.setattr(evaluation, "score", answering([]))
    read = {"task": "medqa", "path": medqa, "split": "dev", "mode": "letter", "notify": silent}
    for limit, shown in ((None, True), (11, False)):
        (summary,) = evaluate(release, tmp_path / "out", limit=limit, overwrite=True, **read)
        assert bool(summary["published_percent"]) == shown


def test_an_interrupted_evaluation_resumes(tmp_path, release, medqa, monkeypatch):
    """Batches that were scored are not computed again, and the report is the same."""
    read = {"task": "medqa", "path": medqa, "split": "dev", "notify": silent, "batch_tokens": 64}
    evaluate(release, tmp_path / "whole", **read)
    original, calls = states.token_log_probabilities, []

    def interrupting(*arguments):
        calls.append(None)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(states, "token_log_probabilities", interrupting)
    stop, lines = 20, []
    with pytest.raises(KeyboardInterrupt):
        evaluate(release, tmp_path / "out", **read)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").is_dir()
    stop = 0
    evaluate(release, tmp_path / "out", progress=lines.append, **read)
    total = len(calls) - 20
    calls.clear()
    evaluate(release, tmp_path / "again", **read)
    assert len(calls) - total == 18  # 19 were computed, and the last of them was not fetched
    assert lines == ["resuming an interrupted evaluation"] * len(lines) != []
    assert not (tmp_path / "out.partial").exists()
    for way in MEDQA_WAYS:
        assert read_items(tmp_path / "out", way=way) == read_items(tmp_path / "whole", way=way)


def test_a_dev_report_gives_a_temperature_and_a_threshold(tmp_path, release, medqa, root):
    """They are chosen on other questions of the same model."""
    rows = [json.loads(line) for line in (medqa / "dev.jsonl").read_text().splitlines()]
    other = [{**row, "question": f"And {row['question']}"} for row in rows]
    write(tmp_path / "medqa" / "test.jsonl", other)
    read = {"task": "medqa", "mode": "letter", "notify": silent}
    evaluate(release, tmp_path / "dev", path=medqa, split="dev", **read)
    read |= {"path": tmp_path / "medqa", "split": "test", "calibrate": tmp_path / "dev"}
    (summary,) = evaluate(release, tmp_path / "out", risk=0.5, **read)
    chosen = calibration.calibrate(read_items(tmp_path / "dev"), risk=0.5)
    figures = summary["calibrated"]
    assert (figures["temperature"], figures["threshold"]) == chosen[:2]
    assert (
        figures["ece"]
        == calibration.calibrated_metrics(chosen, read_items(tmp_path / "out"))["ece"]
    )
    assert "| abstention |" in (tmp_path / "out" / "report.md").read_text()
    stranger = export_hf(
        GPT2(CONFIG, key=jax.random.key(7)), load_tokenizer(release), tmp_path / "stranger"
    )
    with pytest.raises(ValueError, match=r"is of the weights \w{12}, not .*stranger's; fix: eval"):
        evaluate(stranger, tmp_path / "two", **read)
    with pytest.raises(
        ValueError, match=r"12 questions of .*dev are among those to score, as 'q0'"
    ):
        evaluate(release, tmp_path / "two", **{**read, "path": medqa, "split": "dev"})


def test_the_order_of_the_options_and_the_position_bias(tmp_path, seeds, medqa):
    """A head scores options one by one: every order gets the same answers."""
    read = {"task": "medqa", "path": medqa, "split": "dev", "notify": silent, "orders": 3}
    (summary,) = evaluate(seeds[0], tmp_path / "out", **read)
    figures = summary["shuffled"]
    assert (figures["orders"], figures["consistent"]) == (3, 1)
    assert figures["accuracies"] == [pytest.approx(accuracy(read_items(tmp_path / "out")))] * 3
    assert "| position bias (total variation) |" in (tmp_path / "out" / "report.md").read_text()


def test_a_model_that_always_answers_a_has_a_position_bias(tmp_path, release, medqa, monkeypatch):
    monkeypatch.setattr(evaluation, "score", answering(calls := []))
    read = {"task": "medqa", "path": medqa, "split": "dev", "notify": silent, "mode": "letter"}
    (summary,) = evaluate(release, tmp_path / "out", orders=4, **read)
    figures = summary["shuffled"]
    assert len(calls) == 4
    assert figures["predicted_positions"][0] == 1
    assert figures["bias"] == pytest.approx(1 - figures["gold_positions"][0])
    assert figures["consistent"] < 0.5


def test_the_position_bias_is_of_all_seeds(tmp_path, seeds, medqa, monkeypatch):
    monkeypatch.setattr(evaluation, "score", answering(calls := []))
    read = {"task": "medqa", "path": medqa, "split": "dev", "notify": silent, "orders": 2}
    (summary,) = evaluate(seeds[:2], tmp_path / "out", **read)
    assert len(calls) == 4
    assert summary["shuffled"]["predicted_positions"] == [1, 0, 0, 0]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| accuracy with 2 orders of the options (all seeds) |" in text


def test_the_report_counts_texts_that_spell_a_special_token(tmp_path, release, monkeypatch):
    monkeypatch.setattr(evaluation, "score", answering([]))
    rows = [
        {"id": f"q{n}", "question": text, "options": ["x", "y"], "label": 0}
        for n, text in enumerate(("Is it?", "What is <|endoftext|>?"))
    ]
    read = {"task": f"jsonl:{write(tmp_path / 'test.jsonl', rows)}", "mode": "letter"}
    (summary,) = evaluate(release, tmp_path / "out", notify=silent, **read)
    remark = "spelling a special token, encoded as text"
    assert summary["skipped"]["noted"] == {remark: ["q1"]}
    assert f"| noted: {remark} | 1: q1 |" in (tmp_path / "out" / "report.md").read_text()


def test_subjects_of_medmcqa_are_broken_down(tmp_path, release, monkeypatch):
    monkeypatch.setattr(evaluation, "score", answering([]))
    options = {f"op{letter}": letter for letter in "abcd"}
    rows = [
        {"question": f"{n}?", **options, "cop": 1 + n % 4, "subject_name": subject}
        for n, subject in enumerate(("Anatomy", "Surgery", "Surgery", "Surgery"))
    ]
    path = write(tmp_path / "dev.json", rows)
    read = {"task": "medmcqa", "path": path, "mode": "letter", "notify": silent}
    (summary,) = evaluate(release, tmp_path / "out", **read)
    figures = {name: (one["n"], one["value"]) for name, one in summary["subjects"].items()}
    assert figures == {"Anatomy": (1, 1.0), "Surgery": (3, 0.0)}
    assert "## By subject" in (tmp_path / "out" / "report.md").read_text()


def test_the_training_questions_are_named(tmp_path, tokenizer, medqa, monkeypatch):
    monkeypatch.setattr(evaluation, "score", answering([]))
    facts = {**FACTS, "train_split": "train"}
    model = finetuned(tmp_path / "model", tokenizer, CHOICE, seed=1, facts=facts)
    read = {"task": "medqa", "path": medqa, "split": "train", "notify": silent}
    (summary,) = evaluate(model, tmp_path / "out", **read)
    assert (summary["trained_on"], summary["chose_checkpoint"]) == (True, False)
    assert "was trained on this split" in (tmp_path / "out" / "report.md").read_text()


def test_questions_without_answers_get_predictions(tmp_path, release, medqa):
    read = {"task": "medqa", "mode": "letter", "notify": silent}
    summary, scored = (  # files, since a directory with two equal splits is refused
        evaluate(release, tmp_path / split, path=medqa / f"{split}.jsonl", split=split, **read)[0]
        for split in ("test", "dev")
    )
    items, with_labels = read_items(tmp_path / "test"), read_items(tmp_path / "dev")
    assert [item["gold"] for item in items] == [None] * 12
    for name in ("id", "scores", "prediction", "content"):
        assert [item[name] for item in items] == [item[name] for item in with_labels]
    assert (summary["n"], summary["accuracy"], summary["ece"]) == (12, None, None)
    assert summary["predicted_positions"] == scored["predicted_positions"]
    assert "without a score" in (tmp_path / "test" / "report.md").read_text()
    assert "| 12 | - |" in table([summary])


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
    """A stand-in for `score` that answers at once and records its arguments."""

    def score(model, tokenizer, questions, task, **options):
        calls.append({"ids": [question.id for question in questions], **options})
        items = [
            {
                "id": question.id,
                "group": question.group,
                "subject": question.subject,
                "options": list(question.options),
                "gold": question.label,
                "prediction": 0,
                "scores": [0.0] * len(question.options),
                "probabilities": [1 / len(question.options)] * len(question.options),
                "truncated": False,
            }
            for question in questions
        ]
        return dict.fromkeys(WAYS[options["mode"]], items)

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
    assert summaries[0]["what"].endswith("letter, 2 shots")
    assert summaries[1]["what"].endswith("option")


def test_one_mode_needs_no_folder_of_its_own(tmp_path, release, medqa, monkeypatch):
    calls = []
    monkeypatch.setattr(evaluation, "score", answering(calls))
    read = {"task": "medqa", "path": medqa, "split": "dev", "notify": silent, "mode": "letter"}
    evaluate([release], tmp_path / "out", **read)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, "SHA256SUMS"}
    with pytest.raises(InputError, match="pass --overwrite"):
        evaluate([release], tmp_path / "out", **read)
    evaluate([release], tmp_path / "out", overwrite=True, **read)
    assert [call["mode"] for call in calls] == ["letter"] * 2


def test_skipped_rows_are_counted(tmp_path, release, root, monkeypatch):
    good = {"question": "q?", "options": ["x", "y"], "label": 0}
    file = write(root / "some.jsonl", [good, {**good, "label": 2}, {**good, "options": ["x", ""]}])
    lines = []
    monkeypatch.setattr(evaluation, "score", answering([]))
    summaries = evaluate(
        [release],
        tmp_path / "out",
        task=f"jsonl:{file}",
        mode="option",
        on_error="skip",
        notify=lines.append,
    )
    assert summaries[0]["n"] == 1
    assert "1 question; skipped: 2 bad rows" in lines[0]


def test_a_file_given_by_path_names_its_split(tmp_path, release, medqa, monkeypatch):
    monkeypatch.setattr(evaluation, "score", answering([]))
    lines = []
    where = {"path": medqa / "dev.jsonl", "mode": "letter", "notify": lines.append}
    (summary,) = evaluate(release, tmp_path / "out", task="medqa", **where)
    assert (summary["task"], lines[0].split(":")[0]) == ("medqa, dev", "medqa, dev")


def test_a_file_without_a_split_in_its_name_is_of_the_one_that_is_given(
    tmp_path, release, medqa, monkeypatch
):
    monkeypatch.setattr(evaluation, "score", answering([]))
    file = shutil.copy(medqa / "dev.jsonl", tmp_path / "mydev.jsonl")
    for where in ({"task": "medqa", "path": file}, {"task": f"jsonl:{file}"}):
        for split in (None, "dev"):
            given = {**where, "split": split, "mode": "letter", "notify": silent}
            (summary,) = evaluate(release, tmp_path / "out", overwrite=True, **given)
            assert summary["task"] == f"{where['task']}, {split or 'given file'}"
            assert summary["provenance"]["questions"]["split"] == (split or "given file")
            assert summary["published_percent"] == {}


def test_a_limit_does_not_hide_that_the_split_chose_the_checkpoint(
    tmp_path, tokenizer, medqa, monkeypatch
):
    """However the place of the questions is spelt."""
    monkeypatch.setattr(evaluation, "score", answering([]))
    whole = read_questions(find_task("medqa"), medqa, split="dev")
    facts = {**FACTS, "task": "jsonl:medqa", "dev_questions": questions_hash(whole)}
    model = finetuned(tmp_path / "model", tokenizer, CHOICE, seed=1, facts=facts)
    monkeypatch.chdir(medqa.parent)
    for name in ("medqa", "./medqa", "medqa/dev.jsonl", medqa):
        read = {"task": f"jsonl:{name}", "split": "dev", "limit": 5, "notify": silent}
        (summary,) = evaluate(model, tmp_path / "out", overwrite=True, **read)
        assert (summary["n"], summary["chose_checkpoint"]) == (5, True)


def test_a_train_file_that_cannot_be_read_stands_in_the_report(
    tmp_path, release, medqa, monkeypatch
):
    monkeypatch.setattr(evaluation, "score", answering([]))
    shutil.copy(medqa / "dev.jsonl", tmp_path / "dev.jsonl")
    (tmp_path / "train.jsonl").write_text("{}\n")
    lines = []
    read = {"task": "medqa", "path": tmp_path, "split": "dev", "mode": "letter"}
    evaluate(release, tmp_path / "out", notify=lines.append, **read)
    assert "1 train file that cannot be read, so that shared questions are unknown: " in lines[0]
    assert "noted: train file that cannot be read" in (tmp_path / "out" / "report.md").read_text()


def test_a_directory_of_several_reports_is_a_baseline_way_by_way(
    tmp_path, release, reported, medqa, monkeypatch
):
    monkeypatch.setattr(evaluation, "score", answering([]))
    read = {"task": "medqa", "path": medqa, "split": "dev", "notify": silent}
    summaries = evaluate(release, tmp_path / "out", baseline=reported[0], **read)
    for summary, before in zip(summaries, reported[1], strict=True):
        gain = summary["accuracy"]["value"] - before["accuracy"]["value"]
        assert summary["baseline"]["difference"]["value"] == pytest.approx(gain)


def test_subjects_of_mmlu_in_one_file(tmp_path, release, monkeypatch):
    rows = [
        {"question": f"q{n}?", "options": ["x", "y"], "label": 0, "subject": f"anatomy{n}"}
        for n in range(4)
    ]
    monkeypatch.setattr(evaluation, "score", answering([]))
    where = {"path": write(tmp_path / "dev.jsonl", rows), "mode": "option", "notify": silent}
    for task, n in (("mmlu", 4), ("mmlu:anatomy2", 1)):
        summaries = evaluate(release, tmp_path / "out", task=task, overwrite=True, **where)
        assert {(one["n"], one["task"]) for one in summaries} == {(n, f"{task}, dev")}


def test_a_format_and_groups(tmp_path, release, monkeypatch):
    rows = [
        {"question": f"q{n}?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 1 + n % 4}
        | {"group": f"topic {n % 3}"}
        for n in range(6)
    ]
    monkeypatch.setattr(evaluation, "score", answering([]))
    file = write(tmp_path / "mine.jsonl", rows)
    read = {"format": "medmcqa", "mode": "letter", "notify": silent}
    (summary,) = evaluate(release, tmp_path / "out", task=f"jsonl:{file}", **read)
    assert (summary["n"], summary["groups"], summary["task"]) == (6, 3, f"jsonl:{file}, given file")
    assert [item["group"] for item in read_items(tmp_path / "out")] == [
        "topic 0",
        "topic 1",
        "topic 2",
    ] * 2


@pytest.mark.parametrize("kind", mostly_slow(["language model", "classifier"], ["language model"]))
def test_a_mesh_changes_no_answer(tmp_path, release, classifier, pubmedqa, kind):
    model = release if kind == "language model" else classifier
    mode = "letter" if kind == "language model" else "auto"
    read = {"task": "pubmedqa", "path": pubmedqa, "mode": mode, "notify": silent}
    for name, mesh in (("one", None), ("mesh", meshes.make_mesh(data=2, fsdp=2, tensor=2))):
        evaluate(model, tmp_path / name, mesh=mesh, compute_dtype="float32", **read)
    one, other = (read_items(tmp_path / name) for name in ("one", "mesh"))
    assert [item["prediction"] for item in one] == [item["prediction"] for item in other]
    scores = ([item["scores"] for item in items] for items in (one, other))
    np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-4)  # of logits up to 80


# ---- Bad input: one line, before anything is computed.


@pytest.fixture
def places(root, tokenizer, release, seeds, classifier, medqa, pubmedqa, tmp_path):
    other = write(tmp_path / "other.jsonl", [{**item, "id": "z" + item["id"]} for item in ITEMS])
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    copied = tmp_path / "copied"
    write(copied / "train.jsonl", map(json.loads, (medqa / "dev.jsonl").read_text().splitlines()))
    shutil.copy(copied / "train.jsonl", copied / "dev.jsonl")
    shutil.copytree(release, tmp_path / "lm_copy")
    start = {**FACTS["started_from"], "weights": "v" * 64}
    stranger = finetuned(
        tmp_path / "stranger", tokenizer, CHOICE, seed=9, facts={**FACTS, "started_from": start}
    )
    rows = [
        {"id": n, "question": f"{n}?", "options": ["x", "y"], "label": n or None} for n in (0, 1)
    ]
    mute = export_hf(GPT2(CONFIG, key=jax.random.key(0)), None, tmp_path / "mute")
    return {
        "lm": release,
        "seed": seeds[0],
        "classifier": classifier,
        "medqa": medqa,
        "pubmedqa": pubmedqa,
        "other": other,
        "renamed": write(tmp_path / "renamed.jsonl", ITEMS),
        "full": full,
        "mute": mute,
        "copied": copied,
        "mute_copy": tmp_path / "lm_copy",
        "stranger": stranger,
        "half": write(tmp_path / "test.jsonl", rows),
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
    "unknown task": ({"task": "medqq"}, "got 'medqq'"),
    "unknown split": ({"split": "tset"}, "got 'tset'"),
    "unknown on_error": ({"on_error": "ignore"}, "got 'ignore'"),
    "no fold": ({"fold": 3}, "got 3"),
    "no such file": ({"path": "nowhere"}, "no such file or directory: nowhere"),
    "no path": ({"path": None}, "needs the path of its data"),
    "no such model": ({"models": ["nowhere"]}, "nowhere"),
    "second model missing": ({"models": ["{lm}", "nowhere"]}, "nowhere"),
    "second seed missing": ({"models": ["{seed}", "nowhere"]}, "nowhere"),
    "a seed twice": ({"models": ["{seed}", "{seed}"]}, "has the same weights as"),
    "fine-tuned and not": ({"models": ["{seed}", "{lm}"]}, "is fine-tuned and"),
    "no head for mode=classifier": ({"mode": "classifier"}, "mode=classifier does not fit"),
    "head without letters or options": (
        {"models": ["{seed}"], "mode": "option"},
        "mode=option does not",
    ),
    "head of another kind": (
        {"models": ["{classifier}"]},
        "has a classification head ['maybe', 'no', 'yes'] (fine-tuned on medqa), and medqa needs",
    ),
    "second head of another kind": (
        {"models": ["{seed}", "{classifier}"]},
        "has a classification head",
    ),
    "mesh that does not divide the model": ({"mesh": {"fsdp": 1, "tensor": 8}}, "mesh.tensor=8"),
    "baseline of the same ids on other questions": (
        {"baseline": "{renamed}"},
        "the results are of other questions: 12 lists of options differ, as of 'q0'",
    ),
    "no order": ({"orders": 0}, "got orders=0"),
    "orders of classes": (
        {"task": "pubmedqa", "path": "{pubmedqa}", "split": "test", "orders": 2},
        "got orders=2 for pubmedqa, test; expected at least 1, and 1 for classes",
    ),
    "a risk of nothing": ({"risk": 0.1}, "got risk=0.1 without calibrate"),
    "no dev report": ({"calibrate": "nowhere", "mode": "letter"}, "nowhere"),
    "calibration of itself": ({"calibrate": "{other}", "risk": 2.0}, "got risk=2.0"),
    "no questions at all": ({"limit": 0}, "got limit=0"),
    "half a question": ({"limit": 1.5}, "got limit=1.5"),
    "no number of questions": ({"limit": float("nan")}, "got limit=nan"),
    "unknown format": ({"format": "csv"}, "got 'csv'"),
    "no tokenizer": ({"models": ["{mute}"]}, "has no tokenizer"),
    "no labels and a baseline": (
        {"split": "test", "baseline": "{other}"},
        "the 12 questions of medqa, test have no labels; fix: leave out --baseline",
    ),
    "some labels": ({"path": "{half}", "split": "test"}, "test.jsonl:2: has a label, unlike"),
    "seeds without a record": (
        {"models": ["{lm}", "{mute_copy}"]},
        "does not state what it was tr",
    ),
    "seeds of another training": (
        {"models": ["{seed}", "{stranger}"]},
        "differ in started_from.weights; several --model are seeds of one training",
    ),
    "too many shots": ({"shots": 9}, "got shots=9; train has 3 with answers"),
    "shots without letters": ({"shots": 1, "mode": "option"}, "shots=1"),
    "negative shots": ({"shots": -1}, "shots=-1"),
    "shots among the questions": ({"shots": 2, "path": "{medqa}/dev.jsonl"}, "shots"),
    "shots of the same split": ({"shots": 2, "split": "train"}, "shots"),
    "no such baseline": ({"baseline": "nowhere"}, "nowhere"),
    "baseline of other questions": ({"baseline": "{other}"}, "differ in questions"),
    "baseline that is no report": ({"baseline": "{medqa}/dev.jsonl"}, "dev.jsonl:1"),
    "dev is a copy of train": (
        {"path": "{copied}"},
        "train and dev of {copied} have the same 12 questions; fix: give each split its own file",
    ),
    "a foreign directory": ({"out": "{full}"}, "never overwritten"),
    "a foreign directory, forced": ({"out": "{full}", "overwrite": True}, "never overwritten"),
    "a file for a directory": ({"out": "{medqa}/dev.jsonl"}, "is a file; name a directory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_before_any_work(case, places, monkeypatch):
    changes, message = REFUSED[case]
    calls = []
    monkeypatch.setattr(evaluation, "score", answering(calls))
    given = {"models": ["{lm}"], "out": "{new}", "task": "medqa", "path": "{medqa}", "split": "dev"}
    given |= changes
    for name, value in given.items():
        if isinstance(value, str):
            given[name] = value.format(**places)
    given["models"] = [model.format(**places) for model in given["models"]]
    if "mesh" in given:
        given["mesh"] = meshes.make_mesh(**given["mesh"])
    models, out = given.pop("models"), given.pop("out")
    with pytest.raises(InputError) as caught:
        evaluate(models, out, notify=silent, **given)
    assert message.replace("{copied}", str(places["copied"])) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert calls == []
    assert not places["new"].exists()
    assert [path.name for path in places["full"].iterdir()] == ["notes.txt"]


def test_every_seed_is_loaded_once(tmp_path, seeds, medqa, monkeypatch):
    """A copy of a seed is refused as soon as it is loaded."""
    calls, loaded, original = [], [], evaluation.load_model
    monkeypatch.setattr(evaluation, "score", answering(calls))
    for module in (evaluation, models):
        monkeypatch.setattr(module, "load_model", lambda path, *arguments, **execution: (
            loaded.append(path), original(path, *arguments, **execution))[1])  # fmt: skip
    read = {"task": "medqa", "path": medqa, "split": "dev", "notify": silent}
    evaluate(seeds, tmp_path / "out", **read)
    assert loaded == seeds
    shutil.copytree(seeds[0], tmp_path / "copy")
    calls.clear()
    with pytest.raises(ValueError, match=r"copy has the same weights as .*seed1; fix: name each"):
        evaluate([*seeds[:2], tmp_path / "copy"], tmp_path / "two", **read)
    assert len(calls) == 2
    assert not (tmp_path / "two").exists()


def test_an_unknown_mode_lists_the_known_ones(tmp_path, release, medqa):
    read = {"task": "medqa", "path": medqa, "split": "dev", "mode": "letters", "notify": silent}
    with pytest.raises(ValueError, match=r"mode='letters'; choose one of .*letter, option, class"):
        evaluate([release], tmp_path / "out", **read)
    assert not (tmp_path / "out").exists()
