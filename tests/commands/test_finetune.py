import json
import os
import runpy
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import Process

from biomedlm_jax.cli import main
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.finetuning.finetune import finetune
from biomedlm_jax.interop.finetuned import load_finetuned, save_finetuned
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.model.families import make_model
from biomedlm_jax.model.gpt2 import GPT2Config
from biomedlm_jax.model.language_model import named_leaves
from biomedlm_jax.training.metrics import read_metrics
from biomedlm_jax.training.saved_steps import steps

ROOT = Path(__file__).parents[2]
DRUGS = ["aspirin", "heparin", "insulin", "statin"]
SPEED = ("step_seconds", "tokens_per_second", "mfu")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A directory with a model (`base`), questions (`questions`) and texts (`texts.jsonl`)."""
    path = tmp_path_factory.mktemp("world")
    tokenizer = train_tokenizer([" ".join([*DRUGS, "what treats it is"])] * 20, vocab_size=280)
    config = GPT2Config(vocab_size=280, context_length=48, layers=1, width=64, heads=4)
    save_finetuned(path / "base", make_model(config, key=jax.random.key(0)), tokenizer)
    (path / "questions").mkdir()
    questions = [
        {"question": f"what treats {i}", "options": DRUGS, "label": i % 4} for i in range(8)
    ]
    write_lines(path / "questions" / "train.jsonl", questions)
    write_lines(path / "questions" / "dev.jsonl", questions[:-1])
    texts = [{"source": f"what {i}", "target": f"it is {DRUGS[i % 4]}"} for i in range(40)]
    write_lines(path / "texts.jsonl", texts)
    return path


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def changes(recipe, world):
    """A config file's variant, and what is changed in it."""
    small = {"training.epochs": 1, "logging.every": 1, "model.attention_dropout": 0.0}
    if recipe == "questions":
        task = {"name": f"jsonl:{world / 'questions'}", "max_length": 32}
        return "medqa", {**small, "training.batch_size": 8} | {
            f"task.{k}": v for k, v in task.items()
        }
    lengths = {"source_tokens": 18, "target_tokens": 12, "row_tokens": 48}
    data = {f"data.{name}": value for name, value in lengths.items()}
    decoding = {"generation.max_new_tokens": 14, "generation.beams": 2, "evaluation.examples": 0}
    return "meqsum", {**small, **data, **decoding, "data.train": str(world / "texts.jsonl")}


def command(recipe, world, run, **more):
    variant, values = changes(recipe, world)
    words = ["-m", "biomedlm_jax.cli", "finetune", f"--model={world / 'base'}"]
    words += [f"--config=configs/finetune.py:{variant}", f"--workdir={run}"]
    return words + [f"--config.{name}={value}" for name, value in {**values, **more}.items()]


def start(words, **environment):
    return Process(words, cwd=ROOT, env=environment)


@pytest.mark.slow
def test_ctrl_c_saves(world, tmp_path):
    run = tmp_path / "run"
    process = start(command("text", world, run, **{"training.epochs": 4_000}))
    began, metrics = time.monotonic(), run / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - began < 200
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert f"stopped at step {steps(run)[-1]} and saved" in errors
    assert errors.splitlines()[-1].startswith("stopped at step ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("questions", {}),
        ("text", {}),
        ("text", {"lora.rank": 2, "lora.frozen_dtype": "bfloat16"}),
    ],
)
def test_two_processes_compute_what_one_does(recipe, more, world, tmp_path):
    runs = [tmp_path / "one", tmp_path / "two"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = command(recipe, world, runs[1], **more)
    words += [f"--coordinator=localhost:{port}", "--process_count=2"]
    flags = f"--xla_force_host_platform_device_count=4 {os.environ['FAST_COMPILATION']}"
    processes = [start([*words, f"--process_id={i}"], XLA_FLAGS=flags) for i in range(2)]
    variant, values = changes(recipe, world)
    values |= more
    config = runpy.run_path(str(ROOT / "configs" / "finetune.py"))["get_config"](variant)
    config.update_from_flattened_dict(values)
    finetune(config, world / "base", runs[0])
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert str(runs[1]) in outputs[0][0].splitlines()[-1]
    one, two = ({path.name for path in run.iterdir()} for run in runs)
    assert {name.split(".")[0] for name in one} == {name.split(".")[0] for name in two}
    for a, b in zip(*map(read_metrics, runs), strict=True):
        same = {name: value for name, value in a.items() if name not in SPEED}
        assert {name: b[name] for name in same} == pytest.approx(same, rel=1e-3)
    models = [named_leaves((load if recipe == "text" else load_finetuned)(run)[0]) for run in runs]
    for name, leaf in models[0].items():
        np.testing.assert_allclose(leaf, models[1][name], rtol=0, atol=1e-4, err_msg=name)


def test_the_mask_is_printed_and_nothing_is_trained(world, tmp_path, capsys):
    words = [w for w in command("text", world, tmp_path / "run")[2:] if "--workdir" not in w]
    assert main(words) == 2
    assert capsys.readouterr().err == "biomedlm finetune: error: --workdir is required.\n"
    assert main([*words, "--show_mask"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("example ") == 3
    assert "in the loss" in printed
    assert "<|startoftext|>it is" in printed
    assert not (tmp_path / "run").exists()


def test_an_error_is_one_line(world, tmp_path, capsys):
    sweep = {"sweep.seeds": "(1,2)", "sweep.learning_rates": "(1e-5,)", "task.path": "nowhere"}
    assert main(command("questions", world, tmp_path / "run", **sweep)[2:]) == 2
    errors = capsys.readouterr().err
    assert len(errors.strip().splitlines()) == 1, errors
    assert "nowhere" in errors
    assert not (tmp_path / "run").exists()
