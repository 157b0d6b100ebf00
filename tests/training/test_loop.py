import dataclasses
import json
import os
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

from biomedlm_jax.corpus.documents import Document
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.training.checkpoint import latest_step, load_model, save_model, steps
from biomedlm_jax.training.loop import pretrain

ROOT = Path(__file__).parents[2]


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_speed(run: Path) -> list[dict]:
    timed = ("step_seconds", "tokens_per_second", "mfu")
    return [{k: v for k, v in r.items() if k not in timed} for r in records(run)]


def parameters(run: Path) -> list[np.ndarray]:
    return jax.tree.leaves(jax.tree.map(np.asarray, load_model(run, model_config(run))))


def test_a_run_directory_is_self_contained(config, tmp_path):
    run = tmp_path / "run"
    result = pretrain(config, run)
    assert result["step"] == 12
    names = {"config.json", "tokenizer.json", "metrics.jsonl", "checkpoints"}
    assert names <= {path.name for path in run.iterdir()}
    assert steps(run) == [4, 8, 12]
    losses = [r["loss"] for r in records(run) if "loss" in r]
    assert len(losses) == 12
    assert all(r["tokens_per_second"] > 0 for r in records(run) if r["step"] in (3, 11))
    assert losses[-1] < losses[0] - 0.1
    validation = [r for r in records(run) if "bits_per_byte" in r]
    assert [r["step"] for r in validation] == [6, 12]
    assert validation[-1]["validation_loss"] == result["validation_loss"]


