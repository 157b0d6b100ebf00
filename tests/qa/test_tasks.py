"""tasks.py: every task finds its files and reads them, and the real sets have their sizes."""

import bz2
import gzip
import json
import lzma
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedlm_jax.qa.formats import FORMATS
from biomedlm_jax.qa.questions import Question, Skipped
from biomedlm_jax.qa.tasks import (
    TASKS,
    check_splits,
    default_split,
    find_task,
    read_questions,
    read_shots,
)

CHOICE = {"question": "q?", "options": {"A": "x", "B": "y"}, "answer_idx": "B"}
PAIR = {"sentence1": "q?", "sentence2": "c", "label": "no"}
ENDINGS = {"sent1": "q?", "sent2": "", "ending0": "x", "ending1": "y", "label": 1}
ABCD = {"id": "i", "question": "q?", "opa": "x", "opb": "z", "opc": "u", "opd": "y", "cop": 4}


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("name", TASKS)
def test_the_table_is_consistent(name):
    task = TASKS[name]
    assert find_task(name) is task
    assert task.name == name
    assert {FORMATS[format].kind for format in task.files.values()} == {task.kind}
    assert bool(task.classes) == (task.kind == "classification")
    assert list(task.classes) == sorted(set(task.classes))
    assert task.published_split in task.splits
    assert set(task.sizes) <= set(task.splits)
    assert task.published_split in task.sizes or not task.published
    assert all(25 < score < 100 for score in task.published.values())
    hash(task)


def test_published_scores():
    assert TASKS["medqa"].published["BioMedLM with MedMCQA data"] == 54.7
    assert TASKS["mmlu:medical_genetics"].published["BioMedLM"] == 69.0
    assert TASKS["mmlu:anatomy"].published == {}
    assert (TASKS["medmcqa"].published_split, TASKS["pubmedqa"].published_split) == ("dev", "test")


def test_another_number_of_questions_than_the_official_one_is_noted():
    task = TASKS["medqa"]
    assert task.unlike_official("dev", 1_272) == ""
    assert task.unlike_official("dev", 12) == " (the official dev split has 1,272)"
    assert TASKS["mmlu"].unlike_official("dev", 12) == ""


def test_any_subject_of_mmlu_is_a_task():
    task = find_task("mmlu:virology")
    assert (task.kind, task.subject, task.splits) == ("choice", "virology", ("dev", "val", "test"))


@pytest.mark.parametrize("name", ["medqq", "", "mmlu:", "mmlu:a/b", "jsonl:", "MedQA"])
def test_an_unknown_task_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=r"expected a task among mmlu, medmcqa, medqa.*jsonl:<"):
        find_task(name)


ROWS = {
    ("medqa", "dev.jsonl"): CHOICE,
    ("medqa", "phrases_no_exclude_dev.jsonl"): {**CHOICE, "answer": "y", "meta_info": "step1"},
    ("medqa", "dev.json"): ENDINGS,
    ("medmcqa", "dev.jsonl"): {**CHOICE, "topic": None, "choice_type": "multi"},
    ("medmcqa", "dev.json"): {**ABCD, "exp": "e", "subject_name": "s", "topic_name": None},
    ("mmlu", "dev.jsonl"): {**CHOICE, "subject": "anatomy"},
    ("mmlu:anatomy", "dev.jsonl"): {**CHOICE, "subject": "anatomy"},
    ("pubmedqa", "dev.json"): PAIR,
    ("pubmedqa", "dev.jsonl"): PAIR,
    ("bioasq", "dev.json"): PAIR,
}


@pytest.mark.parametrize(("name", "file"), ROWS)
def test_a_task_finds_its_file_in_a_directory(tmp_path, name, file):
    path, task = write(tmp_path / file, ROWS[name, file]), find_task(name)
    questions = read_questions(task, tmp_path, split="dev")
    assert questions == read_questions(task, str(path), split="dev")
    (question,) = questions
    assert question.question == "q?"
    assert question.options[question.label] == ("y" if task.kind == "choice" else "no")


def test_mmlu_in_folders_of_splits(tmp_path):
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "virology_val.csv").write_text("q?,w,x,y,z,C\n")
    (question,) = read_questions(find_task("mmlu:virology"), tmp_path, split="val")
    assert question == Question(
        "virology_val.csv:1", "q?", ("w", "x", "y", "z"), 2, subject="virology"
    )


