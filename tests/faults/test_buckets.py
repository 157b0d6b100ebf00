"""Runs on Google Cloud Storage, served locally: killed, resumed, damaged, locked and used."""

import json
import re
import runpy
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from gcs import bucket, gcs_server  # noqa: F401
from processes import run_process

from biomedlm_jax import cli, pretrain
from biomedlm_jax.buckets import BucketPath, as_path
from biomedlm_jax.corpus.documents import Document
from biomedlm_jax.corpus.rows import Rows
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens
from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.finetune import finetune
from biomedlm_jax.integrity import damage
from biomedlm_jax.interop.finetuned import load_finetuned
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.training.lock import lock_run
from biomedlm_jax.training.metrics import read_events, read_metrics
from biomedlm_jax.training.saved_steps import steps

ROOT = Path(__file__).parents[2]
TINY = runpy.run_path(str(ROOT / "tests/training/conftest.py"))
QUESTIONS = runpy.run_path(str(ROOT / "tests/finetuning/conftest.py"))
TIMED = ("step_seconds", "tokens_per_second", "mfu")
CHANGES = ["--config.model.residual_dropout=0.1", "--config.training.steps=12"]
CHANGES += ["--config.training.evaluate_every=6", "--config.checkpoint.every=4"]
CHANGES += ["--config.logging.every=1", "--config.logging.trackers=()"]
# Ends at once while the second checkpoint is written: all its files and their hashes are there, but
# not the mark that completes it.
KILLED = """
import os, signal, sys
from biomedlm_jax import cli
from biomedlm_jax.training import checkpoint

original, calls = checkpoint.write_sums, []

def write_sums(directory):
    original(directory)
    calls.append(None)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.write_sums = write_sums
sys.exit(cli.main())
"""


def flags(tokens, run) -> list[str]:
    config = f"--config={ROOT}/configs/pretrain.py:tiny"
    return ["pretrain", config, f"--config.data.path={tokens}", f"--workdir={run}", *CHANGES]


def without_speed(run) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in TIMED} for r in read_metrics(as_path(run))]


def assert_equal_weights(one, other, load=load) -> None:
    leaves = [jax.tree.leaves(load(run)[0]) for run in (one, other)]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b)


def one_line(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    return lines[0]


def copy(source: str, target: str) -> str:
    for name in as_path(source).sizes():
        (as_path(source) / name).copy_to(as_path(target) / name)
    return target


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    path, texts = tmp_path_factory.mktemp("data") / "tokens", TINY["sentences"](200)
    tokenizer = train_tokenizer(iter(texts), vocab_size=300)
    documents = (Document(text, f"{i}") for i, text in enumerate(texts))
    build_tokens(documents, tokenizer, path, length=32, validation_fraction=0.1)
    return path


@pytest.fixture(scope="module")
def local(tokens, tmp_path_factory) -> Path:
    """The same run in a local directory, never interrupted."""
    path = tmp_path_factory.mktemp("local") / "run"
    pretrain(TINY["tiny_config"](tokens), path)
    return path


@pytest.fixture(scope="module")
def storage(gcs_server) -> str:  # noqa: F811
    """A bucket for the module."""
    return bucket.__wrapped__(gcs_server)


@pytest.fixture(scope="module")
def remote(tokens, local, storage) -> str:
    """A copy of `local` in a bucket, beside its rows, with a checkpoint that was not finished."""
    run = f"{storage}/run"
    as_path(f"{storage}/tokens").upload(tokens)
    as_path(run).upload(local)
    as_path(f"{run}/checkpoints/6.unfinished").upload(local / "checkpoints" / "6")
    return run


@pytest.fixture(scope="module")
def killed(remote, storage) -> str:
    """A finished run in a bucket, on rows there, that was killed once while it saved."""
    run, rows = f"{storage}/killed", f"{storage}/tokens"
    done = run_process(["-c", KILLED, *flags(rows, run)])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert steps(run) == [4]
    assert (as_path(run) / "checkpoints/6/SHA256SUMS").exists()
    assert (as_path(run) / "lock.json").exists()
    assert max(line["step"] for line in read_metrics(as_path(run))) >= 6
    assert cli.main(flags(rows, run).copy()) == 0
    return run


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(killed, local):
    assert steps(killed) == steps(local) == [6, 8, 12]
    assert_equal_weights(killed, local)
    assert without_speed(killed) == without_speed(local)  # none is doubled or lost
    events = [event["event"] for event in read_events(as_path(killed))]
    assert events.count("start") == 2
    assert events[-1] == "finish"
    names = {path.name for path in as_path(killed).iterdir()}
    assert {"config.json", "run.json", "tokenizer.json", "loss.png", "metrics.jsonl"} <= names
    assert "lock.json" not in names
    kept = {path.name for path in (as_path(killed) / "checkpoints").iterdir()}
    assert kept == {"6", "8", "12", "6.unfinished"}


def test_rows_are_those_of_the_local_directory(tokens, remote, storage):
    for split in ("train", "validation"):
        here, there = Rows(tokens, split), Rows(f"{storage}/tokens", split)
        np.testing.assert_array_equal([*here], [*there])


def test_rows_that_are_not_there_are_refused(tokens, storage):
    with pytest.raises(InputError, match=f"no such directory: {storage}/none"):
        Rows(f"{storage}/none", "train")
    copy(f"{storage}/tokens", f"{storage}/cut")
    (shard,) = (as_path(storage) / "cut/rows").glob("*-train.array_record-*")
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard} is missing"):
        Rows(f"{storage}/cut", "train")


