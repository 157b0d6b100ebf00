import json
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from processes import Process, run_process

from biomedlm_jax import distributed
from biomedlm_jax.cli import main
from biomedlm_jax.corpus.documents import Document
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.training.saved_steps import steps

ROOT = Path(__file__).parents[1]
PRETRAIN = ["pretrain", f"--config={ROOT}/configs/pretrain.py:tiny"]
RUN = ["-m", "biomedlm_jax.cli", *PRETRAIN]
SETTINGS = {
    "optimizer.final_lr_fraction": 1.0,  # a constant rate: runs of any length begin alike
    "training.steps": 6,
    "training.evaluate_every": 6,
    "checkpoint.every": 3,
    "logging.every": 1,
    "logging.trackers": (),
    "mesh.data": 2,
    "mesh.fsdp": 4,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Rows of 32 tokens, vocabulary 300."""
    path = tmp_path_factory.mktemp("data") / "tokens"
    rng = np.random.default_rng(0)
    words = ["cell", "gene", "protein", "patient", "trial", "dose", "liver", "kidney", "tumour"]
    texts = [" ".join(rng.choice(words, 40)) + f" {rng.random()}." for _ in range(200)]
    tokenizer = train_tokenizer(iter(texts), vocab_size=300)
    documents = (Document(text, f"{i}") for i, text in enumerate(texts))
    build_tokens(documents, tokenizer, path, length=32, validation_fraction=0.1)
    return path


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def flags_of(dataset: Path, run: Path, **settings) -> list[str]:
    values = {**SETTINGS, "data.path": dataset, **settings}
    return [f"--config.{name}={value}" for name, value in values.items()] + [f"--workdir={run}"]


def start(
    count: int, dataset: Path, run: Path, *, silence_timeout: int = 20, **settings
) -> list[Process]:
    """Processes of one run that share eight devices, through the command line."""
    flags = [*flags_of(dataset, run, **settings), f"--process_count={count}"]
    flags += [f"--silence_timeout={silence_timeout}", f"--coordinator=localhost:{free_port()}"]
    devices = f"--xla_force_host_platform_device_count={8 // count}"
    xla = f"{devices} {os.environ['FAST_COMPILATION']}"
    return [
        Process([*RUN, *flags, f"--process_id={i}"], env={"XLA_FLAGS": xla}, cwd=ROOT)
        for i in range(count)
    ]


def ended(started: list[Process], *, within: float) -> list[str]:
    """Wait for the processes; return what they wrote to stderr."""
    limit = time.monotonic() + within
    try:
        return [p.communicate(timeout=limit - time.monotonic())[1] for p in started]
    finally:
        for p in started:
            p.kill()


def losses(run: Path) -> list[float]:
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = text.rpartition("\n")[0].splitlines()  # complete ones: the run may go on
    return [r.get("loss", r.get("validation_loss")) for r in map(json.loads, lines)]


@pytest.fixture(scope="module")
def reference(dataset, tmp_path_factory) -> list[float]:
    """Losses of six steps and the validation of one process: this one has eight devices, too."""
    run = tmp_path_factory.mktemp("reference") / "run"
    assert main([*PRETRAIN, *flags_of(dataset, run)]) == 0
    assert len(losses(run)) == 7
    return losses(run)


@pytest.mark.slow
def test_processes_train_as_one(dataset, tmp_path, reference):
    started = start(2, dataset, tmp_path / "run")
    texts = ended(started, within=240)
    assert [p.returncode for p in started] == [0, 0], "\n".join(texts)
    assert sum("finished 6 steps" in text for text in texts) == 1  # process 0 alone prints
    np.testing.assert_allclose(losses(tmp_path / "run"), reference, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_two_train_as_one_and_if_one_dies_the_other_ends_and_leaves_the_checkpoint(
    dataset, tmp_path, reference
):
    run = tmp_path / "run"
    started = start(2, dataset, run, silence_timeout=10, **{"training.steps": 100_000})
    limit = time.monotonic() + 120
    while not (steps(run) and len(losses(run)) > 7) and time.monotonic() < limit:
        time.sleep(0.2)
    assert steps(run), "no checkpoint was made in 120 s"
    np.testing.assert_allclose(losses(run)[:7], reference, rtol=0, atol=1e-6)
    started[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    texts = ended(started, within=60)
    assert time.monotonic() - began < 60
    assert started[0].returncode == -signal.SIGABRT, texts[0]
    assert "another task died" in texts[0]
    model, _ = load(run)
    assert np.isfinite(np.asarray(model.head_weight)).all()


def test_bad_input_in_one_process_ends_all_with_its_code(dataset, tmp_path):
    port = free_port()
    body = (
        "import sys, time; from biomedlm_jax import InputError, distributed\n"
        "i = int(sys.argv[1])\n"
        f"distributed.start_processes('localhost:{port}', process_id=i, process_count=2)\n"
        "with distributed.fail_together():\n"
        "    if i: raise InputError('rows of another tokenizer')\n"
        "    time.sleep(300)\n"
    )
    started = [Process(["-c", body, i]) for i in range(2)]
    texts = ended(started, within=60)
    assert [p.returncode for p in started] == [2, 2], texts
    assert all("process 1: rows of another tokenizer" in text for text in texts)


def test_a_coordinator_that_does_not_answer(tmp_path):
    flags = [f"--coordinator=localhost:{free_port()}", "--process_count=2", "--process_id=1"]
    flags += ["--start_timeout=3", f"--workdir={tmp_path / 'run'}"]
    began = time.monotonic()
    done = run_process([*RUN, *flags], cwd=ROOT, timeout=60)
    assert time.monotonic() - began < 40
    assert done.returncode == 1, done.stderr
    assert "not all processes connected to localhost:" in done.stderr.splitlines()[-1]
    assert "within 3 s" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"process_id": 2, "process_count": 2}, "expected 0 to 1"),
        ({"process_id": 0, "process_count": 2, "start_timeout": 0}, "expected at least 1"),
        ({"coordinator": "localhost", "process_id": 0, "process_count": 2}, "HOST:PORT"),
    ],
)
def test_inconsistent_numbers_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        distributed.start_processes(values.pop("coordinator", "localhost:1"), **values)


def test_an_environment_without_processes():
    # In a process of its own: it must come before any other use of jax.
    program = (
        "from biomedlm_jax import distributed\n"
        "try:\n    distributed.start_processes(None, process_id=0, process_count=1)\n"
        "except ValueError as error:\n    print(error)"
    )
    done = run_process(["-c", program])
    assert "the environment does not name the other processes" in done.stdout, done.stderr
