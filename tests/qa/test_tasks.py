"""tasks.py: every task finds its files and reads them, and the real sets have their sizes."""

import json
from collections import Counter

import pytest

from biomedlm_jax.qa.tasks import (
    TASKS,
    Example,
    Skipped,
    find_task,
    majority,
    read_examples,
)

CHOICE = {"question": "q?", "options": {"A": "x", "B": "y"}, "answer_idx": "B"}
PAIR = {"sentence1": "q?", "sentence2": "c", "label": "no"}


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("name", TASKS)
def test_the_table_is_consistent(name):
    task = TASKS[name]
    assert find_task(name) is task
    assert task.name == name
    assert task.kind in ("choice", "classification")
    assert bool(task.classes) == (task.kind == "classification")
    assert list(task.classes) == sorted(set(task.classes))
    assert task.published_split in task.splits
    assert set(task.sizes) <= set(task.splits)
    assert all(25 < score < 100 for score in task.published.values())
    assert ("macro_f1" in task.metrics) == (task.kind == "classification")
    hash(task)


def test_published_scores():
    assert TASKS["medqa"].published["BioMedLM with MedMCQA data"] == 54.7
    assert TASKS["mmlu:medical_genetics"].published["BioMedLM"] == 69.0
    assert TASKS["mmlu:anatomy"].published == {}
    assert (TASKS["medmcqa"].published_split, TASKS["pubmedqa"].published_split) == ("dev", "test")


def test_any_subject_of_mmlu_is_a_task():
    task = find_task("mmlu:virology")
    assert (task.kind, task.subject, task.splits) == ("choice", "virology", ("dev", "val", "test"))


@pytest.mark.parametrize("name", ["medqq", "", "mmlu", "mmlu:", "mmlu:a/b", "jsonl:", "MedQA"])
def test_an_unknown_task_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"got the task .*; the tasks are medmcqa, medqa.*jsonl:<"):
        find_task(name)


ROWS = {
    ("medqa", "dev.jsonl"): CHOICE,
    ("medqa", "phrases_no_exclude_dev.jsonl"): {**CHOICE, "answer": "y", "meta_info": "step1"},
    ("medqa", "dev.json"): {"sent1": "q?", "sent2": "", "ending0": "x", "ending1": "y", "label": 1},
    ("medmcqa", "dev.jsonl"): {**CHOICE, "topic": None, "choice_type": "multi"},
    ("medmcqa", "dev.json"): {
        "id": "i",
        "question": "q?",
        "opa": "x",
        "opb": "y",
        "opc": "z",
        "opd": "u",
        "cop": 2,
        "choice_type": "single",
        "exp": "e",
        "subject_name": "s",
        "topic_name": None,
    },
    ("mmlu:anatomy", "dev.jsonl"): {**CHOICE, "subject": "anatomy"},
    ("pubmedqa", "dev.json"): PAIR,
    ("pubmedqa", "dev.jsonl"): PAIR,
    ("bioasq", "dev.json"): PAIR,
}


@pytest.mark.parametrize(("name", "file"), ROWS)
def test_a_task_finds_its_file_in_a_directory(tmp_path, name, file):
    path, task = write(tmp_path / file, ROWS[name, file]), find_task(name)
    found = read_examples(task, tmp_path, split="dev")
    assert found == read_examples(task, str(path), split="dev")
    (example,) = found
    assert example.question == "q?"
    assert example.options[example.label] == ("y" if task.kind == "choice" else "no")


def test_mmlu_in_folders_of_splits(tmp_path):
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "virology_val.csv").write_text("q?,w,x,y,z,C\n")
    (example,) = read_examples(find_task("mmlu:virology"), tmp_path, split="val")
    assert example == Example("virology_val.csv:1", "q?", ("w", "x", "y", "z"), 2)


def test_mmlu_leaves_out_other_subjects_and_counts_them(tmp_path):
    write(tmp_path / "dev.jsonl", *({**CHOICE, "subject": s} for s in ("anatomy", "virology")))
    skipped = Skipped()
    found = read_examples(find_task("mmlu:virology"), tmp_path, split="dev", skipped=skipped)
    assert [example.id for example in found] == ["dev.jsonl:2"]
    assert str(skipped) == "1 of the subject anatomy"
    with pytest.raises(ValueError, match=r"no examples of mmlu:law in .*1 of the subject anatomy"):
        read_examples(find_task("mmlu:law"), tmp_path, split="dev")


