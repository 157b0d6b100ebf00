import json
import shutil
import signal

import numpy as np
import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning import question_recipe
from biomedlm_jax.finetuning.finetune import finetune
from biomedlm_jax.interop.finetuned import load_finetuned, read_facts
from biomedlm_jax.interop.huggingface import export_directory, load
from biomedlm_jax.qa.questions import questions_hash
from biomedlm_jax.qa.scoring import CLASSIFIER, score
from biomedlm_jax.qa.splits import read_questions
from biomedlm_jax.qa.tasks import find_task
from biomedlm_jax.training.metrics import read_metrics
from biomedlm_jax.training.saved_steps import steps


def test_it_learns_what_it_is_taught(world, question_run):
    run, result = question_run
    assert result["step"] == 24
    assert result["dev_accuracy"] == 100
    lines = read_metrics(run)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 24
    assert losses[-1] < 0.3 < 1 < losses[0]
    assert lines[0]["learning_rate"] > 0  # the first update is not wasted
    assert all(line["tokens_per_second"] > 0 for line in lines if line["step"] in (2, 23))
    dev = {line["epoch"]: line["dev_accuracy"] for line in lines if "epoch" in line}
    assert list(dev) == list(range(1, 9))
    assert result["epoch"] == min(epoch for epoch, accuracy in dev.items() if accuracy == 100)
    # The kept model answers as the run reported, in any process and without the run's config.
    tuned, tokenizer, head = load_finetuned(run)
    task = find_task(f"jsonl:{world / 'choice'}")
    dev = read_questions(task, split="dev")
    items = score(tuned, tokenizer, dev, task, mode=CLASSIFIER, max_length=head.max_length)
    assert all(item["prediction"] == item["gold"] for item in items[CLASSIFIER])
    assert tuned.config.vocab_size == tokenizer.get_vocab_size() == 303


def test_a_finished_run_is_not_repeated(world, question_run, question_config, contents):
    run, result = question_run
    before = read_metrics(run)
    assert finetune(question_config(), world / "base", run) == result
    assert read_metrics(run) == before


def test_the_model_states_what_it_learnt_from_and_was_chosen_by(world, question_run):
    task, facts = find_task(f"jsonl:{world / 'choice'}"), read_facts(question_run[0] / "model")
    for split in ("train", "dev"):
        questions = read_questions(task, split=split)
        assert facts[f"{split}_split"] == split
        assert facts[f"{split}_questions"] == questions_hash(questions)


def test_an_export_names_the_set_without_its_place(world, question_run, tmp_path):
    export_directory(question_run[0], tmp_path / "export")
    for name in ("config.json", "training.json", "README.md"):
        text = (tmp_path / "export" / name).read_text()
        assert "jsonl:choice" in text
        assert str(world) not in text
    run = json.loads((question_run[0] / "run.json").read_text())
    assert (run["task"]["name"], run["task"]["path"]) == ("jsonl:choice", str(world / "choice"))


def test_what_a_reader_should_know_of_the_questions_is_printed(
    world, question_config, question_run, capfd
):
    finetune(question_config(), world / "base", question_run[0])
    # The questions of this test's dev split are of its train split on purpose.
    assert "; used: 7 of dev that are also in train" in capfd.readouterr().err


def test_one_file_for_train_and_dev_is_refused(world, question_config, tmp_path):
    both = shutil.copy(world / "choice" / "dev.jsonl", tmp_path / "both.jsonl")
    config = question_config(task__name="medqa", task__path=str(both))
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=r"train of .*both\.jsonl and dev have the same"):
        finetune(config, world / "base", run)
    assert not run.exists()
    config.task.train_path = str(world / "choice" / "train.jsonl")
    config.training.epochs = 1
    assert finetune(config, world / "base", run)["step"] == 3


def test_another_dev_set_is_another_run(world, question_config, question_run, tmp_path):
    shutil.copytree(world / "choice", tmp_path / "set")
    dev = tmp_path / "set" / "dev.jsonl"
    first, *others = dev.read_text().splitlines(keepends=True)
    dev.write_text("".join([first.replace("what", "which", 1), *others]))
    shutil.copytree(question_run[0], tmp_path / "run")
    config = question_config(task__name=f"jsonl:{tmp_path / 'set'}")
    with pytest.raises(ValueError, match=r"holds a run with .*questions="):
        finetune(config, world / "base", tmp_path / "run")


@pytest.fixture(scope="module")
def lora_run(world, question_config, lora, tmp_path_factory):
    run = tmp_path_factory.mktemp("lora") / "run"
    return run, finetune(question_config(**lora), world / "base", run)


