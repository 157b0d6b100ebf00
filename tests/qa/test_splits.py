"""splits.py: the questions of each split are read, numbered, and unlike those of the others."""

import gzip
import json
import threading
from collections import Counter

import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.qa import splits
from biomedlm_jax.qa.questions import Question, Skipped
from biomedlm_jax.qa.splits import note_shared_questions, read_questions, read_shots, refuse_copy
from biomedlm_jax.qa.tasks import TASKS, find_task

CHOICE = {"question": "q?", "options": {"A": "x", "B": "y"}, "answer_idx": "B"}


PAIR = {"sentence1": "q?", "sentence2": "c", "label": "no"}


ABCD = {"id": "i", "question": "q?", "opa": "x", "opb": "z", "opc": "u", "opd": "y", "cop": 4}


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


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


def test_questions_may_be_compressed(tmp_path):
    (tmp_path / "mine_dev.json-lines.gz").write_bytes(gzip.compress(json.dumps(CHOICE).encode()))
    (question,) = read_questions(
        find_task("medqa"), tmp_path / "mine_dev.json-lines.gz", split="dev"
    )
    assert question.label == 1


def test_bad_rows_stop_the_reading_or_are_counted(tmp_path):
    bad = {**CHOICE, "options": ["x", " "]}
    path = write(tmp_path / "dev.jsonl", CHOICE, bad, *[{}] * 8, {**CHOICE, "id": "last"})
    task = find_task("medqa")
    with pytest.raises(ValueError, match=r"dev\.jsonl:2: empty option B; fix") as error:
        read_questions(task, path, split="dev")
    assert str(error.value).endswith("--on_error=skip (config.task.on_error)")
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
    with pytest.raises(InputError, match=r"no such file or directory: .*none"):
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


def test_numbers_that_show_no_base_are_noted(tmp_path):
    def noted(*answers, **options):
        rows = [{"question": f"q{n}?", "options": [*"wxyz"], "answer": a, "id": f"i{n}"}
                for n, a in enumerate(answers)]  # fmt: skip
        file, skipped = write(tmp_path / "test.jsonl", *rows), Skipped()
        task = find_task(f"jsonl:{file}")
        questions = read_questions(task, split="test", skipped=skipped, **options)
        remarks = [name for name in skipped.noted if "fit a count from 0" in name]
        return [q.label for q in questions], [skipped.noted[name] for name in remarks]

    assert noted(1, 2, 3) == ([1, 2, 3], [["i0", "i1", "i2"]])
    assert noted(1, 2, 3, label_base="1") == ([0, 1, 2], [])
    assert noted(0, 2, 3) == ([0, 2, 3], [])
    assert noted("B", "C") == ([1, 2], [])


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


def test_fields_are_checked_before_the_numbers(tmp_path):
    row = {"question": "q?", "op1": "w", "op2": "x", "op3": "y", "op4": "z"}
    path = write(tmp_path / "dev.json", *({**row, "cop": cop} for cop in (1, 4)))
    message = r"json:1: format medmcqa needs the fields opa, opb, opc, opd, got question, op1.*fix"
    with pytest.raises(ValueError, match=message):
        labels(path)


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
    first, second = (read_questions(task, both, split=split) for split in ("train", "dev"))
    with pytest.raises(ValueError, match=r"^train and dev have the same 1 question; fix: "):
        refuse_copy(first, second, names=("train", "dev"))