def test_both_sources_of_bioasq_give_the_same_example(tmp_path):
    question = {"id": "55", "body": "Is\nit?", "type": "yesno", "exact_answer": "yes"}
    question |= {"snippets": [{"text": "It\nis."}, {"text": "So."}], "ideal_answer": ["Yes."]}
    listed = {"id": "56", "body": "Which?", "type": "list", "exact_answer": [["a"]]}
    (tmp_path / "7b.json").write_text(json.dumps({"questions": [listed, question]}, indent=2))
    (tmp_path / "test.tsv").write_text("55\tIs it?\tIt is. So.\tyes\n")
    task, skipped = find_task("bioasq"), Skipped()
    found = read_examples(task, tmp_path / "7b.json", split="test", skipped=skipped)
    assert found == read_examples(task, tmp_path, split="test")
    assert found == [Example("55", "Is it?", ("no", "yes"), 1, "It is. So.")]
    assert skipped.left_out == {"list questions": 1}


def test_pubmedqa_as_its_own_script_leaves_it(tmp_path):
    article = {"QUESTION": "q?", "CONTEXTS": ["a", "b"], "final_decision": "yes", "LABELS": []}
    (tmp_path / "pqal_fold3").mkdir()
    (tmp_path / "pqal_fold3" / "dev_set.json").write_text(json.dumps({"9": article}))
    (tmp_path / "test_set.json").write_text(json.dumps({"8": article}))
    task = find_task("pubmedqa")
    (dev,) = read_examples(task, tmp_path, split="dev", fold=3)
    assert dev == Example("9", "q?", ("maybe", "no", "yes"), 2, "a\nb")
    assert read_examples(task, tmp_path, split="test", fold=3)[0].id == "8"
    with pytest.raises(ValueError, match=r"no dev file of pubmedqa in .*pqal_fold0/dev_set\.json"):
        read_examples(task, tmp_path, split="dev")


def test_the_rows_of_the_original_are_of_one_fold(tmp_path):
    write(tmp_path / "dev.json", PAIR)
    with pytest.raises(ValueError, match=r"dev\.json is of fold 0 only; fold 1 needs ori_pqal"):
        read_examples(find_task("pubmedqa"), tmp_path, split="dev", fold=1)


def test_somebodys_own_directory_of_choices(tmp_path):
    write(tmp_path / "train.jsonl", CHOICE, {**CHOICE, "options": ["x", "y", "z"]})
    write(tmp_path / "test.jsonl", CHOICE)
    task = find_task(f"jsonl:{tmp_path}")
    assert (task.kind, task.splits, task.metrics) == ("choice", ("train", "test"), ("accuracy",))
    assert [len(e.options) for e in read_examples(task, split="train")] == [2, 3]
    with pytest.raises(ValueError, match="has no split 'dev'; it has train, test"):
        read_examples(task, split="dev")
    with pytest.raises(ValueError, match=r"got the path 'x'; that of jsonl:.* is "):
        read_examples(task, "x", split="train")


def test_the_classes_of_somebodys_own_set_are_those_of_all_its_splits(tmp_path):
    write(tmp_path / "train.jsonl", *({**PAIR, "label": label} for label in ("b", "c", "a", 3)))
    write(tmp_path / "dev.jsonl", {**PAIR, "label": "c"}, {"sentence1": "q?", "label": "b"})
    task = find_task(f"jsonl:{tmp_path}")
    assert (task.kind, task.classes) == ("classification", ("3", "a", "b", "c"))
    assert task.metrics == ("accuracy", "macro_f1")
    assert [e.label for e in read_examples(task, split="dev")] == [3, 2]


def test_a_lone_file_is_a_test_set(tmp_path):
    path = write(tmp_path / "mine.jsonl", CHOICE)
    assert find_task(f"jsonl:{path}").splits == ("test",)
    assert len(read_examples(find_task(f"jsonl:{path}"), split="test")) == 1


def test_somebodys_own_set_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        find_task(f"jsonl:{tmp_path}/missing.jsonl")
    with pytest.raises(ValueError, match=r"no questions in .*a set has train\.jsonl, dev"):
        find_task(f"jsonl:{tmp_path}")
    path = write(tmp_path / "mine.jsonl", {"query": "q?"})
    with pytest.raises(ValueError, match=r"no questions in .*mine\.jsonl:1: got the fields query"):
        find_task(f"jsonl:{path}")
    write(path, PAIR, PAIR)
    with pytest.raises(ValueError, match=r"got the classes \['no'\].*at least two"):
        find_task(f"jsonl:{path}")