@pytest.mark.parametrize("factors", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_interrupted_run_resumes_bit_for_bit(
    factors,
    world,
    question_config,
    lora,
    interrupt,
    records,
    trained,
    assert_same,
    request,
    tmp_path,
):
    parts, at = tmp_path / "parts", 5
    config = question_config(**(lora if factors else {}), training__epochs=2)
    if factors:
        whole = tmp_path / "whole"
        finetune(config, world / "base", whole)
    else:
        whole, _ = request.getfixturevalue("short_question_run")
    interrupt(at)  # within the second epoch
    with pytest.raises(KeyboardInterrupt):
        finetune(config, world / "base", parts)
    assert steps(parts)[-1] == at
    finetune(config, world / "base", parts)
    assert records(parts) == records(whole)
    assert_same(*(trained(run, steps(run)[-1]) for run in (whole, parts)))
    assert_same(*(load_finetuned(run)[0] for run in (whole, parts)))


def test_a_signal_stops_the_evaluation_between_its_batches(
    world, question_config, short_question_run, records, monkeypatch, tmp_path
):
    config = question_config(training__epochs=2)

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        return score(*arguments, **options)

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(question_recipe, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune(config, world / "base", run)
    assert steps(run)[-1] == 3  # the end of the first epoch, whose evaluation is owed
    assert not (run / "model").exists()
    finetune(config, world / "base", run)
    assert records(run) == records(short_question_run[0])


@pytest.mark.slow
def test_a_head_learns_beside_frozen_bfloat16_weights(world, question_config, lora, tmp_path):
    changes = {**lora, "lora__frozen_dtype": "bfloat16", "training__epochs": 1}
    with pytest.warns(RuntimeWarning, match="bfloat16 rounds"):
        result = finetune(question_config(**changes), world / "base", tmp_path / "run")
    tuned, tokenizer, head = load_finetuned(tmp_path / "run")
    base, size = load(world / "base")[0], load(world / "base")[0].config.vocab_size
    rounded = np.asarray(base.wte[:size]).astype("bfloat16").astype(np.float32)
    np.testing.assert_array_equal(tuned.trunk.wte[:size], rounded)
    kernel = np.asarray(tuned.trunk.h.mlp.c_fc.kernel[...])
    assert (kernel != kernel.astype("bfloat16").astype(np.float32)).any()  # merged in float32
    task = find_task(f"jsonl:{world / 'choice'}")
    dev = read_questions(task, split="dev")
    items = score(tuned, tokenizer, dev, task, mode=CLASSIFIER, max_length=head.max_length)
    right = [item["prediction"] == item["gold"] for item in items[CLASSIFIER]]
    assert result["dev_accuracy"] == pytest.approx(100 * np.mean(right))


@pytest.mark.slow
def test_low_rank_factors_learn_and_leave_the_rest(world, lora_run, trained):
    run, result = lora_run
    assert result["dev_accuracy"] > 70  # chance is a third
    tuned, (base, _) = load_finetuned(run)[0].trunk, load(world / "base")
    np.testing.assert_array_equal(tuned.wte[:300], base.wte[:300])
    np.testing.assert_array_equal(tuned.wpe[...], base.wpe[...])
    np.testing.assert_array_equal(tuned.h.mlp.c_fc.bias[...], base.h.mlp.c_fc.bias[...])
    assert (tuned.h.mlp.c_fc.kernel[...] != base.h.mlp.c_fc.kernel[...]).any()
    names = {name for name in trained(run, 24) if not name.startswith("_")}  # nnx's own
    assert names == {"lora", "rows", "score"}


@pytest.mark.slow
def test_the_best_by_dev_accuracy_is_kept(world, question_config, tmp_path, trained, monkeypatch):
    config = question_config(checkpoint__every=3)
    config.training.epochs = 4
    accuracies, stopped = iter([25, 75, 75, 50]), []

    def score(*_, **options):
        right = next(accuracies)
        if right == 75 and not stopped:
            stopped.append(True)
            signal.raise_signal(signal.SIGINT)  # the next run starts with the best on disk
        return {options["mode"]: [{"gold": n < right, "prediction": True} for n in range(100)]}

    monkeypatch.setattr(question_recipe, "score", score)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        finetune(config, world / "base", run)
    result = finetune(config, world / "base", run)
    assert (result["dev_accuracy"], result["epoch"]) == (75.0, 2)
    kernel = load_finetuned(run)[0].score.kernel[...]
    kernels = {step: trained(run, step)["score"]["kernel"]["value"] for step in (6, 12)}
    np.testing.assert_array_equal(kernel, kernels[6])
    assert (np.asarray(kernel) != kernels[12]).any()


@pytest.mark.slow
def test_staged_training_continues_with_the_head(world, question_config, question_run, tmp_path):
    before, tokenizer, _ = load_finetuned(question_run[0])
    config = question_config(training__epochs=1, optimizer__learning_rate=1e-6)
    assert finetune(config, question_run[0], tmp_path / "run")["dev_accuracy"] == 100
    first, facts = (read_facts(run / "model") for run in (question_run[0], tmp_path / "run"))
    names = ("task", "train_split", "train_questions", "dev_split", "dev_questions")
    assert facts["earlier"] == [{name: first[name] for name in names}]
    after, same, _ = load_finetuned(tmp_path / "run")
    assert same.get_vocab() == tokenizer.get_vocab()
    assert after.config == before.config


@pytest.fixture(scope="module")
def class_run(world, question_config, tmp_path_factory):
    run = tmp_path_factory.mktemp("classes") / "run"
    changes = {"training__accumulation": 2, "training__epochs": 16, "model__residual_dropout": 0.0}
    config = question_config("classes", optimizer__learning_rate=2e-3, **changes)
    return run, finetune(config, world / "base", run)


@pytest.mark.slow
def test_classes_are_learnt_and_accumulated(class_run):
    run, result = class_run
    assert result["dev_accuracy"] == 100
    tuned, tokenizer, head = load_finetuned(run)
    assert head.classes == ("no", "yes")
    assert tuned.config.vocab_size == tokenizer.get_vocab_size() == 305


@pytest.mark.slow
def test_a_head_of_something_else_is_refused(
    world, question_config, question_run, class_run, write_classes, tmp_path
):
    def refused(message, config, model):
        with pytest.raises(ValueError, match=message):
            finetune(config, model, tmp_path / "run")

    choice, classes = question_config("choice"), question_config("classes")
    refused(
        r"has a choice head .*needs classification \['no', 'yes'\]; start from",
        classes,
        question_run[0],
    )
    refused(
        r"has a classification head \['no', 'yes'\] \(fine-tuned on .*\), and .* needs",
        choice,
        class_run[0],
    )
    write_classes(tmp_path / "three", ("maybe", "no", "yes"))
    classes.task.name = f"jsonl:{tmp_path / 'three'}"
    refused(r"needs classification \['maybe', 'no', 'yes'\]", classes, class_run[0])
    assert not (tmp_path / "run").exists()


def test_another_model_config_or_data_do_not_touch_a_run(
    world, question_config, question_run, write_base, contents, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(question_run[0], run)
    before = contents(run)
    write_base(tmp_path / "other", layers=3)

    def refused(message, model=world / "base", workdir=run, questions="choice", **changes):
        with pytest.raises(ValueError, match=message):
            finetune(question_config(questions, **changes), model, workdir)

    refused("holds a run with .*weights=", model=tmp_path / "other")
    refused(
        r"a run with optimizer.learning_rate=0.003 \(now 0.001\)", optimizer__learning_rate=1e-3
    )
    refused(r"a run with attention_dropout=0.0 \(now 0.1\)", model__attention_dropout=0.1)
    refused("a run with .*questions=", questions="classes")
    shutil.copytree(world / "base", tmp_path / "papers")
    refused("exists and holds no run", workdir=tmp_path / "papers")
    assert contents(run) == before


def test_a_model_elsewhere_is_the_same_model(world, question_config, question_run, tmp_path):
    shutil.copytree(question_run[0], tmp_path / "run")
    shutil.copytree(world / "base", tmp_path / "moved")
    result = finetune(question_config(), tmp_path / "moved", tmp_path / "run")
    assert result == question_run[1]


def test_questions_without_an_answer(world, question_config, tmp_path):
    shutil.copytree(world / "choice", tmp_path / "secret")
    line = '{"question": "what treats the liver", "options": ["aspirin", "ether"]}\n'
    (tmp_path / "secret" / "dev.jsonl").write_text(line * 2)
    config = question_config(task__name=f"jsonl:{tmp_path / 'secret'}")
    with pytest.raises(ValueError, match=r"2 of 2 questions of .*, dev, have no label"):
        finetune(config, world / "base", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("task__name", "medqaa", "medqaa"),
        ("task__max_length", 64, "max_length=64; expected at most the model's 48 positions"),
        ("training__batch_size", 17, "batch_size=17; expected at most 16"),
        ("mesh__data", 3, "mesh data=3"),
        ("mesh__tensor", 8, "does not divide the model's heads of 4"),
        ("model__attention", "splash", "model.attention=splash"),
        ("model__attention_dropout", 1.5, "attention_dropout=1.5"),
    ],
)
def test_errors_come_before_anything_is_written(
    world, question_config, tmp_path, name, value, message
):
    with pytest.raises(InputError, match=message):
        finetune(question_config(**{name: value}), world / "base", tmp_path / "run")
    assert not (tmp_path / "run").exists()