def test_mmlu_leaves_out_other_subjects_and_counts_them(tmp_path):
    write(tmp_path / "dev.jsonl", *({**CHOICE, "subject": s} for s in ("anatomy", "virology")))
    skipped = Skipped()
    questions = read_questions(find_task("mmlu:virology"), tmp_path, split="dev", skipped=skipped)
    assert [question.id for question in questions] == ["dev.jsonl:2"]
    assert str(skipped) == "1 of the subject anatomy"
    with pytest.raises(ValueError, match=r"no questions of mmlu:law in .*1 of the subject anatomy"):
        read_questions(find_task("mmlu:law"), tmp_path, split="dev")


def test_both_sources_of_bioasq_give_the_same_question(tmp_path):
    question = {"id": "55", "body": "Is\nit?", "type": "yesno", "exact_answer": "yes"}
    question |= {"snippets": [{"text": "It\nis."}, {"text": "So."}], "ideal_answer": ["Yes."]}
    listed = {"id": "56", "body": "Which?", "type": "list", "exact_answer": [["a"]]}
    (tmp_path / "7b.json").write_text(json.dumps({"questions": [listed, question]}, indent=2))
    (tmp_path / "test.tsv").write_text("55\tIs it?\tIt is. So.\tyes\n")
    task, skipped = find_task("bioasq"), Skipped()
    questions = read_questions(task, tmp_path / "7b.json", split="test", skipped=skipped)
    assert questions == read_questions(task, tmp_path, split="test")
    assert questions == [Question("55", "Is it?", ("no", "yes"), 1, "It is. So.")]
    assert skipped.left_out == {"list questions": ["56"]}


def test_pubmedqa_as_its_own_script_leaves_it(tmp_path):
    article = {"QUESTION": "q?", "CONTEXTS": ["a", "b"], "final_decision": "yes", "LABELS": []}
    (tmp_path / "pqal_fold3").mkdir()
    (tmp_path / "pqal_fold3" / "dev_set.json").write_text(json.dumps({"9": article}))
    (tmp_path / "test_set.json").write_text(json.dumps({"8": article}))
    task = find_task("pubmedqa")
    (dev,) = read_questions(task, tmp_path, split="dev", fold=3)
    assert dev == Question("9", "q?", ("maybe", "no", "yes"), 2, "a\nb")
    assert read_questions(task, tmp_path, split="test", fold=3)[0].id == "8"
    with pytest.raises(ValueError, match=r"no dev file of pubmedqa in .*pqal_fold0/dev_set\.json"):
        read_questions(task, tmp_path, split="dev")


def test_the_rows_of_the_original_are_of_one_fold(tmp_path):
    write(tmp_path / "dev.json", PAIR)
    with pytest.raises(ValueError, match=r"dev\.json is of fold 0; fix: fold 1 needs ori_pqal"):
        read_questions(find_task("pubmedqa"), tmp_path, split="dev", fold=1)


def test_all_subjects_of_mmlu_may_be_in_one_file(tmp_path):
    rows = [{**CHOICE, "subject": s} for s in ("anatomy", "virology")]
    file, task = write(tmp_path / "dev.jsonl", *rows), find_task("mmlu")
    subjects = [question.subject for question in read_questions(task, file, split="dev")]
    assert subjects == ["anatomy", "virology"]
    assert read_questions(task, tmp_path, split="dev") == read_questions(task, file, split="dev")


@pytest.mark.parametrize(
    ("task", "file", "split"),
    [
        ("medqa", "dev.jsonl", "dev"),
        ("medqa", "train_partial_4opt.jsonl", "train"),
        ("medqa", "phrases_no_exclude_test.jsonl.gz", "test"),
        ("medqa", "validation.jsonl", "dev"),
        ("medqa", "questions.jsonl", "test"),
        ("medqa", "train_and_dev.jsonl", "test"),
        ("mmlu:anatomy", "anatomy_val.csv", "val"),
        ("mmlu", "train.jsonl", "test"),
        ("pubmedqa", "ori_pqal.json", "test"),
        ("pubmedqa", "pqal_fold0/dev_set.json", "dev"),
        ("medmcqa", "", "test"),
    ],
)
def test_a_file_is_of_the_split_in_its_name(tmp_path, task, file, split):
    assert default_split(find_task(task), tmp_path / file) == split


