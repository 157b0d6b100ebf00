"""tasks.py: every task finds its files, and the table is consistent."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.qa.formats import FORMATS
from biomedlm_jax.qa.questions import Question
from biomedlm_jax.qa.splits import read_questions
from biomedlm_jax.qa.tasks import GIVEN, SPLITS, TASKS, default_split, find_task, without_directory

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


@pytest.mark.parametrize(
    ("task", "file", "split"),
    [
        ("medqa", "dev.jsonl", "dev"),
        ("medqa", "train_partial_4opt.jsonl", "train"),
        ("medqa", "phrases_no_exclude_test.jsonl.gz", "test"),
        ("medqa", "validation.jsonl", "dev"),
        ("medqa", "questions.jsonl", GIVEN),
        ("medqa", "mydev.jsonl", GIVEN),
        ("medqa", "train_and_dev.jsonl", GIVEN),
        ("mmlu:anatomy", "anatomy_val.csv", "val"),
        ("mmlu", "train.jsonl", GIVEN),
        ("pubmedqa", "ori_pqal.json", "test"),
        ("pubmedqa", "pqal_fold0/dev_set.json", "dev"),
        ("medmcqa", "", "test"),
    ],
)
def test_a_file_is_of_the_split_in_its_name(tmp_path, task, file, split):
    assert default_split(find_task(task), tmp_path / file) == split


def test_a_file_of_all_splits_is_scored_on_test_whatever_its_name(tmp_path):
    task = find_task("pubmedqa", format="pubmedqa_rows")
    assert default_split(task, tmp_path / "pqa_labeled" / "train-00000-of-00001.parquet") == "test"


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


def test_an_own_file_is_of_the_split_in_its_name_or_of_the_one_that_is_given(tmp_path):
    of_name = ("dev",), "dev"
    for name, expected in (("mydev.jsonl", (SPLITS, GIVEN)), ("my_dev.jsonl", of_name)):
        task = find_task(f"jsonl:{write(tmp_path / name, CHOICE)}")
        assert (task.splits, default_split(task)) == expected
        for split in {*task.splits, default_split(task)}:
            assert len(read_questions(task, split=split)) == 1
    with pytest.raises(ValueError, match="has the splits dev, got 'test'"):
        read_questions(task, split="test")
    with pytest.raises(ValueError, match="has the splits dev, got 'given file'"):
        read_questions(task, split=GIVEN)


def test_the_name_of_an_own_set_may_be_stated_without_its_place(tmp_path, monkeypatch):
    (tmp_path / "q").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("q", "./q", "q/", f"{tmp_path}/q", "q/../q"):
        assert without_directory(f"jsonl:{name}") == "jsonl:q"
    assert without_directory("jsonl:q/dev.jsonl") == "jsonl:dev.jsonl"
    assert without_directory("mmlu:anatomy") == "mmlu:anatomy"


def test_an_own_set_without_questions(tmp_path):
    with pytest.raises(InputError, match="no such file or directory"):
        find_task(f"jsonl:{tmp_path}/missing.jsonl")
    with pytest.raises(ValueError, match=r"no questions in .*: expected some of train\.jsonl, dev"):
        find_task(f"jsonl:{tmp_path}")
    path = write(tmp_path / "mine.jsonl", PAIR, PAIR)
    with pytest.raises(
        ValueError,
        match=r"mine\.jsonl:1: format qu.* fix: --format=sentences \(config\.task\.format\); fix",
    ):
        read_questions(find_task(f"jsonl:{path}"), split="test")
    with pytest.raises(ValueError, match=r"expected at least two classes in .*, got no$"):
        find_task(f"jsonl:{path}", format="sentences")


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


def test_parquet_in_a_directory_of_a_task_names_its_format(tmp_path):
    rows = [{"question": "q?", "choices": ["x", "y"], "answer": 1}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"no test file of mmlu.*; fix: --format=choices$"):
        read_questions(find_task("mmlu"), tmp_path, split="test")


def test_classes_that_are_no_names_are_refused_with_the_first_row(tmp_path):
    file = write(tmp_path / "test.jsonl", *({**PAIR, "label": label} for label in (True, False)))
    with pytest.raises(ValueError, match=r"got none; .*jsonl:1: expected text for label, got bool"):
        find_task(f"jsonl:{file}", format="sentences")


def test_validation_is_dev_but_of_mmlu_it_is_val(tmp_path):
    write(tmp_path / "validation.jsonl", CHOICE)
    assert len(read_questions(find_task("medqa"), tmp_path, split="dev")) == 1
    mmlu = find_task("mmlu")
    assert len(read_questions(mmlu, tmp_path, split="val")) == 1
    assert default_split(mmlu, tmp_path / "validation.jsonl") == "val"
    with pytest.raises(ValueError, match="no dev file of mmlu"):
        read_questions(mmlu, tmp_path, split="dev")


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_a_compressed_file_in_a_directory_is_found(tmp_path, suffix):
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    (tmp_path / f"dev.jsonl{suffix}").write_bytes(compress(json.dumps(CHOICE).encode()))
    assert len(read_questions(find_task("medqa"), tmp_path, split="dev")) == 1


def test_a_directory_without_the_last_split_names_the_one_to_score(tmp_path):
    write(tmp_path / "dev.jsonl", CHOICE)
    with pytest.raises(
        ValueError, match=r"no test file of medqa .*; fix: --split=dev to score the"
    ):
        read_questions(find_task("medqa"), tmp_path, split="test")
    with pytest.raises(ValueError, match=r"no train file of medqa .*; fix: rename it, or give the"):
        read_questions(find_task("medqa"), tmp_path, split="train")
