"""Signals end the step, save and end the process with 128 plus their number; what is kept."""

import signal
import time

import pytest

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
ENDLESS = {"training.steps": 1_000_000, "training.evaluate_every": 0}
# The evaluation waits for a file between its batches.
WAIT_IN_EVALUATION = """
from biomedlm_jax.training import pretrain

def slowly(*arguments, original=pretrain.validation_batches, **options):
    for number, batch in enumerate(original(*arguments, **options)):
        if number == 1 and not (folder / "go on").exists():
            (folder / "evaluating").touch()
            while not (folder / "go on").exists():
                time.sleep(0.01)
        yield batch

pretrain.validation_batches = slowly
"""


def test_every_signal_saves_the_step_and_ends_with_its_code(faults, dataset, tmp_path):
    run, records = tmp_path / "run", tmp_path / "records"
    arguments = faults.pretrain_arguments(dataset, run, **ENDLESS, **{"checkpoint.every": 10**6})
    step, both = 0, (signal.SIGTERM, signal.SIGINT)
    for count, sent in enumerate([*((number,) for number in SIGNALS), both], start=1):
        process = faults.start(arguments, records)
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


def test_a_signal_in_an_evaluation_and_what_is_kept(faults, dataset, tmp_path):
    run, records, undisturbed = tmp_path / "run", tmp_path / "records", tmp_path / "undisturbed"
    settings = {"checkpoint.keep_every": 6, "training.evaluate_every": 8, "training.steps": 14}
    settings |= {"checkpoint.keep": 2}
    for directory in (undisturbed, run):
        arguments = faults.pretrain_arguments(dataset, directory, **settings)
        patch = WAIT_IN_EVALUATION if directory == run else ""
        process = faults.start(arguments, records, patch=patch)
        if directory == run:
            faults.wait_until((records / "evaluating").exists, process, what="an evaluation")
            process.send_signal(signal.SIGTERM)
            (records / "go on").touch()
            (text,) = faults.ended(process)
            assert process.returncode == 128 + signal.SIGTERM, text
            assert faults.steps(run) == [6, 8]  # saved before the evaluation
            assert "validation_loss" not in faults.lines_of(run)[-1]
            process = faults.start(arguments, records)
        (text,) = faults.ended(process)
        assert process.returncode == 0, text
        # Saved were 2, 4, ..., 14: the two newest stay, and multiples of 6.
        assert faults.steps(directory) == [6, 12, 14]
    assert faults.lines_of(run) == faults.lines_of(undisturbed)
    faults.assert_same_state(faults.saved_state(run), faults.saved_state(undisturbed))


@pytest.mark.slow
def test_processes_stop_and_save_by_the_clock_at_the_same_step(faults, dataset, tmp_path):
    run, records = tmp_path / "run", tmp_path / "records"
    settings = {**ENDLESS, "logging.every": 1_000_000, "checkpoint.every": 1_000_000}
    settings |= {"mesh.data": 2, "mesh.fsdp": 4, "checkpoint.minutes": 0.01}
    arguments = faults.pretrain_arguments(dataset, run, **settings)
    for number, receiver in ((signal.SIGTERM, 1), (signal.SIGUSR1, 0)):
        before = faults.steps(run)
        started = faults.start_group(arguments, records)
        faults.wait_until(
            lambda before=before: len({*faults.steps(run)} - {*before}) == 2,
            *started,
            what="two checkpoints by the clock",
        )
        began = time.monotonic()
        started[receiver].send_signal(number)
        texts = faults.ended(*started)
        seconds = time.monotonic() - began
        print(f"a signal to process {receiver} of 2: {seconds:.2f} s")
        assert [p.returncode for p in started] == [128 + number] * 2, "\n".join(texts)
        assert seconds < 5
        saves = [(records / f"saves.{i}.txt").read_text().split() for i in range(2)]
        assert saves[0] == saves[1]
        assert faults.steps(run)[-1] == int(saves[0][-1])
        assert len(faults.steps(run)) == 2  # checkpoint.keep
        assert len(faults.lines_of(run)) <= 2  # the first step of a start alone is logged
        if before:
            assert faults.started_at(run) == before[-1]