def test_the_format_is_that_of_the_name_or_the_one_that_is_given(tmp_path):
    file = write(tmp_path / "dev.json", CHOICE)
    with pytest.raises(ValueError, match=r"dev\.json:1: format endings needs.*--format=questions"):
        read_questions(find_task("medqa"), tmp_path, split="dev")
    for name in ("dev.json", "dev.xyz"):
        file = file.rename(tmp_path / name)
        task = find_task("medqa", format="questions")
        assert len(read_questions(task, file, split="dev")) == 1
    with pytest.raises(
        ValueError, match=r"unknown format of .*dev\.xyz; fix: --format=questions or"
    ):
        read_questions(find_task("medqa"), file, split="dev")
    with pytest.raises(ValueError, match="format blurb is classification, and medqa is choice"):
        find_task("medqa", format="blurb")
    with pytest.raises(ValueError, match=r"expected a format among questions, .*, got 'json'"):
        find_task("medqa", format="json")


def test_questions_may_be_compressed(tmp_path):
    (tmp_path / "mine_dev.json-lines.gz").write_bytes(gzip.compress(json.dumps(CHOICE).encode()))
    (question,) = read_questions(
        find_task("medqa"), tmp_path / "mine_dev.json-lines.gz", split="dev"
    )
    assert question.label == 1


def test_an_own_directory_of_choices(tmp_path):
    write(tmp_path / "train.jsonl", CHOICE, {**CHOICE, "options": ["x", "y", "z"]})
    write(tmp_path / "test.jsonl", {**CHOICE, "group": "g", "context": "c"})
    task = find_task(f"jsonl:{tmp_path}")
    assert (task.kind, task.splits) == ("choice", ("train", "test"))
    assert [len(q.options) for q in read_questions(task, split="train")] == [2, 3]
    assert [(q.group, q.context) for q in read_questions(task, split="test")] == [("g", "c")]
    with pytest.raises(ValueError, match="has the splits train, test, got 'dev'"):
        read_questions(task, split="dev")
    with pytest.raises(ValueError, match=r"has the path .*, got another one: x"):
        read_questions(task, "x", split="train")


@pytest.mark.parametrize(
    ("format", "file", "text"),
    [
        ("endings", "train.jsonl", json.dumps(ENDINGS)),
        ("medmcqa", "train.jsonl", json.dumps(ABCD)),
        ("mmlu", "train.csv", "q?,x,y,z,u,B\n"),
    ],
)
def test_an_own_set_of_another_format(tmp_path, format, file, text):
    (tmp_path / file).write_text(text)
    for path in (tmp_path, tmp_path / file):
        task = find_task(f"jsonl:{path}", format=format)
        (question,) = read_questions(task, split="train")
        assert (task.splits, question.options[question.label]) == (("train",), "y")


def test_the_classes_of_an_own_set_are_those_of_all_its_splits(tmp_path):
    write(tmp_path / "train.jsonl", *({**PAIR, "label": label} for label in ("b", "c", "a", 3)))
    write(tmp_path / "dev.jsonl", {**PAIR, "label": "c"}, {"sentence1": "q?", "label": "b"})
    task = find_task(f"jsonl:{tmp_path}", format="sentences")
    assert (task.kind, task.classes) == ("classification", ("3", "a", "b", "c"))
    assert [q.label for q in read_questions(task, split="dev")] == [3, 2]


def test_an_own_file_is_of_the_split_in_its_name_or_a_test_set(tmp_path):
    for name, split in (("mine.jsonl", "test"), ("my_dev.jsonl", "dev")):
        task = find_task(f"jsonl:{write(tmp_path / name, CHOICE)}")
        assert (task.splits, default_split(task)) == ((split,), split)
        assert len(read_questions(task, split=split)) == 1