def test_a_flipped_byte_is_named_and_fallback_continues(remote, local, storage, capsys):
    run = copy(remote, f"{storage}/damaged")
    name = max(n for n in as_path(run).sizes() if "checkpoints/12/model/ocdbt" in n)
    data = bytearray((as_path(run) / name).read_bytes())
    data[len(data) // 2] ^= 1
    (as_path(run) / name).write_bytes(bytes(data))
    arguments = flags(f"{storage}/tokens", run)
    assert cli.main(arguments.copy()) == 2
    message = one_line(capsys)
    assert f"{run}/checkpoints/12: {name.removeprefix('checkpoints/12/')} was changed" in message
    assert "the newest whole one is step 8; --fallback continues from there" in message
    assert cli.main([*arguments, "--fallback"]) == 0
    assert steps(run) == [6, 8, 12]
    assert_equal_weights(run, local)
    assert without_speed(run) == without_speed(local)
    assert (as_path(run) / "checkpoints/12.damaged").is_dir()


def test_a_second_writer_is_refused(remote, storage, capsys):
    with lock_run(as_path(remote)):
        assert cli.main(flags(f"{storage}/tokens", remote)) == 1
    assert "is being written by process" in one_line(capsys)
    assert not (as_path(remote) / "lock.json").exists()


def test_verify_and_inspect_read_a_run_of_a_bucket(remote, storage, capsys):
    assert cli.main(["verify", remote]) == 0
    assert re.search(r"checkpoints/12: \d+ files are whole", capsys.readouterr().out)
    assert cli.main(["verify", f"{storage}/tokens"]) == 0
    assert cli.main(["inspect", remote]) == 0
    lines = capsys.readouterr().out
    assert "step: 12 of 12\nloss: " in lines
    assert "set aside: checkpoints/6.unfinished" in lines


@pytest.mark.slow
def test_commands_read_a_run_of_a_bucket(remote, local, storage, tmp_path, capsys):
    """generate, evaluate and export-hf give the same as for the local run."""
    questions = tmp_path / "dev.jsonl"
    question = {"id": "1", "question": "Which organ?", "options": ["liver", "dose"], "label": 0}
    questions.write_text(json.dumps(question) + "\n")
    models = {"local": local, "remote": remote, "export": f"{storage}/export"}
    assert cli.main(["export-hf", f"--model={remote}", f"--out={storage}/export"]) == 0
    assert cli.main(["export-hf", f"--model={local}", f"--out={tmp_path}/export"]) == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        exported = as_path(storage) / "export" / name
        assert exported.read_bytes() == (tmp_path / "export" / name).read_bytes()
    answers, items = {}, {}
    for name, model in models.items():
        capsys.readouterr()
        prompt = ["--prompt=cell gene", "--max_new_tokens=5", "--seed=0"]
        assert cli.main(["generate", f"--model={model}", *prompt]) == 0
        answers[name] = capsys.readouterr().out
        out = tmp_path / f"report-{name}"
        task = [f"--task=jsonl:{questions}", "--mode=option", f"--out={out}"]
        assert cli.main(["evaluate", f"--model={model}", *task]) == 0
        items[name] = {file.relative_to(out): file.read_text() for file in out.rglob("items.jsonl")}
    assert answers["local"] == answers["remote"] == answers["export"]
    assert items["local"] == items["remote"] == items["export"]


@pytest.mark.slow
def test_a_run_starts_from_an_export_of_a_bucket(remote, storage, capsys):
    assert cli.main(["import-hf", f"--source={storage}/export", f"--out={storage}/imported"]) == 0
    assert_equal_weights(f"{storage}/imported", remote)
    started = flags(f"{storage}/tokens", f"{storage}/continued")
    changes = [
        "--config.training.steps=1",
        "--config.optimizer.warmup_steps=0",
        f"--init={storage}/imported",
    ]
    assert cli.main([*started, *changes]) == 0
    assert steps(f"{storage}/continued") == [1]


@pytest.fixture(scope="module")
def question_config(tmp_path_factory):
    """Two epochs on questions, from the run that the other tests use."""
    path = QUESTIONS["write_set"](tmp_path_factory.mktemp("q") / "choice", QUESTIONS["choices"]())
    config = runpy.run_path(str(ROOT / "configs/finetune.py"))["get_config"]("medqa")
    config.task.update(name=f"jsonl:{path}", max_length=32, format="questions")
    config.training.update(epochs=2, batch_size=8)
    config.optimizer.update(learning_rate=3e-3, warmup_ratio=0.1)
    config.logging.update(every=1, trackers=("tensorboard",))
    return config


@pytest.mark.slow
def test_fine_tuning_in_a_bucket_survives_a_kill_while_it_replaces_its_model(
    question_config, remote, local, storage, tmp_path, monkeypatch
):
    run, calls, copy_to = f"{storage}/finetuned", [], BucketPath.copy_to

    def interrupt(*paths):
        calls.append(paths)
        if len(calls) == 5:
            raise KeyboardInterrupt
        copy_to(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(BucketPath, "copy_to", interrupt)
        with pytest.raises(KeyboardInterrupt):
            finetune(question_config, remote, run)
    assert not (as_path(run) / "model/SHA256SUMS").exists()
    result = finetune(question_config, remote, run)
    assert result == finetune(question_config, local, tmp_path / "finetuned")
    assert damage(as_path(run) / "model") == []
    assert_equal_weights(run, tmp_path / "finetuned", load=load_finetuned)
    assert without_speed(run) == without_speed(tmp_path / "finetuned")
    files = [
        {path.name.partition(".tfevents")[0] for path in directory.iterdir()}
        for directory in (as_path(run), tmp_path / "finetuned")
    ]
    assert files[0] == files[1]
    assert len(as_path(run).glob("events.out.tfevents.*")) == 2
