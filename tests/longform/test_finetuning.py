"""The whole of long-form fine-tuning on a task that a tiny model can learn: to echo a word."""

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from transformers import GenerationConfig, GPT2LMHeadModel

from biomedlm_jax.cli import main
from biomedlm_jax.corpus.tokenizer import save_tokenizer, train_tokenizer
from biomedlm_jax.generation.options import make_options
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.longform import finetuning
from biomedlm_jax.longform import rows as packing
from biomedlm_jax.longform.finetuning import finetune_longform
from biomedlm_jax.longform.losses import target_loss
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.training.checkpoint import save_model, steps

ROOT = Path(__file__).parents[2]
WORDS = ["kinase", "receptor", "tissue", "fever", "insulin", "artery"]


def get_config(name: str) -> ConfigDict:
    return runpy.run_path(str(ROOT / "configs" / f"longform_{name}.py"))["get_config"]()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A run directory of a fresh tiny model, and a file of examples."""
    folder = tmp_path_factory.mktemp("longform")
    texts = [f"what about {word}? it is {word}." for word in WORDS] * 9
    tokenizer = train_tokenizer(iter(texts), vocab_size=290)
    config = GPTConfig(
        vocab_size=290, context_length=64, layers=2, width=64, heads=4, embedding_dropout=0.0,
        attention_dropout=0.0, residual_dropout=0.0,
    )  # fmt: skip
    save_tokenizer(tokenizer, folder / "run")
    save_model(folder / "run", GPT(config, key=jax.random.key(0)))
    fields = {name: getattr(config, name) for name in GPTConfig.__dataclass_fields__}
    (folder / "run" / "config.json").write_text(json.dumps({"model": fields}))
    random = np.random.default_rng(0)
    lines = []
    for i in range(160):
        word = WORDS[random.integers(len(WORDS))]
        lines.append({"source": f"what about {word}? {i}", "target": f"it is {word}."})
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def small(start) -> ConfigDict:
    config = get_config("meqsum")
    config.data.update(
        {"train": str(start / "examples.jsonl"), "source_tokens": 20, "target_tokens": 12,
         "row_tokens": 64}
    )  # fmt: skip
    config.optimizer.learning_rate = 3e-3
    config.training.update({"epochs": 10, "batch_size": 8})
    config.evaluation.update({"examples": 4, "final_examples": 12})
    config.generation.update({"beams": 2, "max_new_tokens": 14})
    config.logging.update({"every": 1, "tensorboard": False})
    return config


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def epochs(run: Path) -> list[dict]:
    return [line for line in records(run) if "epoch" in line]


def contents(run: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def whole(start):
    """A run from its first step to its last, and what it returned."""
    return start / "whole", finetune_longform(small(start), start / "run", start / "whole")


def interrupt(monkeypatch, at: int) -> None:
    """Raise SIGINT in the middle of that step of the next run."""
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


def test_a_tiny_model_learns_to_answer(whole, tmp_path):
    run, result = whole
    assert result["rouge1"]["mean"] > 80
    assert result["examples"] == 12
    lines = epochs(run)
    assert [line["epoch"] for line in lines] == list(range(1, 11))
    assert lines[-1]["dev_loss"] < 0.3 * lines[0]["dev_loss"]
    assert result["dev_loss"] == lines[-1]["dev_loss"]
    assert "rougeL" in lines[0]
    losses = [line["loss"] for line in records(run) if "loss" in line]
    assert lines[0]["train_loss"] == pytest.approx(np.mean(losses[: len(losses) // 10]))
    assert json.loads((run / "report.json").read_text()) == result
    model, tokenizer = load(run)
    assert model.config.vocab_size == 292
    assert tokenizer.token_to_id("<|startoftext|>") == 291
    # What it wrote decodes by itself as it was evaluated.
    first = json.loads((run / "predictions.jsonl").open().readline())
    answers = tmp_path / "answers.jsonl"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": first["source"] + "<|startoftext|>"}) + "\n")
    command = ["generate", f"--model={run}", f"--prompts={prompts}", "--nonotice"]
    assert main([*command, f"--out={answers}"]) == 0
    assert json.loads(answers.read_text())["answers"] == [first["answer"]]


def test_an_exported_run_decodes_as_the_run(start, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    settings = json.loads((run / "generation_config.json").read_text())
    assert settings["num_beams"] == 2
    published = {**get_config("meqsum").generation, "max_new_tokens": 14}
    model, tokenizer = load(run)
    settings = make_options(**published).settings(model.config, tokenizer)
    (run / "generation_config.json").write_text(json.dumps(settings))
    release = tmp_path / "release"
    assert main(["export-hf", f"--model={run}", f"--out={release}"]) == 0
    theirs = GenerationConfig.from_pretrained(release)
    assert (theirs.num_beams, theirs.length_penalty, theirs.min_length) == (5, -0.5, 5)
    assert (theirs.no_repeat_ngram_size, theirs.max_new_tokens) == (6, 14)
    assert theirs.eos_token_id == model.config.eos_token_id
    prompt = "what about fever? 3<|startoftext|>"
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": prompt}))
    command = ["generate", f"--model={release}", f"--prompts={tmp_path / 'in.jsonl'}", "--nonotice"]
    assert main([*command, f"--out={tmp_path / 'out.jsonl'}"]) == 0
    (record,) = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert len(record["scores"]) == 1
    ids = tokenizer.encode(prompt).ids
    peer = GPT2LMHeadModel.from_pretrained(release, attn_implementation="eager").eval()
    said = peer.generate(torch.tensor([ids]), pad_token_id=0)  # by its own file
    assert record["tokens"] == [said[0, len(ids) :].tolist()]


def test_an_interrupted_run_continues_bit_for_bit(start, whole, tmp_path, monkeypatch):
    plain, expected = whole
    per_epoch = epochs(plain)[0]["step"]
    at = per_epoch + 2  # within the second epoch
    assert at < 2 * per_epoch
    interrupt(monkeypatch, at)
    with pytest.raises(KeyboardInterrupt):
        finetune_longform(small(start), start / "run", tmp_path / "parts")
    assert steps(tmp_path / "parts")[-1] == at
    assert [line["epoch"] for line in epochs(tmp_path / "parts")] == [1]
    monkeypatch.undo()
    assert finetune_longform(small(start), start / "run", tmp_path / "parts") == expected
    assert records(tmp_path / "parts") == records(plain)
    assert steps(tmp_path / "parts") == steps(plain) == [10 * per_epoch]
    models = [load(run)[0] for run in (plain, tmp_path / "parts")]
    for one, other in zip(*map(jax.tree.leaves, models), strict=True):
        np.testing.assert_array_equal(one, other)
    for name in ("predictions.jsonl", "report.json", "config.json", "longform.json"):
        assert (plain / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_what_ends_in_the_last_answers_is_asked_again(start, tmp_path, monkeypatch):
    config = small(start)
    config.training.epochs = 1

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(finetuning.Evaluation, "answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune_longform(config, start / "run", tmp_path / "run")
    assert not (tmp_path / "run" / "report.json").exists()
    before = records(tmp_path / "run")
    monkeypatch.undo()
    result = finetune_longform(config, start / "run", tmp_path / "run")
    assert result["dev_loss"] == before[-1]["dev_loss"]
    assert records(tmp_path / "run") == before


def test_a_finished_run_is_not_repeated(start, whole, monkeypatch, capfd):
    run, expected = whole
    before = contents(run)
    monkeypatch.setattr(finetuning, "compile_step", lambda *a, **k: pytest.fail("it compiled"))
    assert finetune_longform(small(start), start / "run", run) == expected
    assert "done already" in capfd.readouterr().err
    assert contents(run) == before


def test_another_model_config_or_data_do_not_touch_a_run(start, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    (run / "report.json").unlink()
    before = contents(run)

    def refused(said, *, model=start / "run", **values):
        config = small(start)
        for name, value in values.items():
            group, _, key = name.partition("__")
            config[group][key] = value
        with pytest.raises(ValueError, match=said):
            finetune_longform(config, model, run)

    refused("a run with optimizer.learning_rate=0.003, and", optimizer__learning_rate=1e-3)
    refused("a run with generation.beams=2, and the config says 3", generation__beams=3)
    lines = (start / "examples.jsonl").read_text().splitlines()
    (tmp_path / "fewer.jsonl").write_text("".join(f"{line}\n" for line in lines[:-1]))
    refused("a run that started from .*texts", data__train=str(tmp_path / "fewer.jsonl"))
    shutil.copytree(start / "run", tmp_path / "other")
    refused("a run that started from .*other", model=tmp_path / "other")
    assert contents(run) == before


def test_ctrl_c_at_the_command_line(start, tmp_path):
    command = [sys.executable, "-m", "biomedlm_jax.cli", "finetune-longform"]
    command += ["--config=configs/longform_meqsum.py", f"--model={start / 'run'}"]
    command += [f"--workdir={tmp_path / 'run'}", f"--config.data.train={start / 'examples.jsonl'}"]
    values = {
        "data.source_tokens": 20, "data.target_tokens": 12, "data.row_tokens": 64,
        "training.epochs": 400, "evaluation.examples": 0, "logging.every": 1,
        "generation.max_new_tokens": 14,
    }  # fmt: skip
    command += [f"--config.{name}={value}" for name, value in values.items()]
    began, metrics = time.monotonic(), tmp_path / "run" / "metrics.jsonl"
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=dict(os.environ),
    )  # fmt: skip
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - began < 200
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    (last,) = steps(tmp_path / "run")
    assert f"stopped at step {last}, saved" in errors
    assert errors.splitlines()[-1] == "biomedlm finetune-longform: interrupted"


def test_two_processes_tune_and_answer_as_one(start, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    config = small(start)
    config.training.epochs = 2
    values = {
        f"config.{group}.{name}": value
        for group in ("data", "optimizer", "training", "evaluation", "generation", "logging")
        for name, value in config[group].items()
        if value != get_config("meqsum")[group].get(name)
    }
    command = [sys.executable, "-m", "biomedlm_jax.cli", "finetune-longform"]
    command += ["--config=configs/longform_meqsum.py", f"--model={start / 'run'}"]
    command += [f"--workdir={tmp_path / 'two'}", f"--coordinator=localhost:{port}"]
    command += ["--process_count=2", *(f"--{name}={value}" for name, value in values.items())]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    processes = [
        subprocess.Popen(
            [*command, f"--process_id={i}"], env=environment, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said[0][1] + said[1][1]
    one = finetune_longform(config, start / "run", tmp_path / "one")
    for out, _ in said:
        report = json.loads(out[out.index("{") :])  # gloo speaks there, too
        assert report.keys() == one.keys()
        assert report["dev_loss"] == pytest.approx(one["dev_loss"], rel=1e-5)
        assert report["rouge1"] == pytest.approx(one["rouge1"], abs=0.01)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {path.name for path in (tmp_path / "two").iterdir()}
    for a, b in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
        assert b == pytest.approx(a, rel=1e-3)


def test_packed_texts_do_not_see_one_another(start):
    model, tokenizer = load(start / "run")
    limits = packing.Limits(source=20, target=12, row=64)
    tokenizer.add_special_tokens(["[PAD]"])
    texts = [([5, 6, 289, 8, 9, 289], 3), ([7, 7, 7, 289, 3, 289], 4), ([1, 289, 2], 2)]

    def total(rows):
        batch = packing.lay_out(texts, rows, batch_size=3, length=limits.row, pad=0)
        return [float(x) for x in target_loss(model, batch)]

    together, apart = total([[0, 1, 2]]), total([[0], [1], [2]])
    np.testing.assert_allclose(together, apart, rtol=1e-5)
    assert together[1] == 6


def test_configs_are_the_published_format_and_decoding():
    for name in ("meqsum", "medquad"):
        config = get_config(name)
        assert (config.data.source_tokens, config.data.target_tokens) == (510, 510)
        assert config.generation.to_dict() == {
            "beams": 5,
            "no_repeat_ngram_size": 6,
            "length_penalty": -0.5,
            "min_length": 5,
            "max_new_tokens": 400,
        }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data.train": ""}, "config.data.train is empty"),
        ({"data.source_tokens": 60}, "a row must hold"),
        ({"data.row_tokens": 128}, "the model has 64 positions"),
        ({"generation.max_new_tokens": 60}, "the model has 64 positions"),
        ({"generation.beams": 1}, "ask for at least 2 beams"),
        ({"training.epochs": 0}, "training.epochs=0"),
        ({"optimizer.learning_rate": 0.0}, "learning_rate=0.0; it must be above 0"),
        ({"optimizer.warmup_ratio": 1.5}, "warmup_ratio=1.5"),
        ({"evaluation.examples": -1}, "evaluation.examples=-1; it must be at least 0"),
        ({"checkpoint.every": 0}, "checkpoint.every=0"),
        ({"training.batch_size": 3}, "does not divide"),
    ],
)
def test_configs_that_cannot_be(start, tmp_path, change, said):
    config = small(start)
    for name, value in change.items():
        group, key = name.split(".")
        config[group][key] = value
    with pytest.raises(ValueError, match=said):
        finetune_longform(config, start / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_not_empty_is_left_alone(start, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files but no such run"):
        finetune_longform(small(start), start / "run", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