def test_an_own_set_without_questions(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        find_task(f"jsonl:{tmp_path}/missing.jsonl")
    with pytest.raises(ValueError, match=r"no questions in .*: expected some of train\.jsonl, dev"):
        find_task(f"jsonl:{tmp_path}")
    path = write(tmp_path / "mine.jsonl", PAIR, PAIR)
    with pytest.raises(
        ValueError, match=r"mine\.jsonl:1: format qu.* fix: --format=sentences; fix"
    ):
        read_questions(find_task(f"jsonl:{path}"), split="test")
    with pytest.raises(ValueError, match=r"expected at least two classes in .*, got no$"):
        find_task(f"jsonl:{path}", format="sentences")


def test_bad_rows_stop_the_reading_or_are_counted(tmp_path):
    bad = {**CHOICE, "options": ["x", " "]}
    path = write(tmp_path / "dev.jsonl", CHOICE, bad, *[{}] * 8, {**CHOICE, "id": "last"})
    task = find_task("medqa")
    with pytest.raises(ValueError, match=r"dev\.jsonl:2: empty option B; fix") as error:
        read_questions(task, path, split="dev")
    assert str(error.value).endswith("--on_error=skip")
    skipped = Skipped()
    questions = read_questions(task, path, split="dev", on_error="skip", skipped=skipped)
    assert [question.id for question in questions] == ["dev.jsonl:1", "last"]
    assert (skipped.bad, skipped.error) == (9, str(error.value))
    twice, empty = skipped.places.values()
    assert twice == ["dev.jsonl:2"]
    assert empty == [f"dev.jsonl:{line}" for line in range(3, 11)]
    assert "8 format questions needs the fields" in str(skipped)
    write(path, bad)
    with pytest.raises(ValueError, match=r"no questions of medqa in .*; skipped: 1 bad row, the f"):
        read_questions(task, path, split="dev", on_error="skip")


def test_arguments_are_checked(tmp_path):
    task = find_task("medqa")
    with pytest.raises(ValueError, match="expected on_error among raise, skip, got 'ignore'"):
        read_questions(task, tmp_path, split="dev", on_error="ignore")
    with pytest.raises(ValueError, match="medqa has the splits train, dev, test, got 'val'"):
        read_questions(task, tmp_path, split="val")
    with pytest.raises(ValueError, match="medqa has the folds 0 to 0, got 1"):
        read_questions(task, tmp_path, split="dev", fold=1)
    with pytest.raises(ValueError, match="medqa needs the path of its data"):
        read_questions(task, split="dev")
    with pytest.raises(FileNotFoundError, match=r"no such file or directory: .*none"):
        read_questions(task, tmp_path / "none", split="dev")
    write(tmp_path / "other.jsonl", CHOICE)
    with pytest.raises(
        ValueError, match=r"no dev file of medqa in .*: expected .*\['other\.jsonl'\]; fix"
    ):
        read_questions(task, tmp_path, split="dev")


def test_the_real_pubmedqa_has_its_splits(real_data):
    task = find_task("pubmedqa")
    parts = {s: read_questions(task, real_data / "pubmedqa", split=s) for s in task.splits}
    assert {split: len(part) for split, part in parts.items()} == task.sizes
    counts = Counter(task.classes[question.label] for question in parts["test"])
    assert counts == {"yes": 276, "no": 169, "maybe": 55}
    official = json.loads((real_data / "pubmedqa" / "test_ground_truth.json").read_text())
    assert {q.id: task.classes[q.label] for q in parts["test"]} == official
    other = read_questions(task, real_data / "pubmedqa", split="dev", fold=9)
    assert len(other) == 50
    assert not {q.id for q in other} & {q.id for q in parts["dev"]}


def test_the_real_choices_have_their_sizes(real_data):
    dev = read_questions(TASKS["medqa"], real_data / "medqa", split="dev")
    assert len(dev) == TASKS["medqa"].sizes["dev"]
    partial = real_data / "medqa" / "train_partial_4opt.jsonl"
    assert len(read_questions(TASKS["medqa"], partial, split="train")) == 796
    skipped, file = Skipped(), real_data / "medmcqa" / "dev_first2000.jsonl"
    questions = read_questions(TASKS["medmcqa"], file, split="dev", skipped=skipped)
    truth = [json.loads(line)["answer"] for line in file.read_text().splitlines()]
    assert [q.options[q.label] for q in questions] == truth
    twins = "with two equal options"
    assert (len(questions), skipped.bad, len(skipped.noted[twins])) == (2000, 0, 13)
    skipped = Skipped()
    options = {"split": "dev", "twins": "skip", "skipped": skipped}
    assert len(read_questions(TASKS["medmcqa"], file, **options)) == 1987
    assert len(skipped.left_out[twins]) == 13
    subjects = [task for task in TASKS.values() if task.subject]
    shots = [read_questions(t, real_data / "mmlu_medical", split="dev") for t in subjects]
    assert [len(part) for part in shots] == [task.sizes["dev"] for task in subjects] == [5] * 6
    assert len(read_questions(TASKS["mmlu"], real_data / "mmlu_medical", split="dev")) == 30


# ---- What is not guessed.

MEDMCQA = find_task("medmcqa")


def numbered(path, *numbers):
    return write(path, *({**ABCD, "id": str(n), "cop": cop} for n, cop in enumerate(numbers)))


def labels(path, split="dev", **options):
    return [q.label for q in read_questions(MEDMCQA, path, split=split, **options)]


def test_the_numbers_of_medmcqa_are_those_that_the_file_or_a_sibling_shows(tmp_path):
    dev = numbered(tmp_path / "dev.json", 1, 2, 3)
    for path in (dev, tmp_path):
        with pytest.raises(ValueError, match=r"dev\.json: no cop is 0 and none is 4, here and in"):
            labels(path, on_error="skip")
        assert labels(path, label_base="0") == [1, 2, 3]
        assert labels(path, label_base="1") == [0, 1, 2]
        numbered(tmp_path / "train.json", 1, 4)
        assert labels(path) == [0, 1, 2]
        numbered(tmp_path / "train.json", 1, 0)
        assert labels(path) == [1, 2, 3]
        (tmp_path / "train.json").unlink()


def test_numbers_that_contradict_each_other_are_refused_whatever_may_be_skipped(tmp_path):
    dev = numbered(tmp_path / "dev.json", 0, 4)
    with pytest.raises(ValueError, match=r"json:2: got cop 4, but cop 0 at .*json:1; e"):
        labels(dev, on_error="skip")
    numbered(dev, 1, 4)
    with pytest.raises(ValueError, match=r"json:2: got the answer 4 where options count from 0"):
        labels(dev, on_error="skip", label_base="0")
    numbered(tmp_path / "train.json", 0, 2)
    with pytest.raises(ValueError, match=r"dev\.json:2: got cop 4, but cop 0 at .*train\.json:1"):
        labels(dev, on_error="skip")
    assert labels(dev, label_base="1") == [0, 3]


def test_hidden_answers_need_no_numbers(tmp_path):
    assert labels(numbered(tmp_path / "test.json", -1, -1), "test") == [None, None]


def test_an_own_set_that_counts_from_1_is_not_read_as_if_from_0(tmp_path):
    rows = [{"question": f"q{n}", "options": list("xyz"), "answer": n} for n in (1, 2, 3)]
    path = write(tmp_path / "dev.jsonl", *rows)
    with pytest.raises(ValueError, match=r"jsonl:3: got the answer 3 where options count from 0; "):
        read_questions(find_task("medqa"), path, split="dev", on_error="skip")
    questions = read_questions(find_task("medqa"), path, split="dev", label_base="1")
    assert [q.label for q in questions] == [0, 1, 2]
    with pytest.raises(ValueError, match="expected label_base among auto, 0, 1, got '2'"):
        read_questions(find_task("medqa"), path, split="dev", label_base="2")
    with pytest.raises(ValueError, match="expected twins among keep, skip, got 'drop'"):
        read_questions(find_task("medqa"), path, split="dev", twins="drop")


def test_the_artificial_set_of_pubmedqa_is_for_training(tmp_path):
    article = {"QUESTION": "q?", "CONTEXTS": ["a"], "LONG_ANSWER": "l"}
    rows = {str(n): {**article, "final_decision": "yes" if n % 3 else "no"} for n in range(9)}
    (tmp_path / "ori_pqaa.json").write_text(json.dumps(rows))
    task = find_task("pubmedqa")
    assert len(read_questions(task, tmp_path / "ori_pqaa.json", split="train")) == 9
    with pytest.raises(
        ValueError, match="there is no test split in it; fix: --format=pubmedqa_set"
    ):
        read_questions(task, tmp_path / "ori_pqaa.json", split="test")
    one_split = find_task("pubmedqa", format="pubmedqa_set")
    assert len(read_questions(one_split, tmp_path / "ori_pqaa.json", split="test")) == 9
    (tmp_path / "ori_pqau.json").write_text(json.dumps({"1": article}))
    with pytest.raises(ValueError, match="PubMedQA's unlabelled set"):
        read_questions(task, tmp_path / "ori_pqau.json", split="train")


# ---- Files as they are published.


def test_parts_of_parquet_in_a_directory(tmp_path):
    rows = [{"question": f"q{n}", "choices": ["x", "y"], "answer": n % 2} for n in range(5)]
    (tmp_path / "data").mkdir()
    for part, some in enumerate((rows[:3], rows[3:])):
        path = tmp_path / "data" / f"validation-0000{part}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist(some), path)
    for task, own in ((find_task("medqa", format="choices"), tmp_path), (None, None)):
        task = task or find_task(f"jsonl:{tmp_path}", format="choices")
        questions = read_questions(task, own, split="dev")
        assert [(q.question, q.label) for q in questions] == [(f"q{n}", n % 2) for n in range(5)]
    assert questions[3].id == "validation-00001-of-00002.parquet:1"
    with pytest.raises(ValueError, match=r"unknown format of .*parquet; fix: --format="):
        read_questions(find_task("medqa"), path, split="dev")


def test_validation_is_dev_but_of_mmlu_it_is_val(tmp_path):
    write(tmp_path / "validation.jsonl", CHOICE)
    assert len(read_questions(find_task("medqa"), tmp_path, split="dev")) == 1
    mmlu = find_task("mmlu")
    assert len(read_questions(mmlu, tmp_path, split="val")) == 1
    assert default_split(mmlu, tmp_path / "validation.jsonl") == "val"
    with pytest.raises(ValueError, match="no dev file of mmlu"):
        read_questions(mmlu, tmp_path, split="dev")


def test_all_subjects_of_mmlu_as_published(tmp_path):
    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        for subject in ("anatomy", "virology"):
            lines = "".join(f"{split} {subject} {n}?,w,x,y,z,C\n" for n in range(6))
            (tmp_path / split / f"{subject}_{split}.csv").write_text(lines)
    task, skipped = find_task("mmlu"), Skipped()
    with_answers = read_questions(task, tmp_path, split="test")
    assert [q.subject for q in with_answers] == ["anatomy"] * 6 + ["virology"] * 6
    shots = read_shots(task, tmp_path, 2, with_answers, skipped=skipped)
    assert [q.question for q in shots] == [
        f"dev {subject} {n}?" for subject in ("anatomy", "virology") for n in (0, 1)
    ]
    assert skipped.noted == {}
    with pytest.raises(ValueError, match=r"got shots=7; dev has 6 of .* with answers"):
        read_shots(task, tmp_path, 7, with_answers)
    virology = tmp_path / "test" / "virology_test.csv"
    with pytest.raises(
        ValueError, match=r"no questions of mmlu:anatomy .*6 of the subject virology"
    ):
        read_questions(find_task("mmlu:anatomy"), virology, split="test")


def test_a_shot_that_is_asked_under_another_id_is_noted(tmp_path):
    write(tmp_path / "train.jsonl", {**CHOICE, "id": "a"})
    write(tmp_path / "dev.jsonl", {**CHOICE, "id": "b"}, {**CHOICE, "question": "r?", "id": "c"})
    task, skipped = find_task("medqa"), Skipped()
    with_answers = read_questions(task, tmp_path, split="dev")
    assert len(read_shots(task, tmp_path, 1, with_answers, skipped=skipped)) == 1
    assert skipped.noted == {"equal to a shot, which their prompts leave out": ["b"]}


def test_one_file_is_not_two_splits(tmp_path):
    task, both = find_task("medqa"), write(tmp_path / "all.jsonl", CHOICE)
    (tmp_path / "link.jsonl").symlink_to(both)
    for paths in ((both, both), (both, tmp_path / "link.jsonl")):
        with pytest.raises(
            ValueError, match=r"all\.jsonl has the questions of both train and dev;"
        ):
            check_splits(task, paths, ("train", "dev"))
    other = write(tmp_path / "dev.jsonl", CHOICE)
    check_splits(task, (both, other), ("train", "dev"))
    whole = tmp_path / "ori_pqal.json"
    whole.write_text("{}")
    pubmedqa = find_task("pubmedqa")
    check_splits(pubmedqa, (whole, tmp_path), ("train", "dev"))
    with pytest.raises(ValueError, match=r"has the questions of both dev and dev"):
        check_splits(pubmedqa, (whole, tmp_path), ("dev", "dev"))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_a_compressed_file_in_a_directory_is_found(tmp_path, suffix):
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    (tmp_path / f"dev.jsonl{suffix}").write_bytes(compress(json.dumps(CHOICE).encode()))
    assert len(read_questions(find_task("medqa"), tmp_path, split="dev")) == 1
