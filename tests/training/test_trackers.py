"""trackers.py: threads that never disturb training, fakes of each package, and the real ones."""

import json
import sys
import threading
import time
import types

import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.training import trackers
from biomedlm_jax.training.metrics import Recorder
from biomedlm_jax.training.trackers import Background, check_trackers

FACTS = {"training": {"steps": 4, "seed": 1}, "versions": {"jax": "0"}}


class Recorded:
    """A tracker in memory, which may fail or block."""

    def __init__(self, fail=None, block=None):
        self.lines, self.finished = [], None
        self._fail, self._block = fail, block

    def log(self, step, metrics):
        if self._block:
            self._block.wait()
        if self._fail:
            raise self._fail
        self.lines.append((step, metrics))

    def close(self, *, finished):
        self.finished = finished


def test_lines_arrive_in_order_and_the_end_is_passed_on():
    there, reported = Recorded(), []
    tracker = Background("x", lambda: there, reported.append)
    for step in range(100):
        tracker.log(step, {"loss": 1.0 / (step + 1)})
    tracker.close(finished=True)
    assert there.lines == [(step, {"loss": 1.0 / (step + 1)}) for step in range(100)]
    assert there.finished is True
    assert reported == []


@pytest.mark.parametrize("error", [OSError("no network\nmore"), SystemExit(1), KeyError("loss")])
def test_a_failure_is_one_line(error):
    lines, failing = [], Recorded(fail=error)
    tracker = Background("x", lambda: failing, lines.append)
    for step in range(3):
        tracker.log(step, {"loss": 1.0})
        time.sleep(0.01)
    tracker.close(finished=True)
    assert len(lines) == 1
    assert lines[0].startswith("tracker x: ")
    assert lines[0].endswith("; training continues without")
    assert "\n" not in lines[0]


def test_a_start_that_fails_is_one_line():
    lines = []

    def refuse():
        raise ConnectionError("refused")

    tracker = Background("x", refuse, lines.append)
    tracker.log(1, {"loss": 1.0})
    tracker.close(finished=False)
    assert lines == ["tracker x: refused; training continues without"]


def test_a_tracker_that_hangs_takes_no_time(monkeypatch):
    monkeypatch.setattr(trackers, "QUEUE", 5)
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.1)
    block, lines = threading.Event(), []
    tracker = Background("x", lambda: Recorded(block=block), lines.append)
    began = time.monotonic()
    for step in range(1000):
        tracker.log(step, {"loss": 1.0})
    tracker.close(finished=True)
    assert time.monotonic() - began < 2
    assert lines == ["tracker x: 5 lines wait for it; further ones are dropped"]
    block.set()


def test_an_absent_package_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"wandb is not installed; fix: pip install 'biomedlm-jax"):
        check_trackers(("tensorboard", "wandb"))
    check_trackers(("tensorboard",))


def fake_wandb(runs, mode="offline", logged_in=True):
    class Run:
        def __init__(self, **options):
            self.options, self.lines, self.code = options, [], None

        def log(self, values, step):
            self.lines.append((step, values))

        def finish(self, exit_code):
            self.code = exit_code

    def init(**options):
        runs.append(Run(**options))
        return runs[-1]

    settings = types.SimpleNamespace(mode=mode)
    return types.SimpleNamespace(
        init=init,
        setup=lambda: types.SimpleNamespace(settings=settings),
        login=lambda **_: logged_in,
        Settings=lambda **options: options,
    )


def record(directory, *, first_step, names, finish=True):
    options = {"first_step": first_step, "steps": 4, "trackers": names, "facts": FACTS}
    recorder = Recorder(directory, **options)
    for step in (first_step + 1, first_step + 2):
        recorder.write(step, {"loss": 1.0 / step, "learning_rate": 0.5})
    recorder.write(first_step + 2, {"validation_loss": 0.25})
    recorder.event("finish" if finish else "stop", step=first_step + 2)
    recorder.close()


def test_wandb_continues_the_run_that_the_directory_names(tmp_path, monkeypatch, capsys):
    runs = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(runs, mode="online"))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    record(tmp_path, first_step=0, names=("wandb",), finish=False)
    record(tmp_path, first_step=2, names=("wandb",))
    first, second = runs
    assert first.options["id"] == second.options["id"]
    assert json.loads((tmp_path / "trackers" / "wandb.json").read_text()) == {
        "id": first.options["id"]
    }
    assert (first.options["project"], first.options["resume"]) == ("biomedlm", "allow")
    assert (first.options["config"], second.options["config"]) == (FACTS, None)
    assert (first.code, second.code) == (1, 0)
    assert first.lines[-1] == (2, {"validation_loss": 0.25})
    assert [step for step, _ in second.lines] == [3, 4, 4]
    assert "tracker" not in capsys.readouterr().err


def test_wandb_without_a_key_does_not_end_or_ask(tmp_path, monkeypatch, capsys):
    runs = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(runs, "online", logged_in=False))
    record(tmp_path, first_step=0, names=("wandb",))
    assert runs == []
    assert not (tmp_path / "trackers").exists()
    assert capsys.readouterr().err.count("tracker wandb: no API key; fix: wandb login") == 1


def test_the_real_wandb_offline(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    record(tmp_path, first_step=0, names=("wandb",))
    record(tmp_path, first_step=2, names=("wandb",))
    id = json.loads((tmp_path / "trackers" / "wandb.json").read_text())["id"]
    written = [*tmp_path.glob(f"wandb/offline-run-*-{id}/run-{id}.wandb")]
    assert written
    assert all(one.stat().st_size > 0 for one in written)
    assert "tracker" not in capsys.readouterr().err


def test_the_real_mlflow(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    record(tmp_path / "run", first_step=0, names=("mlflow",), finish=False)
    record(tmp_path / "run", first_step=2, names=("mlflow",))
    from mlflow import MlflowClient

    id = json.loads((tmp_path / "run" / "trackers" / "mlflow.json").read_text())["id"]
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("biomedlm").experiment_id])
    assert (run.info.run_id, run.info.status, run.info.run_name) == (id, "FINISHED", "run")
    assert run.data.params["training.seed"] == "1"
    losses = [(one.step, one.value) for one in client.get_metric_history(id, "loss")]
    assert losses == [(step, 1.0 / step) for step in (1, 2, 3, 4)]
    assert "tracker" not in capsys.readouterr().err


def test_the_real_trackio(tmp_path, monkeypatch, capsys):
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "store")
    record(tmp_path / "run", first_step=0, names=("trackio",))
    record(tmp_path / "run", first_step=2, names=("trackio",))
    id = json.loads((tmp_path / "run" / "trackers" / "trackio.json").read_text())["id"]
    assert SQLiteStorage.get_runs("biomedlm") == [id]
    logs = SQLiteStorage.get_logs("biomedlm", id)
    assert [(one["step"], one["loss"]) for one in logs if "loss" in one] == [
        (step, 1.0 / step) for step in (1, 2, 3, 4)
    ]
    assert "tracker trackio" not in capsys.readouterr().err
