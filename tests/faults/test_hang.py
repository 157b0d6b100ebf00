"""A run that hangs ends with exit code 1 and the stacks of its threads; one that works does not.

`faults.hang_minutes` counts from the place where a process hangs, so that a busy machine ends
none before.
"""

import itertools
import time

import pytest

from biomedlm_jax.cli import main
from biomedlm_jax.training import fit, pretrain
from biomedlm_jax.training.watchdog import Watchdog

SECONDS = 1.5
SETTINGS = {
    "training.steps": 6,
    "training.evaluate_every": 0,
    "checkpoint.every": 2,
    "faults.hang_minutes": SECONDS / 60,
}
# Before the mark of a place exists the time is long; it begins anew there.
LONG_UNTIL_MARK = """
from biomedlm_jax.training import watchdog
active, workdir = [], Path(sys.argv[-1].partition("=")[2])
def reset(self, original=watchdog.Watchdog.reset):
    short, active[:] = self._seconds, [self]
    if not Path(os.environ["MARK"]).exists():
        self._seconds = 600
    original(self)
    self._seconds = short
watchdog.Watchdog.reset = reset
def reach(name, original=reach):
    if name == place and visits == 1:
        while not (workdir / "checkpoints" / "2" / "SHA256SUMS").exists():
            time.sleep(0.01)
        Path(os.environ["MARK"]).touch()
        active[0].reset()
    original(name)
"""
HANGING_SAVE = """
def write_sums(directory):
    if Path(directory).name.startswith("4"):
        reach("write_sums")
    original_sums(directory)
original_sums, checkpoint.write_sums = checkpoint.write_sums, write_sums
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["step:3", "write_sums:1"])
def test_a_run_that_hangs_ends_with_stacks(faults, dataset, tmp_path, place):
    run, patch = tmp_path / "run", LONG_UNTIL_MARK + HANGING_SAVE
    arguments = faults.pretrain_arguments(dataset, run, **SETTINGS)
    process = faults.start(arguments, tmp_path / "records", place=place, patch=patch)
    faults.wait_until((tmp_path / "records" / "mark").exists, process, what="the hang")
    began = time.monotonic()
    (text,) = faults.ended(process)
    assert process.returncode == 1, text
    assert time.monotonic() - began < faults.PATIENCE / 2
    assert "Timeout (0:00:01.5" in text
    assert text.count("Thread 0x") > 1
    assert "in reach" in text  # in the thread that saves, too
    assert "Traceback" not in text
    assert faults.steps(run) == [2]
    # A launcher starts the same command again.
    again = faults.start(arguments, tmp_path / "records", patch=LONG_UNTIL_MARK)
    (text,) = faults.ended(again)
    assert again.returncode == 0, text
    assert faults.started_at(run) == 2
    assert faults.steps(run)[-1] == 6


def test_every_step_and_every_batch_of_an_evaluation_beats(faults, dataset, tmp_path, monkeypatch):
    calls = []
    batches, jit_step = pretrain.validation_batches, fit.jit_step

    def recorded_batches(*arguments, **options):
        for batch in batches(*arguments, **options):
            calls.append("batch")
            yield batch

    def recorded_steps(*arguments, **options):
        step = jit_step(*arguments, **options)

        def stepping(*values, **named):
            calls.append("step")
            return step(*values, **named)

        return stepping

    monkeypatch.setattr(Watchdog, "reset", lambda self: calls.append("reset"))
    monkeypatch.setattr(Watchdog, "stop", lambda self: calls.append("stop"))
    monkeypatch.setattr(pretrain, "validation_batches", recorded_batches)
    monkeypatch.setattr(fit, "jit_step", recorded_steps)
    settings = {**SETTINGS, "training.evaluate_every": 3, "faults.hang_minutes": 60}
    assert main(faults.pretrain_arguments(dataset, tmp_path / "run", **settings)) == 0
    assert calls.count("step") == 6
    assert calls.count("batch") > 3
    work = [call for call in calls if call != "stop"]
    for first, second in itertools.pairwise(work):
        assert "reset" in (first, second), work
    assert calls[0] == "reset"
    assert calls[-1] == "stop"
