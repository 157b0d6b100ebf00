"""A tiny model, questions and texts that it can learn, and one finished run of each recipe."""

import json
import runpy
import signal
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.finetuning.finetune import finetune
from biomedlm_jax.interop.finetuned import save_finetuned
from biomedlm_jax.model.families import make_model
from biomedlm_jax.model.gpt2 import GPT2Config
from biomedlm_jax.training import fit
from biomedlm_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
ORGANS = ["liver", "kidney", "heart", "lung", "skin", "bone", "brain", "spleen"]
DRUGS = ["aspirin", "heparin", "insulin", "statin", "codeine", "quinine", "digoxin", "ether"]
SPEED = ("step_seconds", "tokens_per_second", "mfu")


@pytest.fixture(scope="session")
def tokenizer():
    text = " ".join([*ORGANS, *DRUGS, "what treats the", "what about", "it is"])
    return train_tokenizer([text] * 20, vocab_size=300)


@pytest.fixture(scope="session")
def write_base(tokenizer):
    """write_base(path, **changes of the config) writes a run directory of a random model."""

    def write(path, **changes):
        sizes = {"vocab_size": 300, "context_length": 48, "layers": 2, "width": 64, "heads": 4}
        model = make_model(GPT2Config(**{**sizes, **changes}), key=jax.random.key(0))
        return save_finetuned(path, model, tokenizer)

    return write


@pytest.fixture(scope="session")
def world(tmp_path_factory, write_base):
    """A directory with a model (`base`), questions (`choice`, `classes`) and `texts.jsonl`."""
    path = tmp_path_factory.mktemp("world")
    write_base(path / "base")
    write_base(path / "chat", context_length=128)
    write_set(path / "choice", choices())
    write_set(path / "classes", classes())
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(96):
        word = DRUGS[rng.integers(6)]
        pairs.append({"source": f"what about {word}? {i}", "target": f"it is {word}."})
    write_lines(path / "texts.jsonl", pairs)
    write_lines(path / "chats.jsonl", chats(DRUGS[:6]))
    rows = [
        {
            "instruction": "what about",
            "input": f"{DRUGS[i % 8]} {i}",
            "output": f"it is {ORGANS[i % 8]}.",
        }
        for i in range(24)
    ]
    write_lines(path / "alpaca.jsonl", rows)
    return path


def chats(drugs, count=40):
    """Chats of one and of two turns: every answer names the drug of its question."""
    rng = np.random.default_rng(0)
    for i in range(count):
        words = [drugs[rng.integers(len(drugs))] for _ in range(1 + i % 2)]
        messages = []
        for word in words:
            messages.append({"role": "user", "content": f"what about {word}?"})
            messages.append({"role": "assistant", "content": f"it is {word}."})
        yield {"messages": messages, "number": i}