def test_bad_rows_stop_the_reading_or_are_counted(tmp_path):
    bad = {**CHOICE, "options": ["x", "x "]}
    path = write(tmp_path / "dev.jsonl", CHOICE, bad, *[{}] * 8, {**CHOICE, "id": "last"})
    task = find_task("medqa")
    with pytest.raises(ValueError, match=r"dev\.jsonl:2: got the option 'x' twice; mend") as error:
        read_examples(task, path, split="dev")
    assert str(error.value).endswith("--on_error=skip")
    skipped = Skipped()
    found = read_examples(task, path, split="dev", on_error="skip", skipped=skipped)
    assert [example.id for example in found] == ["dev.jsonl:1", "last"]
    assert (skipped.bad, len(skipped.examples), skipped.examples[0]) == (9, 5, str(error.value))
    write(path, bad)
    with pytest.raises(ValueError, match=r"no examples of medqa in .*; skipped: 1 bad rows, the f"):
        read_examples(task, path, split="dev", on_error="skip")


def test_arguments_are_checked(tmp_path):
    task = find_task("medqa")
    with pytest.raises(ValueError, match="got on_error='ignore'; it is one of raise, skip"):
        read_examples(task, tmp_path, split="dev", on_error="ignore")
    with pytest.raises(ValueError, match="medqa has no split 'val'; it has train, dev, test"):
        read_examples(task, tmp_path, split="val")
    with pytest.raises(ValueError, match="got fold 1; medqa has the folds 0 to 0"):
        read_examples(task, tmp_path, split="dev", fold=1)
    with pytest.raises(ValueError, match="medqa needs the path of its data"):
        read_examples(task, split="dev")
    with pytest.raises(FileNotFoundError, match=r"no such file or directory: .*none"):
        read_examples(task, tmp_path / "none", split="dev")
    write(tmp_path / "other.jsonl", CHOICE)
    with pytest.raises(
        ValueError, match=r"no dev file of medqa in .*\['other\.jsonl'\]; it is cal"
    ):
        read_examples(task, tmp_path, split="dev")


def test_majority():
    examples = [
        Example(str(n), "q", ("x", "y", "z"), label) for n, label in enumerate([0, 2, 2, 1])
    ]
    assert majority(examples) == 50.0
    with pytest.raises(ValueError, match="got 1 of 1 examples without an answer"):
        majority([Example("1", "q", ("x", "y"), None)])
    with pytest.raises(ValueError, match="got 0 of 0 examples"):
        majority([])


def test_the_real_pubmedqa_has_its_splits(real_data):
    task = find_task("pubmedqa")
    parts = {s: read_examples(task, real_data / "pubmedqa", split=s) for s in task.splits}
    assert {split: len(part) for split, part in parts.items()} == task.sizes
    counts = Counter(task.classes[example.label] for example in parts["test"])
    assert counts == {"yes": 276, "no": 169, "maybe": 55}
    assert majority(parts["test"]) == 55.2
    official = json.loads((real_data / "pubmedqa" / "test_ground_truth.json").read_text())
    assert {e.id: task.classes[e.label] for e in parts["test"]} == official
    other = read_examples(task, real_data / "pubmedqa", split="dev", fold=9)
    assert len(other) == 50
    assert not {e.id for e in other} & {e.id for e in parts["dev"]}


def test_the_real_choices_have_their_sizes(real_data):
    assert len(read_examples(TASKS["medqa"], real_data / "medqa", split="dev")) == 1272
    partial = real_data / "medqa" / "train_partial_4opt.jsonl"
    assert len(read_examples(TASKS["medqa"], partial, split="train")) == 796
    skipped, file = Skipped(), real_data / "medmcqa" / "dev_first2000.jsonl"
    with pytest.raises(ValueError, match=r"dev_first2000\.jsonl:45: got the option .* twice"):
        read_examples(TASKS["medmcqa"], file, split="dev")
    found = read_examples(TASKS["medmcqa"], file, split="dev", on_error="skip", skipped=skipped)
    assert (len(found), skipped.bad) == (1987, 13)
    subjects = [task for task in TASKS.values() if task.subject]
    shots = [read_examples(t, real_data / "mmlu_medical", split="dev") for t in subjects]
    assert [len(part) for part in shots] == [5] * 6
