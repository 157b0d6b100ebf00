"""One group of processes writes into a run directory, and its processes agree."""

import shutil
import signal
import socket
import time

import pytest

# What is different in process 1: further flags, or what runs before its command.
VERSION = """
import importlib.metadata

def version(name, original=importlib.metadata.version):
    return "9.9" if name == "optax" else original(name)

importlib.metadata.version = version
"""
SOON = """
from biomedlm_jax.training import lock

lock.SEEN_SECONDS = 1.0
"""


@pytest.mark.slow
def test_a_second_writer_is_refused_until_the_first_has_ended(faults, dataset, tmp_path):
    run = tmp_path / "run"
    settings = {"training.steps": 10**6, "training.evaluate_every": 0, "checkpoint.every": 5}
    arguments = faults.pretrain_arguments(dataset, run, **settings)
    first = faults.start(arguments, tmp_path / "first", pause=0.05)
    faults.wait_until(lambda: faults.steps(run), first, what="a checkpoint")
    second = faults.start(arguments, tmp_path / "second")
    group = faults.start_group([*arguments, "--config.mesh.data=8"], tmp_path / "group")
    held = f"{run} is being written by process {first.pid} on {socket.gethostname()}; wait"
    texts = faults.ended(second, *group)
    assert [p.returncode for p in (second, *group)] == [1, 1, 1], "\n".join(texts)
    assert len(texts[0].splitlines()) == 1
    for text in texts:
        assert text.count(held) == 1
        assert held in text.splitlines()[-1]
    before = faults.last_logged(run)
    faults.wait_until(
        lambda: faults.last_logged(run) > before + 1, first, what="the first continues"
    )

    first.kill()
    first.wait()
    newest = faults.steps(run)[-1]
    assert (run / "lock.json").exists()
    began = time.monotonic()
    second = faults.start(arguments, tmp_path / "second", pause=0.05)
    count = len([e for e in faults.read_events(run) if e["event"] == "start"])
    faults.wait_until(
        lambda: len([e for e in faults.read_events(run) if e["event"] == "start"]) > count,
        second,
        what="the second starts",
    )
    print(f"resumed {time.monotonic() - began:.2f} s after the start of the process")
    assert faults.started_at(run) == newest
    faults.wait_until(lambda: faults.last_logged(run) > newest, second, what="a step")
    second.send_signal(signal.SIGTERM)
    (text,) = faults.ended(second)
    assert "is watched for" not in text
    assert second.returncode == 128 + signal.SIGTERM, text
    lines = [line["step"] for line in faults.lines_of(run)]
    assert lines == list(range(1, lines[-1] + 1))


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        (
            "seed",
            "process 1 of 2 differs from process 0: flags.config.data.seed=99 (process 0: 17)",
        ),
        pytest.param(
            "rows",
            "process 1 of 2 differs from process 0: started_from.rows=",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "version",
            "process 1 of 2 differs from process 0: versions.optax=",
            marks=pytest.mark.slow,
        ),
        pytest.param("directory", "process 1 does not find ", marks=pytest.mark.slow),
    ],
)
def test_processes_that_differ_end_together(difference, message, faults, dataset, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    data, run, other = dataset, tmp_path / "run", {}
    if difference == "seed":
        other = {"flags": ["--config.data.seed=99"]}
    elif difference == "rows":  # of another content at the same path
        data = "tokens"
        shutil.copytree(dataset, here / data)
        faults.make_rows(there / data, seed=1)
        other = {"cwd": there}
    elif difference == "version":
        other = {"patch": SOON + VERSION}
    else:
        run, other = "run", {"cwd": there}
    arguments = faults.pretrain_arguments(data, run, **{"mesh.fsdp": 8})
    records = tmp_path / "records"
    started = faults.start_group(arguments, records, patch=SOON, cwd=here, each={1: other})
    texts = faults.ended(*started)
    assert [p.returncode for p in started] == [2, 2], "\n".join(texts)
    for text in texts:
        assert text.splitlines()[-1].count(message) == 1, text
        assert text.count(message) == 1
        assert "Traceback" not in text
    if difference != "directory":
        assert not (tmp_path / "run").exists()
