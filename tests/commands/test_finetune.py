import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from biomedlm_jax.cli import main
from biomedlm_jax.finetuning.finetune import finetune
from biomedlm_jax.training.checkpoint import steps
from biomedlm_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
SPEED = ("step_seconds", "tokens_per_second", "mfu")


def command(config, plain, *, model, workdir):
    """The command line of a config that differs from the config file's `plain` one."""
    variant = {"questions": "medqa", "text": "meqsum"}[config.recipe]
    words = [sys.executable, "-m", "biomedlm_jax.cli", "finetune", f"--model={model}"]
    words += [f"--config=configs/finetune.py:{variant}", f"--workdir={workdir}"]
    for group in config:
        if hasattr(config[group], "items"):
            for name, value in config[group].items():
                if value != plain(variant)[group][name]:
                    words.append(f"--config.{group}.{name}={value}")
    return words


def start(words, **environment):
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_ctrl_c_saves(world, text_config, get_config, tmp_path):
    config, run = text_config(training__epochs=400, evaluation__examples=0), tmp_path / "run"
    process = start(command(config, get_config, model=world / "base", workdir=run))
    began, metrics = time.monotonic(), run / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - began < 200
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert f"stopped at step {steps(run)[-1]} and saved" in errors
    assert errors.splitlines()[-1] == "biomedlm finetune: interrupted"


@pytest.mark.parametrize("recipe", ["questions", "text"])
def test_two_processes_compute_what_one_does(
    recipe, world, question_config, text_config, get_config, tmp_path
):
    make = {"questions": question_config, "text": text_config}[recipe]
    config, runs = make(training__epochs=1), [tmp_path / "one", tmp_path / "two"]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = command(config, get_config, model=world / "base", workdir=runs[1])
    words += [f"--coordinator=localhost:{port}", "--process_count=2"]
    four = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    processes = [start([*words, f"--process_id={i}"], **four) for i in range(2)]
    finetune(config, world / "base", runs[0])
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert str(runs[1]) in outputs[0][0].splitlines()[-1]
    one, two = ({path.name for path in run.iterdir()} for run in runs)
    assert one == two
    for a, b in zip(*map(read_metrics, runs), strict=True):
        same = {name: value for name, value in a.items() if name not in SPEED}
        assert {name: b[name] for name in same} == pytest.approx(same, rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.training.epohcs=3"], "epohcs"),
        (["--config.training.epochs=many"], "many"),
        (["--config.task.row_format=released", "--config.training.accumulation=2"],
         "set --config.training.accumulation=1"),
        (["--config.sweep.seeds=(1,2)", "--config.sweep.learning_rates=(1e-5,)"], "nowhere"),
    ],
)  # fmt: skip
def test_an_error_is_one_line(overrides, message, tmp_path, capfd):
    words = ["finetune", "--config=configs/finetune.py:medqa", f"--model={tmp_path}"]
    words += [f"--workdir={tmp_path / 'run'}", "--config.task.path=nowhere", *overrides]
    assert main(words) == 2
    errors = capfd.readouterr().err
    assert len(errors.strip().splitlines()) == 1, errors
    assert message in errors
    assert not (tmp_path / "run").exists()
