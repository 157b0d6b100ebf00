"""Signals end the step, save and end the process with 128 plus their number; what is kept."""

import signal
import time

import pytest

# SIGTERM and SIGUSR1 arrive in an evaluation and in one of two processes.
SENT = ((signal.SIGINT,), (signal.SIGHUP,), (signal.SIGTERM, signal.SIGINT))
ENDLESS = {"training.steps": 1_000_000, "training.evaluate_every": 0}
# The evaluation waits for a file between its batches.
WAIT_IN_EVALUATION = """
from biomedlm_jax.training import pretrain

def slowly(*arguments, original=pretrain.validation_batches, **options):
    for number, batch in enumerate(original(*arguments, **options)):
        if number == 1 and not (folder / "continue").exists():
            (folder / "evaluating").touch()
            while not (folder / "continue").exists():
                time.sleep(0.01)
        yield batch

pretrain.validation_batches = slowly
"""


def test_every_signal_saves_the_step_and_ends_with_its_code(faults, dataset, tmp_path):
    run, records = tmp_path / "run", tmp_path / "records"
    arguments = faults.pretrain_arguments(dataset, run, **ENDLESS, **{"checkpoint.every": 10**6})
    step = 0
    for count, sent in enumerate(SENT, start=1):
        process = faults.start(arguments, records, pause=0.05)
        faults.wait_until(
            lambda step=step: faults.last_logged(run) > step + 1, process, what="two more steps"
        )
        began = time.monotonic()
        for number in sent:  # within a millisecond
            process.send_signal(number)
        (text,) = faults.ended(process)
        print(f"{sent}: {time.monotonic() - began:.2f} s")
        # Python handles signals that wait together in the order of their numbers.
        assert process.returncode in [128 + number for number in sent], text
        lines = [line["step"] for line in faults.lines_of(run)]
        assert lines == list(range(1, lines[-1] + 1))  # the step was finished and is the last
        assert faults.steps(run)[-1] == lines[-1]
        assert len((records / "saves.0.txt").read_text().splitlines()) == count
        assert faults.started_at(run) == step
        assert text.count("stopping after this step") == 1
        step = lines[-1]
        assert f"stopped at step {step} and saved" in text
    assert not (run / "lock.json").exists()


@pytest.mark.slow
def test_a_signal_in_an_evaluation_and_what_is_kept(faults, dataset, reference, tmp_path):
    run, records = tmp_path / "run", tmp_path / "records"
    arguments = faults.pretrain_arguments(dataset, run)
    process = faults.start(arguments, records, patch=WAIT_IN_EVALUATION)
    faults.wait_until((records / "evaluating").exists, process, what="an evaluation")
    process.send_signal(signal.SIGTERM)
    (records / "continue").touch()
    (text,) = faults.ended(process)
    assert process.returncode == 128 + signal.SIGTERM, text
    assert faults.steps(run) == [4, 6]  # saved before the evaluation
    assert "validation_loss" not in faults.lines_of(run)[-1]
    process = faults.start(arguments, records)
    (text,) = faults.ended(process)
    assert process.returncode == 0, text
    # Saved were 2, 4, ..., 12: the two newest stay, and multiples of 4.
    assert faults.steps(run) == faults.steps(reference[0]) == [4, 8, 10, 12]
    assert faults.lines_of(run) == faults.lines_of(reference[0])
    faults.assert_same_state(faults.saved_state(run), faults.saved_state(reference[0]))


@pytest.mark.slow
def test_processes_save_by_the_clock_and_stop_at_the_same_step(faults, dataset, tmp_path):
    """A signal to process 0 of 2 is in test_elastic_resume.py."""
    run, records = tmp_path / "run", tmp_path / "records"
    settings = {**ENDLESS, "logging.every": 1_000_000, "checkpoint.every": 1_000_000}
    settings |= {"checkpoint.minutes": 0.005, "checkpoint.keep_every": 0}
    arguments = faults.pretrain_arguments(dataset, run, **settings)
    started = faults.start_group(arguments, records, devices=2, pause=0.05)
    faults.wait_until(lambda: len(faults.steps(run)) == 2, *started, what="two checkpoints")
    began = time.monotonic()
    started[1].send_signal(signal.SIGUSR1)
    texts = faults.ended(*started)
    seconds = time.monotonic() - began
    print(f"a signal to process 1 of 2: {seconds:.2f} s")
    assert [p.returncode for p in started] == [128 + signal.SIGUSR1] * 2, "\n".join(texts)
    assert seconds < 5
    saves = [(records / f"saves.{i}.txt").read_text().split() for i in range(2)]
    assert saves[0] == saves[1]
    assert len(saves[0]) >= 3
    assert faults.steps(run) == [int(step) for step in saves[0][-2:]]  # checkpoint.keep
    assert [line["step"] for line in faults.lines_of(run)] == [1]