def test_an_interrupted_run_continues_bit_for_bit(config, tmp_path, monkeypatch):
    config.model.residual_dropout = 0.1
    pretrain(config, tmp_path / "whole")
    from biomedlm_jax.training import loop

    original, calls = loop.compile_step, []

    def interrupting(*arguments, **options):
        step = original(*arguments, **options)

        def stepping(*values):
            calls.append(None)
            if len(calls) == 7:
                signal.raise_signal(signal.SIGINT)
            return step(*values)

        return stepping

    monkeypatch.setattr(loop, "compile_step", interrupting)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, tmp_path / "parts")
    assert latest_step(tmp_path / "parts") == 7
    pretrain(config, tmp_path / "parts")
    for a, b in zip(parameters(tmp_path / "whole"), parameters(tmp_path / "parts"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert without_speed(tmp_path / "parts") == without_speed(tmp_path / "whole")


def test_lines_that_no_checkpoint_kept_are_dropped(config, tmp_path):
    run = tmp_path / "run"
    pretrain(config, run)
    whole = without_speed(run)
    with (run / "metrics.jsonl").open("a") as file:
        print('{"step": 13, "loss": 1.0}\n{"step": 14, "lo', end="", file=file)
    pretrain(config, run)  # nothing is left to do
    assert without_speed(run) == whole


def test_a_run_resumes_on_another_mesh(config, tmp_path):
    config.mesh.fsdp = 8
    config.checkpoint.keep = 9
    pretrain(config, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "two" / "checkpoints" / str(step))
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
    pretrain(config, tmp_path / "two")
    one, two = ([r["loss"] for r in records(tmp_path / n) if "loss" in r] for n in ("one", "two"))
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_an_unfinished_checkpoint_is_passed_over(config, tmp_path):
    run = tmp_path / "run"
    pretrain(config, run)
    (run / "checkpoints" / "99").mkdir()
    assert latest_step(run) == 12
    assert pretrain(config, run)["step"] == 12


def test_a_checkpoint_of_another_model(config, tmp_path):
    pretrain(config, tmp_path / "run")
    model = load_model(tmp_path / "run", model_config(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"of another model: h\.attn\..* is float32"):
        load_model(tmp_path / "run", dataclasses.replace(model_config(tmp_path / "run"), layers=3))
    with pytest.raises(FileNotFoundError, match="no finished checkpoint of step 5; finished are"):
        load_model(tmp_path / "run", model_config(tmp_path / "run"), step=5)
    save_model(tmp_path / "other", model)
    again = load_model(tmp_path / "other", model.config)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("group", "name", "value", "said"),
    [
        ("model", "heads", 7, "model.heads=7 does not divide"),
        ("model", "context_length", 64, "64"),
        ("model", "vocab_size", 200, "200"),
        ("mesh", "data", 3, "mesh data=3"),
        ("mesh", "tensor", 8, "does not divide the model's heads of 4"),
        ("training", "batch_size", 12, "batch_size=12 does not divide"),
        ("training", "batch_size", 80_000, "80000"),
        ("training", "steps", 0, "at least 1"),
        ("training", "loss_chunks", 5, "loss_chunks=5 does not divide"),
        ("data", "path", "nowhere", "nowhere"),
        ("data", "path", "", "config.data.path is empty"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    config, tmp_path, group, name, value, said
):
    config[group][name] = value
    config.model.eos_token_id = min(299, config.model.vocab_size - 1)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        pretrain(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_or_missing_key(config, tmp_path):
    with config.unlocked():
        config.training.stepz = 3
    with pytest.raises(ValueError, match=r"config.training has \['stepz'\], which is unknown"):
        pretrain(config, tmp_path / "run")
    with config.unlocked():
        del config.training.stepz
        del config.optimizer.beta1
    with pytest.raises(ValueError, match=r"config.optimizer lacks \['beta1'\]"):
        pretrain(config, tmp_path / "run")


def test_a_directory_of_another_run_is_left_alone(config, tmp_path):
    pretrain(config, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    config.optimizer.learning_rate = 1e-2
    with pytest.raises(ValueError, match=r"a run with optimizer.learning_rate=0.003, and"):
        pretrain(config, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files but no such run"):
        pretrain(config, tmp_path / "papers")


def test_a_wrong_end_of_text_is_said_at_once(config, tmp_path):
    config.model.eos_token_id = 7
    with pytest.raises(ValueError, match="end their texts with id 299, and the model's"):
        pretrain(config, tmp_path / "run")


def test_rows_of_another_tokenizer_do_not_touch_the_run(config, tmp_path):
    run = tmp_path / "run"
    pretrain(config, run)
    before = (run / "config.json").read_text()
    texts = [f"quite another corpus of {i * 7919} words and figures" for i in range(200)]
    documents = [Document(text, text) for text in texts]
    other = train_tokenizer(iter(texts), vocab_size=300)
    build_tokens(documents, other, tmp_path / "other", length=32, validation_fraction=0.1)
    config.data.path = str(tmp_path / "other")
    with pytest.raises(ValueError, match="made with the tokenizer"):
        pretrain(config, run)
    assert (run / "config.json").read_text() == before


def test_a_gradient_that_is_not_finite_is_never_saved(config, tmp_path):
    config.optimizer.learning_rate = 1e30
    config.optimizer.warmup_steps = 0
    with pytest.raises(ValueError, match="the last checkpoint is intact"):
        pretrain(config, tmp_path / "run")
    kept = steps(tmp_path / "run")
    for step in kept:
        model = load_model(tmp_path / "run", model_config(tmp_path / "run"), step=step)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model))


def test_validation_loss_is_exact_on_any_mesh(config, tmp_path):
    values = []
    for name, sizes in {"a": (1, 8, 1), "b": (2, 1, 4)}.items():
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor = sizes
        config.training.evaluate_batches = -1
        values.append(pretrain(config, tmp_path / name)["validation_loss"])
    np.testing.assert_allclose(values[0], values[1], atol=1e-5)


PROCESS = """
import sys
from biomedlm_jax import processes
port, index, path, run = sys.argv[1:]
processes.start_processes(f"localhost:{port}", process_id=int(index), process_count=2)
import runpy
from biomedlm_jax import pretrain
config = runpy.run_path("configs/tiny.py")["get_config"]()
config.model.vocab_size, config.model.eos_token_id = 300, 299
config.data.path = path
config.training.steps = 12
config.training.evaluate_every = 6
config.checkpoint.every = 6
config.logging.every = 1
config.logging.tensorboard = False
config.mesh.data, config.mesh.fsdp = 2, 4
pretrain(config, run)
"""


def test_two_processes_train_as_one(config, dataset, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, port, str(i), str(dataset), str(tmp_path / "two")],
            env=environment,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    began = time.monotonic()
    errors = [p.communicate(timeout=240 - (time.monotonic() - began))[1] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(errors)
    config.mesh.data, config.mesh.fsdp = 2, 4
    pretrain(config, tmp_path / "one")
    one, two = (
        [r.get("loss", r.get("validation_loss")) for r in records(tmp_path / name)]
        for name in ("one", "two")
    )
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-6)
