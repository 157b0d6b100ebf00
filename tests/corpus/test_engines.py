import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pool_tasks import (
    DASK,
    DIRECT,
    fail_at,
    fail_with_full_disk,
    kill_itself,
    slow_square,
    square_and_process,
)

from biomedlm_jax.cli import main
from biomedlm_jax.corpus import engines
from biomedlm_jax.corpus.engines import open_engine
from biomedlm_jax.errors import InputError

TESTS = Path(__file__).parents[1]


@pytest.fixture
def importable(monkeypatch):
    """Let new processes import what this one imports."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))


@pytest.fixture
def no_pipeline(monkeypatch):
    """Let tasks run here, as a runner's workers would run them, each twice."""

    def run(self, elements):
        for element in [*elements, *elements]:
            engines._run_task(element, str(self._folder), repeats=self._repeats)

    monkeypatch.setattr(engines._BeamMap, "_run", run)


def test_beam_runs_tasks_in_several_processes_and_keeps_their_order(tmp_path, importable):
    with open_engine(1, tmp_path, DIRECT) as run:
        numbers = [*range(7), 2**64]  # which Beam's own coder of integers refuses
        results = list(run(square_and_process, ((number,) for number in numbers)))
    assert [square for square, _ in results] == [number * number for number in numbers]
    processes = {process for _, process in results}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("flags", [DIRECT, DASK], ids=["DirectRunner", "DaskRunner"])
def test_errors_of_tasks_reach_the_caller(tmp_path, importable, flags, capfd):
    with open_engine(1, tmp_path, flags) as run:
        processes = {pid for _, pid in run(square_and_process, ((n,) for n in range(12)))}
        assert len(processes) > 1
        assert os.getpid() not in processes
        with pytest.raises(InputError, match=r"^3 is bad$"):
            list(run(fail_at, ((n, 3) for n in range(6))))
        with pytest.raises(OSError, match="No space left on device: '/full/disk'"):
            list(run(fail_with_full_disk, ((n,) for n in range(4))))
        if flags == DIRECT:
            with pytest.raises(OSError, match=r"failed: .*a worker process was killed"):
                list(run(kill_itself, ((n,) for n in range(4))))
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in capfd.readouterr().err or flags != DIRECT


def test_a_task_that_runs_again_changes_nothing(tmp_path, no_pipeline):
    with open_engine(1, tmp_path, DIRECT) as run:
        assert list(run(slow_square, ((n,) for n in (1, 3)))) == [1, 9]
        assert list(run(slow_square, [(5,)])) == [25]  # one task needs no pipeline
        assert list(run(slow_square, [])) == []
        with pytest.raises(InputError, match=r"^1 is bad$"):
            list(run(fail_at, ((n, 1) for n in range(3))))
        with pytest.raises(OSError, match="No space left"):
            list(run(fail_with_full_disk, ((n,) for n in range(3))))


def test_an_attempt_that_succeeds_after_a_failure_counts(tmp_path):
    folder, attempts = tmp_path / "beam", []

    def flaky(number):
        attempts.append(number)
        if len(attempts) == 1:
            raise OSError(5, "Input/output error")
        return number

    folder.mkdir()
    task = engines._Task(7, flaky, (7,))
    with pytest.raises(OSError, match="Input/output"):
        engines._run_task(task, str(folder))
    assert [file.suffix for file in folder.iterdir()] == [".failed"]
    engines._run_task(task, str(folder))
    (file,) = folder.iterdir()
    assert json.loads(file.read_text()) == 7
    with pytest.raises(OSError, match=r"elsewhere is not on .*; use a directory that all work"):
        engines._run_task(task, str(tmp_path / "elsewhere"))


def test_results_that_do_not_arrive_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(engines._BeamMap, "_run", lambda self, elements: None)
    with (
        pytest.raises(InputError, match=r"did not write to .*; expected a directory that all"),
        open_engine(1, tmp_path, DIRECT) as run,
    ):
        list(run(slow_square, [(1,), (2,)]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--direct_num_worker=2"], "got --direct_num_worker, which Beam's DirectRunner does not"),
        (["--runner=Nobody"], "Unexpected pipeline runner: Nobody"),
        (["-x"], "got -x among Beam's options; expected --NAME=VALUE"),
        (["--direct_num_workers=two"], "which Beam refuses; see the lines above"),
    ],
)
def test_unknown_flags_of_beam_are_refused(tmp_path, flags, message):
    with pytest.raises(InputError, match=message), open_engine(1, tmp_path, flags):
        raise AssertionError


def test_a_machine_without_beam_gets_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    (tmp_path / "a.jsonl").write_text('{"text": "some words"}\n')
    command = ["build-corpus", f"--source=text:{tmp_path}/a.jsonl", f"--out={tmp_path}/out"]
    assert main([*command, "--engine=beam"]) == 2
    error = capsys.readouterr().err
    assert "Apache Beam is not installed" in error
    assert "pip install 'biomedlm-jax[beam]'" in error
    assert main([*command, "--beam_options=--runner=DirectRunner"]) == 2
    assert "--beam_options without --engine=beam" in capsys.readouterr().err
    assert main([*command, "--engine=beam", "--workers=2"]) == 2
    assert "--workers with --engine=beam" in capsys.readouterr().err


@pytest.mark.slow
def test_workers_of_direct_runner_end_with_their_parent(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from biomedlm_jax.corpus.engines import open_engine\n"
        "from pool_tasks import write_pid_and_wait\n"
        "if __name__ == '__main__':\n"
        "    with open_engine(1, Path(sys.argv[1]), sys.argv[2:]) as run:\n"
        "        list(run(write_pid_and_wait, ((sys.argv[1], n) for n in range(4))))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [sys.executable, "-c", code, str(tmp_path), *DIRECT]
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (files := list(tmp_path.glob("pid*"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    workers = [int(file.read_text()) for file in files]
    parent.kill()
    parent.wait()
    assert workers
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.1)
