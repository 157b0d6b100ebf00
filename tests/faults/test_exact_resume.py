"""A run that is killed at any moment and started again is bit for bit the undisturbed run.

BIOMEDLM_KILLS=20 adds 20 kills at random moments to those at chosen places.
"""

import os
import random
import shutil
import time

import pytest
from cases import mostly_slow

RANDOM_KILLS = int(os.environ.get("BIOMEDLM_KILLS", "0"))
# The name of a place in conftest's PRELUDE, and at which visit the process is killed there.
PLACES = {
    "pretrain": ["hashed:2", "committed:1", "metrics:1"],
    "medqa": ["step:2", "saving:2", "prune:1"],
    "meqsum": ["metrics:3", "hashed:1", "committed:2"],
}


def kill_at_random(faults, arguments, run, records, rng) -> bool:
    """Kill a process some time after it has begun; return whether it had not finished before."""
    process = faults.start(arguments, records)
    starts = len(starts_of(faults, run))
    if rng.random() < 0.8:  # otherwise before, or while, it restores and compiles
        faults.wait_until(
            lambda: process.poll() is not None or len(starts_of(faults, run)) > starts,
            what="the start of a run",
        )
        goal = faults.started_at(run) + rng.randrange(4)
        faults.wait_until(
            lambda: process.poll() is not None or faults.last_logged(run) >= goal,
            what=f"step {goal}",
        )
    time.sleep(rng.random() * 0.4 if rng.random() < 0.8 else rng.random() * 2)
    process.kill()
    process.wait()
    return process.returncode == -9


def starts_of(faults, run) -> list:
    return [event for event in faults.read_events(run) if event["event"] == "start"]


@pytest.mark.parametrize("recipe", mostly_slow(PLACES, ["pretrain"]))
def test_killed_anywhere_it_ends_as_the_undisturbed_run(
    recipe, faults, dataset, finetuning, tmp_path, request
):
    extra = 3 * RANDOM_KILLS
    if recipe == "pretrain":
        arguments = faults.pretrain_arguments(dataset, "RUN", **{"training.steps": 12 + extra})[:-1]
    else:
        arguments = [*finetuning[recipe], f"--config.training.epochs={2 + extra // 3}"]
    undisturbed, run, records = (tmp_path / name for name in ("undisturbed", "run", "records"))
    expected = tmp_path / "expected"
    if recipe == "pretrain" and not extra:
        undisturbed, expected = request.getfixturevalue("reference")
    else:
        process = faults.start([*arguments, f"--workdir={undisturbed}"], expected)
        (text,) = faults.ended(process)
        assert process.returncode == 0, text

    arguments.append(f"--workdir={run}")
    for place in PLACES[recipe]:
        process = faults.start(arguments, records, place=place)
        faults.wait_until((records / "mark").exists, process, what=place)
        process.kill()
        process.wait()
    rng, kills = random.Random(recipe), 0
    while kills < RANDOM_KILLS and kill_at_random(faults, arguments, run, records, rng):
        kills += 1
    print(f"{recipe}: {len(PLACES[recipe])} kills at places, {kills} random ones")
    process = faults.start(arguments, records)
    (text,) = faults.ended(process)
    assert process.returncode == 0, text

    assert faults.lines_of(run) == faults.lines_of(undisturbed)  # none is doubled or missing
    assert faults.steps(run) == faults.steps(undisturbed)
    assert not [path for path in (run / "checkpoints").iterdir() if "tmp" in path.name]
    faults.assert_same_state(faults.saved_state(run), faults.saved_state(undisturbed))
    assert faults.order_of(records) == faults.order_of(expected)
    assert (run / "metrics.jsonl").read_bytes().endswith(b"}\n")
    starts = starts_of(faults, run)
    assert len(starts) >= len(PLACES[recipe])
    if recipe != "pretrain":  # the best model
        files = [
            {
                f.relative_to(where): f.read_bytes()
                for f in sorted((where / "model").rglob("*.json"))
            }
            for where in (run, undisturbed)
        ]
        assert files[0] == files[1]
        models = [faults.saved_model(where / "model") for where in (run, undisturbed)]
        faults.assert_same_state(*models)
    shutil.rmtree(tmp_path / "run")
