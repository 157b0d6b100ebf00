"""identity.py: hashes of what was asked, and which directories are seeds of one training."""

import json

import pytest

from biomedlm_jax.interop.directories import training_record
from biomedlm_jax.qa.identity import check_seeds, question_hash, used_in_training
from biomedlm_jax.qa.questions import Question, questions_hash

QUESTION = Question("a", "Which?", ("x", "y"), 0)
RUN = {
    "recipe": "questions",
    "training": {"seed": 1, "epochs": 3},
    "optimizer": {"learning_rate": 1e-5},
    "task": {"name": "medqa", "dev_split": "dev", "path": "here"},
    "mesh": {"fsdp": 1},
    "started_from": {"path": "base", "weights": "w", "questions": "q"},
}


def make_run(path, **changes):
    (path / "model").mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({**RUN, **changes}))
    facts = {"dev_accuracy": 50.0, "task": "medqa", "started_from": RUN["started_from"]}
    (path / "model" / "config.json").write_text(json.dumps({"model": {}, "facts": facts}))
    return path


def test_a_question_is_what_is_asked():
    same = Question("b", "Which?", ("x", "y"), 1, group="g", subject="s")
    assert question_hash(same) == question_hash(QUESTION)
    others = [
        Question("a", "Which one?", ("x", "y"), 0),
        Question("a", "Which?", ("y", "x"), 0),
        Question("a", "Which?", ("x", "y"), 0, context="c"),
        Question("a", "Which?", ("x", "y \ud800"), 0),
    ]
    hashes = {question_hash(one) for one in [QUESTION, *others]}
    assert len(hashes) == 5
    assert questions_hash([QUESTION]) != questions_hash([same])  # another label


def test_seeds_of_one_training(tmp_path):
    first = make_run(tmp_path / "one")
    seed = make_run(
        tmp_path / "two",
        training={"seed": 2, "epochs": 3},
        mesh={"fsdp": 8},
        started_from={**RUN["started_from"], "path": "elsewhere"},
    )
    check_seeds([first, seed, first / "model"])
    for changes, name in (
        ({"optimizer": {"learning_rate": 2e-5}}, "optimizer.learning_rate"),
        ({"training": {"seed": 2, "epochs": 4}}, "training.epochs"),
        ({"started_from": {**RUN["started_from"], "questions": "r"}}, "started_from.questions"),
        ({"lora": {"rank": 4}}, "lora.rank"),
    ):
        other = make_run(tmp_path / name, **changes)
        with pytest.raises(ValueError, match=f"differ in {name}; several --model are seeds of"):
            check_seeds([first, other])


def test_a_run_of_before_names_its_dev_split(tmp_path):
    run = make_run(tmp_path / "run")
    assert training_record(run / "model")["recipe"] == "questions"
    assert used_in_training(run, "medqa", "dev", [QUESTION]) == ["dev"]
    assert not used_in_training(run, "medqa", "test", [QUESTION])
    assert not used_in_training(run, "medmcqa", "dev", [QUESTION])


def test_the_dev_questions_are_recognised_under_another_name(tmp_path):
    run = make_run(tmp_path / "run")
    config = json.loads((run / "model" / "config.json").read_text())
    config["facts"] |= {"dev_split": "dev", "dev_questions": questions_hash([QUESTION])}
    (run / "model" / "config.json").write_text(json.dumps(config))
    assert used_in_training(run, "jsonl:mine", "test", [QUESTION]) == ["dev"]
    assert not used_in_training(run, "jsonl:mine", "test", [QUESTION, QUESTION])


def test_an_own_set_is_recognised_by_its_content_not_by_its_place(tmp_path):
    """Two directories of one name are two sets, unless an old record has only the name."""
    for recorded in (True, False):
        run = make_run(tmp_path / f"run{recorded}")
        config = json.loads((run / "model" / "config.json").read_text())
        config["facts"] |= {"task": "jsonl:/before/q", "dev_split": "dev"}
        config["facts"] |= {"dev_questions": questions_hash([QUESTION])} if recorded else {}
        (run / "model" / "config.json").write_text(json.dumps(config))
        assert used_in_training(run, "jsonl:./q/", "dev", [QUESTION]) == ["dev"]
        assert used_in_training(run, "jsonl:q/dev.jsonl", "dev", [QUESTION]) == ["dev"] * recorded
        assert used_in_training(run, "jsonl:q", "dev", [QUESTION] * 2) == ["dev"] * (not recorded)
        assert used_in_training(run, "jsonl:q", "test", [QUESTION] * 2) == []


def test_the_questions_of_the_training_are_recognised(tmp_path):
    run = make_run(tmp_path / "run")
    config = json.loads((run / "model" / "config.json").read_text())
    config["facts"] |= {"train_split": "train", "train_questions": questions_hash([QUESTION])}
    (run / "model" / "config.json").write_text(json.dumps(config))
    assert used_in_training(run, "jsonl:mine", "test", [QUESTION]) == ["train"]
    assert used_in_training(run, "medqa", "train", []) == ["train"]


def test_the_questions_of_an_earlier_training_are_recognised(tmp_path):
    run = make_run(tmp_path / "run")
    config = json.loads((run / "model" / "config.json").read_text())
    stage = {"task": "medmcqa", "train_split": "train", "dev_split": "dev"}
    config["facts"]["earlier"] = [{**stage, "dev_questions": questions_hash([QUESTION])}]
    (run / "model" / "config.json").write_text(json.dumps(config))
    assert used_in_training(run, "jsonl:mine", "test", [QUESTION]) == ["dev"]
    assert used_in_training(run, "medmcqa", "train", []) == ["train"]
    assert used_in_training(run, "medqa", "dev", []) == ["dev"]
    assert used_in_training(run, "medmcqa", "test", []) == []


def test_an_export_keeps_the_record_of_its_training(tmp_path):
    """training.json is the run's record, without paths."""
    exports = []
    for seed in (1, 2):
        run = make_run(tmp_path / f"run{seed}", training={"seed": seed, "epochs": 3})
        exports.append(tmp_path / f"export{seed}")
        exports[-1].mkdir()
        (exports[-1] / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        (exports[-1] / "training.json").write_text(json.dumps(training_record(run)))
        assert training_record(exports[-1]) == training_record(run)
        assert used_in_training(exports[-1], "medqa", "dev", [QUESTION]) == ["dev"]
    check_seeds([*exports, run])
    (exports[0] / "training.json").unlink()
    assert used_in_training(exports[0], "medqa", "dev", [QUESTION]) == []
    with pytest.raises(ValueError, match="export1 does not state what it was trained from"):
        check_seeds(exports)
