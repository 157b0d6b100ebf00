import json
import runpy
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.interop.huggingface import export_hf, load
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.qa import finetuning
from biomedlm_jax.qa.finetuning import finetune
from biomedlm_jax.qa.scoring import CLASSIFIER, score
from biomedlm_jax.qa.tasks import find_task, read_examples
from biomedlm_jax.qa.tuned import load_tuned
from biomedlm_jax.training.checkpoint import steps

ROOT = Path(__file__).parents[2]
ORGANS = ["liver", "kidney", "heart", "lung", "skin", "bone", "brain", "spleen"]
DRUGS = ["aspirin", "heparin", "insulin", "statin", "codeine", "quinine", "digoxin", "ether"]
LORA = {"lora__rank": 8, "optimizer__learning_rate": 1e-2}
TOKENIZER = train_tokenizer([" ".join([*ORGANS, *DRUGS, "what treats the"])] * 20, vocab_size=300)


def choices(count=16):
    """The first four drugs are right and the others wrong; the numbers of options are mixed."""
    dice = np.random.default_rng(0)
    for i in range(count):
        right, others = DRUGS[i % 4], dice.permutation(DRUGS[4:])[: 2 + i % 3].tolist()
        label = int(dice.integers(len(others) + 1))
        options = [*others[:label], right, *others[label:]]
        question = " ".join(["what treats the", *[ORGANS[i % 8]] * (1 + i // 4)])
        yield {"id": f"q{i}", "question": question, "options": options, "label": label}


def classes(names=("no", "yes")):
    for i in range(16):
        asked, label = f"what treats the {ORGANS[i % 8]}", names[i % len(names)]
        yield {"id": f"c{i}", "sentence1": asked, "sentence2": DRUGS[i % 8], "label": label}


def write_set(path, rows):
    path.mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for split in ("train", "dev"):
        (path / f"{split}.jsonl").write_text(text)
    return path


def write_model(path, **changes):
    config = GPTConfig(
        **{"vocab_size": 300, "context_length": 48, "layers": 2, "width": 64, "heads": 4, **changes}
    )
    return export_hf(GPT(config, key=jax.random.key(0)), TOKENIZER, path)


def make_config(task, **values):
    config = runpy.run_path(str(ROOT / "configs" / "finetune_medqa.py"))["get_config"]()
    config.task.name, config.task.max_length = f"jsonl:{task}", 32
    config.training.epochs, config.training.batch_size = 8, 6
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_ratio = 0.1
    config.model.embedding_dropout = config.model.attention_dropout = 0.0
    config.checkpoint.keep = 99
    config.logging.every = 1
    config.logging.tensorboard = False
    for name, value in values.items():
        group, _, key = name.partition("__")
        config[group][key] = value
    return config


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def saved(run, step):
    """What was trained, as the checkpoint of a step holds it."""
    return ocp.PyTreeCheckpointer().restore(run / "checkpoints" / str(step) / "model")


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
    """Runs of one config compile the same programs: keep them."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path_factory.mktemp("xla")), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, sixteen questions with options, and sixteen with classes."""
    path = tmp_path_factory.mktemp("world")
    write_model(path / "base")
    write_set(path / "choice", choices())
    write_set(path / "classes", classes())
    return path


@pytest.fixture(scope="module")
def whole(world):
    """A run from its first step to its last, and its compiled step."""
    updates, original = [], finetuning.compile_step
    with pytest.MonkeyPatch.context() as patch:

        def kept(*arguments, **options):
            updates.append(original(*arguments, **options))
            return updates[-1]

        patch.setattr(finetuning, "compile_step", kept)
        result = finetune(make_config(world / "choice"), world / "base", world / "whole")
    return world / "whole", result, updates[0]


def test_it_learns_what_it_is_taught(world, whole):
    run, result, update = whole
    assert result["step"] == 24
    assert result["dev_accuracy"] == 100
    assert update._cache_size() <= 4
    losses = [r["loss"] for r in records(run) if "loss" in r]
    assert len(losses) == 24
    assert losses[-1] < 0.3 < 1 < losses[0]
    dev = {r["epoch"]: r["dev_accuracy"] for r in records(run) if "epoch" in r}
    assert list(dev) == list(range(1, 9))
    assert result["epoch"] == min(epoch for epoch, found in dev.items() if found == 100)
    # What was kept answers as the run said, in any process and without the run's config.
    tuned, tokenizer, head = load_tuned(run)
    task = find_task(f"jsonl:{world / 'choice'}")
    examples = read_examples(task, split="dev")
    items = score(tuned, tokenizer, examples, task, mode=CLASSIFIER, max_length=head.max_length)
    assert all(item["prediction"] == item["gold"] for item in items[CLASSIFIER])
    assert tuned.gpt.config.vocab_size == tokenizer.get_vocab_size() == 303


def test_an_ended_run_is_not_repeated(world, whole):
    run, result, _ = whole
    before = records(run)
    assert finetune(make_config(world / "choice"), world / "base", run) == result
    assert records(run) == before


@pytest.mark.parametrize("name", ["whole", "factors"])
def test_an_interrupted_run_continues_bit_for_bit(world, tmp_path, monkeypatch, request, name):
    plain, at = request.getfixturevalue(name)[0], 5  # within the second epoch
    config = make_config(world / "choice", **(LORA if name == "factors" else {}))
    original, calls = finetuning.compile_step, []

    def interrupting(*arguments, **options):
        step = original(*arguments, **options)

        def stepping(*values):
            calls.append(None)
            if len(calls) == at:
                signal.raise_signal(signal.SIGINT)
            return step(*values)

        return stepping

    monkeypatch.setattr(finetuning, "compile_step", interrupting)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, world / "base", tmp_path / "parts")
    assert steps(tmp_path / "parts")[-1] == at
    finetune(config, world / "base", tmp_path / "parts")
    assert records(tmp_path / "parts") == records(plain)
    assert_same(*(saved(run, steps(run)[-1]) for run in (plain, tmp_path / "parts")))
    assert_same(*(load_tuned(run)[0] for run in (plain, tmp_path / "parts")))


def test_the_best_by_dev_accuracy_is_kept(world, tmp_path, monkeypatch):
    config = make_config(world / "choice")
    found = iter([25.0, 75.0, 75.0, 50.0, 0.0, 74.0, 75.0, 10.0])

    def dev(*arguments):
        value = next(found)
        if value == 75 and not stopped:
            stopped.append(True)
            signal.raise_signal(signal.SIGINT)  # the next run starts with the best on disk
        return value

    stopped = []
    monkeypatch.setattr(finetuning, "_dev_accuracy", dev)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, world / "base", tmp_path / "run")
    result = finetune(config, world / "base", tmp_path / "run")
    assert (result["dev_accuracy"], result["epoch"]) == (75.0, 2)
    tuned = load_tuned(tmp_path / "run")[0].score.kernel[...]
    kernels = {step: saved(tmp_path / "run", step)["score"]["kernel"]["value"] for step in (6, 24)}
    np.testing.assert_array_equal(tuned, kernels[6])
    assert (np.asarray(tuned) != kernels[24]).any()


def test_staged_training_goes_on_with_the_head(world, whole, tmp_path):
    before, tokenizer, _ = load_tuned(whole[0])
    finetune(make_config(world / "choice"), whole[0], tmp_path / "run")
    first, *_ = records(tmp_path / "run")
    assert first["loss"] < 0.8 < 1 < records(whole[0])[0]["loss"]
    after, same, _ = load_tuned(tmp_path / "run")
    assert same.get_vocab() == tokenizer.get_vocab()
    assert after.gpt.config == before.gpt.config


@pytest.fixture(scope="module")
def factors(world):
    """A run that trains low-rank factors."""
    return world / "lora", finetune(
        make_config(world / "choice", **LORA), world / "base", world / "lora"
    )


def test_low_rank_factors_learn_and_leave_the_rest(world, factors):
    run, result = factors
    assert result["dev_accuracy"] > 70  # chance is a third
    tuned, (base, _) = load_tuned(run)[0], load(world / "base")
    np.testing.assert_array_equal(tuned.gpt.wte[:300], base.wte[:300])
    np.testing.assert_array_equal(tuned.gpt.wpe[...], base.wpe[...])
    np.testing.assert_array_equal(tuned.gpt.h.mlp.c_fc.bias[...], base.h.mlp.c_fc.bias[...])
    assert (tuned.gpt.h.mlp.c_fc.kernel[...] != base.h.mlp.c_fc.kernel[...]).any()
    names = {name for name in saved(run, 24) if not name.startswith("_")}  # nnx's own
    assert names == {"lora", "rows", "score"}


@pytest.fixture(scope="module")
def classifier(world):
    config = make_config(world / "classes", training__accumulation=2)
    result = finetune(config, world / "base", world / "classifier")
    return world / "classifier", result


def test_classes_are_learnt_and_accumulated(classifier):
    run, result = classifier
    assert result["dev_accuracy"] == 100
    tuned, tokenizer, head = load_tuned(run)
    assert head.classes == ("no", "yes")
    assert tuned.gpt.config.vocab_size == tokenizer.get_vocab_size() == 305


def test_a_head_of_something_else_is_refused(world, whole, classifier, tmp_path):
    with pytest.raises(ValueError, match=r"has a choice head .*needs classification \['no', 'yes"):
        finetune(make_config(world / "classes"), whole[0], tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"has a classification head \['no', 'yes'\], and .* needs"
    ):
        finetune(make_config(world / "choice"), classifier[0], tmp_path / "run")
    write_set(tmp_path / "three", classes(("maybe", "no", "yes")))
    with pytest.raises(ValueError, match=r"needs classification \['maybe', 'no', 'yes'\]"):
        finetune(make_config(tmp_path / "three"), classifier[0], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_base_config_or_data_do_not_touch_a_run(world, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    write_model(tmp_path / "other", layers=3)
    config = make_config(world / "choice")
    with pytest.raises(ValueError, match=r"holds a run that started from .*other"):
        finetune(config, tmp_path / "other", run)
    with pytest.raises(ValueError, match=r"a run with optimizer.learning_rate=0.003, and"):
        finetune(make_config(world / "choice", optimizer__learning_rate=1e-3), world / "base", run)
    shutil.copytree(world / "base", tmp_path / "papers")
    with pytest.raises(ValueError, match="holds files but no such run"):
        finetune(config, world / "base", tmp_path / "papers")
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