def test_a_copy_of_the_training_set_is_refused_and_shared_questions_are_noted(tmp_path):
    """By content: another file name, other ids, other white space."""
    rows = [{**CHOICE, "question": f"q{n}?", "id": f"t{n}"} for n in range(3)]
    copies = [{**row, "question": row["question"].upper() + " ", "id": f"d{n}"}
              for n, row in enumerate(rows)]  # fmt: skip
    train, dev = write(tmp_path / "train.jsonl", *rows), write(tmp_path / "dev.jsonl", *copies)
    task = find_task("medqa")
    first, second = (read_questions(task, tmp_path, split=one) for one in ("train", "dev"))
    skipped = Skipped()
    options = {"split": "dev", "skipped": skipped}
    with pytest.raises(ValueError, match=r"^train and dev of .* have the same 3 questions; fix: "):
        note_shared_questions(task, tmp_path, second, **options)
    note_shared_questions(task, dev, second, **options)  # a file alone
    note_shared_questions(task, tmp_path, first, split="train", skipped=skipped)
    assert skipped.noted == {}
    note_shared_questions(task, tmp_path, second[1:], **options)
    assert skipped.noted == {"also in train": ["d1", "d2"]}
    write(tmp_path / "test.jsonl", *rows[:1], {**CHOICE, "question": "new?"}, *copies[1:])
    test = read_questions(task, tmp_path, split="test")
    of_test = Skipped()
    note_shared_questions(task, tmp_path, test, split="test", skipped=of_test)
    assert of_test.noted == {f"also in {one}": ["t0", "d1", "d2"] for one in ("train", "dev")}
    dev.write_text((tmp_path / "test.jsonl").read_text())
    with pytest.raises(ValueError, match=r"^dev and test of .* have the same 4 questions; fix: "):
        note_shared_questions(task, tmp_path, test, split="test", skipped=Skipped())
    train.write_text("no questions")
    lines = []
    note_shared_questions(task, tmp_path, second, progress=lines.append, **options)
    ((remark, files),) = [one for one in skipped.noted.items() if "train file" in one[0]]
    assert files == ["train.jsonl"]
    assert remark.startswith("train file that cannot be read, so that shared questions are unknown")
    assert "train.jsonl:1: " in remark
    train.unlink()
    skipped.noted.clear()
    note_shared_questions(task, tmp_path, second, progress=lines.append, **options)
    assert (skipped.noted, lines) == ({}, [])


def test_a_train_split_that_takes_long_is_announced_once(tmp_path, monkeypatch):
    rows = [{**CHOICE, "question": f"q{n}?", "id": f"t{n}"} for n in range(3)]
    write(tmp_path / "train.jsonl", *rows)
    write(tmp_path / "dev.jsonl", *rows[:2])
    task, lines, announced = find_task("medqa"), [], threading.Event()
    dev = read_questions(task, tmp_path, split="dev")

    def slow(*arguments, **options):
        assert announced.wait(60)
        return read_questions(*arguments, **options)

    def progress(line):
        lines.append(line)
        announced.set()

    monkeypatch.setattr(splits, "read_questions", slow)
    monkeypatch.setattr(splits, "SLOW_SECONDS", 0.01)
    note_shared_questions(task, tmp_path, dev, split="dev", skipped=Skipped(), progress=progress)
    file = tmp_path / "train.jsonl"
    assert lines == [f"reading {file}, to count the questions that are also in train"]


@pytest.mark.parametrize(
    ("task", "name", "content", "options"),
    [
        ("pubmedqa", "test.jsonl", json.dumps(PAIR), {"label_base": "1"}),
        ("pubmedqa", "test.jsonl", json.dumps(PAIR), {"twins": "skip"}),
        ("mmlu", "anatomy_test.csv", "q?,w,x,y,z,C", {"label_base": "0"}),
    ],
)
def test_an_option_without_an_effect_is_refused(tmp_path, task, name, content, options):
    (tmp_path / name).write_text(content + "\n")
    ((option, value),) = options.items()
    message = rf"got {option}={value} for {task}, .* where it has no effect: only .* uses it; fix: "
    with pytest.raises(ValueError, match=message):
        read_questions(find_task(task), tmp_path / name, split="test", **options)
    assert len(read_questions(find_task(task), tmp_path / name, split="test")) == 1


def test_a_file_named_for_another_split_is_noted(tmp_path):
    file, task, skipped = write(tmp_path / "train.jsonl", CHOICE), find_task("medqa"), Skipped()
    read_questions(task, file, split="test", skipped=skipped)
    remark = "file of the train split by its name (fix: --split=train)"
    assert skipped.noted == {remark: ["train.jsonl"]}
    skipped = Skipped()
    read_questions(task, file, split="train", skipped=skipped)
    read_questions(task, write(tmp_path / "any.jsonl", CHOICE), split="test", skipped=skipped)
    assert skipped.noted == {}