def choices(count=16):
    """The first four drugs are right and the others wrong; the numbers of options are mixed."""
    rng = np.random.default_rng(0)
    for i in range(count):
        right, others = DRUGS[i % 4], rng.permutation(DRUGS[4:])[: 2 + i % 3].tolist()
        label = int(rng.integers(len(others) + 1))
        options = [*others[:label], right, *others[label:]]
        question = " ".join(["what treats the", *[ORGANS[i % 8]] * (1 + i // 4)])
        yield {"id": f"q{i}", "question": question, "options": options, "label": label}


def classes(names=("no", "yes")):
    for i in range(16):
        question, label = f"what treats the {ORGANS[i % 8]}", names[i % len(names)]
        yield {"id": f"c{i}", "sentence1": question, "sentence2": DRUGS[i % 8], "label": label}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_set(path, rows):
    path.mkdir()
    rows = list(rows)
    write_lines(path / "train.jsonl", rows)
    write_lines(path / "dev.jsonl", rows[:7])  # the same set twice is refused
    return path


@pytest.fixture(scope="session")
def write_classes():
    """write_classes(path, names of the classes) writes a set of questions with these classes."""
    return lambda path, names: write_set(path, classes(names))


@pytest.fixture(scope="session")
def get_config():
    return runpy.run_path(str(ROOT / "configs" / "finetune.py"))["get_config"]


def changed(config, changes):
    for name, value in changes.items():
        group, _, key = name.partition("__")
        config[group][key] = value
    return config


@pytest.fixture(scope="session")
def question_config(world, get_config):
    """question_config(set, group__name=value, ...) is a small config of questions."""

    def make(questions="choice", **changes):
        config = get_config("medqa")
        config.task.update(name=f"jsonl:{world / questions}", max_length=32)
        config.task.format = "sentences" if questions == "classes" else "questions"
        config.training.update(epochs=8, batch_size=6)
        config.optimizer.update(learning_rate=3e-3, warmup_ratio=0.1)
        config.model.update(embedding_dropout=0.0, attention_dropout=0.0)
        config.checkpoint.keep = 99
        config.logging.update(every=1, trackers=())
        return changed(config, changes)

    return make


@pytest.fixture(scope="session")
def text_config(world, get_config):
    """text_config(group__name=value, ...) is a small config of texts."""

    def make(**changes):
        config = get_config("meqsum")
        config.data.update(train=str(world / "texts.jsonl"), source_tokens=18, target_tokens=12)
        config.data.row_tokens = 48
        config.training.update(epochs=10, batch_size=8)
        config.mesh.update(fsdp=4, tensor=2)
        config.optimizer.update(learning_rate=5e-3, warmup_ratio=0.1)
        config.model.update(embedding_dropout=0.0, attention_dropout=0.0, residual_dropout=0.0)
        config.evaluation.update(examples=2, final_examples=6)
        config.generation.update(beams=2, max_new_tokens=14)
        config.checkpoint.keep = 99
        config.logging.update(every=1, trackers=())
        return changed(config, changes)

    return make


@pytest.fixture(scope="session")
def chat_config(world, get_config):
    """chat_config(group__name=value, ...) is a small config of chats."""

    def make(**changes):
        config = get_config("instruct")
        config.data.update(train=(str(world / "chats.jsonl"),), format=("messages",))
        config.data.update(template="zephyr", row_tokens=96, dev_fraction=0.3, group_field="")
        config.training.update(epochs=3, batch_size=8)
        config.mesh.update(fsdp=4, tensor=2)
        config.optimizer.update(learning_rate=5e-3, warmup_ratio=0.1)
        config.evaluation.update(examples=2, final_examples=6)
        config.generation.update(max_new_tokens=12)
        config.checkpoint.keep = 99
        config.logging.update(every=1, trackers=())
        return changed(config, changes)

    return make


LORA = {"lora__rank": 8, "optimizer__learning_rate": 1e-2, "training__accumulation": 2}


@pytest.fixture(scope="session")
def lora():
    """Changes of a config: LoRA, and gradients accumulated over two parts."""
    return {**LORA}


@pytest.fixture(scope="session")
def question_run(world, question_config, tmp_path_factory):
    """A finished run of questions and its result; copy it before you write to it."""
    run = tmp_path_factory.mktemp("runs") / "questions"
    return run, finetune(question_config(), world / "base", run)


@pytest.fixture(scope="session")
def short_question_run(world, question_config, tmp_path_factory):
    """The same, of two epochs: what a run that was interrupted is compared with."""
    run = tmp_path_factory.mktemp("runs") / "questions"
    return run, finetune(question_config(training__epochs=2), world / "base", run)


@pytest.fixture(scope="session")
def short_text_run(world, text_config, tmp_path_factory):
    """A finished run of texts, of two epochs, and its result."""
    run = tmp_path_factory.mktemp("runs") / "text"
    return run, finetune(text_config(training__epochs=2), world / "base", run)


@pytest.fixture(scope="session")
def text_run(world, text_config, tmp_path_factory):
    """A finished run of texts and its result; copy it before you write to it."""
    run = tmp_path_factory.mktemp("runs") / "text"
    return run, finetune(text_config(), world / "base", run)


@pytest.fixture
def interrupt(monkeypatch):
    """interrupt(n) raises SIGINT in the n-th step from now on, whatever runs."""

    def at(count):
        original, calls = fit.jit_step, []

        def interrupting(*arguments, **options):
            step = original(*arguments, **options)

            def stepping(*values, **options):
                calls.append(None)
                if len(calls) == count:
                    signal.raise_signal(signal.SIGINT)
                return step(*values, **options)

            return stepping

        monkeypatch.setattr(fit, "jit_step", interrupting)

    return at


@pytest.fixture(scope="session")
def records():
    """records(run) are the lines of its metrics without the speed."""

    def read(run):
        return [{k: v for k, v in r.items() if k not in SPEED} for r in read_metrics(run)]

    return read


@pytest.fixture(scope="session")
def trained():
    """trained(run, step) is what was trained, as the checkpoint of a step has it."""
    return lambda run, step: ocp.PyTreeCheckpointer().restore(
        run / "checkpoints" / str(step) / "model"
    )


@pytest.fixture(scope="session")
def contents():
    """contents(directory) are the bytes of all its files."""
    return lambda path: {f: f.read_bytes() for f in path.rglob("*") if f.is_file()}


@pytest.fixture(scope="session")
def assert_same():
    def compare(one, other):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

    return compare
