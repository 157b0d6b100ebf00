import json

import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_json
from biomedlm_jax.integrity import write_sums
from biomedlm_jax.interop.inspection import describe, draw, inspect_run

LINES = [
    {"step": 4, "loss": 2.5, "learning_rate": 1e-3},
    {"step": 8, "loss": 1.25, "learning_rate": 1e-3},
    {"step": 8, "train_loss": 1.9, "validation_loss": 1.5},
]
SECONDS = {"start": 10.0, "step": 40.0, "data": 1.0, "save": 2.0, "evaluate": 3.0}
EVENTS = [
    {"time": 0.0, "event": "start", "step": 0, "processes": 1, "devices": 8, "changed": {}},
    {"time": 50.0, "event": "save", "step": 8, "seconds": SECONDS},
    {"time": 60.0, "event": "skip", "step": 9, "reason": "not finite", "loss": "nan", "rows": []},
    {
        "time": 100.0,
        "event": "start",
        "step": 8,
        "processes": 2,
        "devices": 16,
        "changed": {"mesh.data": [1, 2], "data.path": [None, "elsewhere"]},
    },
    {"time": 160.0, "event": "stop", "step": 12, "seconds": {**SECONDS, "step": 20.0}},
]


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path):
    """A run of 20 steps that has saved step 8, and its record."""
    path = tmp_path / "run"
    for step in (4, 8):
        (path / "checkpoints" / f"{step}" / "model").mkdir(parents=True)
        (path / "checkpoints" / f"{step}" / "model" / "weights").write_bytes(b"weights")
        write_sums(path / "checkpoints" / f"{step}")
    for name in ("12", "6.damaged", "2.unfinished"):
        (path / "checkpoints" / name).mkdir()
    training = {"steps": 20, "batch_size": 4}
    write_json(path / "run.json", {"recipe": "pretrain", "training": training})
    write_json(path / "manifest.json", {"length": 32, "splits": {"train": {"rows": 16}}})
    write_lines(path / "metrics.jsonl", LINES)
    write_lines(path / "events.jsonl", EVENTS)
    return path


def test_the_facts(run):
    facts = inspect_run(run)
    assert (facts["recipe"], facts["steps"], facts["last_step"]) == ("pretrain", 20, 8)
    assert facts["checkpoints"] == {"4": "finished", "8": "finished", "12": "never finished"}
    assert facts["set_aside"] == ["2.unfinished", "6.damaged"]
    # Of the newest finished checkpoint, counted by hand.
    assert facts["position"] == {"step": 8, "tokens": 8 * 4 * 32, "rows": 32, "passes": 2.0}
    assert [event["step"] for event in facts["starts"]] == [0, 8]
    assert [event["step"] for event in facts["skipped"]] == [9]
    assert facts["goodput"]["starts"] == 2
    assert facts["goodput"]["wall_seconds"] == 160.0
    assert facts["goodput"]["seconds"]["step"] == 60.0
    assert facts["lock"] is None
    assert "health" not in facts
    json.dumps(facts, allow_nan=False)


def test_the_lines(run):
    write_json(run / "lock.json", {"pid": 7, "host": "node3"})
    lines = describe(inspect_run(run, verify=True))
    expected = [
        f"directory: {run}",
        "recipe: pretrain",
        "step: 8 of 20",
        "loss: 1.25",
        "evaluation after step 8: train_loss 1.9, validation_loss 1.5",
        "saved at step 8: 1,024 tokens, 32 rows, 2.00 passes over the data",
        "checkpoints: 4 (finished), 8 (finished), 12 (never finished)",
        "set aside: checkpoints/2.unfinished, checkpoints/6.damaged",
        "locked by: process 7 on node3",
        "start 1970-01-01 00:00:00 UTC after step 0, 1 process, 8 devices",
        "start 1970-01-01 00:01:40 UTC after step 8, 2 processes, 16 devices; changed: "
        "mesh.data: 1 -> 2, data.path: None -> 'elsewhere'",
        "skip at step 9: not finite",
    ]
    assert [line for line in lines if line in expected] == expected
    assert "checkpoints/8: 1 file is whole" in lines
    assert "of 160 s in 2 starts (start 20 s, step 60 s, " in lines[-1]


def test_the_sources_of_a_mixture_have_passes_of_their_own(run):
    start = {"sources": {"1": {"rows": "a", "weight": 3}, "2": {"rows": "b", "weight": 1}}}
    training = {"steps": 20, "batch_size": 4}
    write_json(
        run / "run.json", {"recipe": "pretrain", "training": training, "started_from": start}
    )
    manifests = ({"rows": 16, "tokens": 512}, {"rows": 4, "tokens": 128})
    sources = [
        {
            "name": name,
            "weight": weight,
            "manifest": {"fingerprint": name, "splits": {"train": split}},
        }
        for name, weight, split in zip(("domain", "general"), (3, 1), manifests, strict=True)
    ]
    write_json(run / "sources.json", {"sources": sources})
    lines = describe(inspect_run(run))
    first = lines.index("saved at step 8: 1,024 tokens, 32 rows")
    assert lines[first + 1 : first + 3] == [
        "source domain: 75 % of the rows, 24 rows, 1.50 passes over 16 rows (512 tokens)",
        "source general: 25 % of the rows, 8 rows, 2.00 passes over 4 rows (128 tokens)",
    ]
    (run / "sources.json").unlink()
    with pytest.raises(InputError, match=r"sources.json of a run on a mixture is missing"):
        inspect_run(run)


def test_damage_is_a_line_of_a_verified_run(run):
    (run / "checkpoints" / "4" / "model" / "weights").write_bytes(b"Weights")
    before = inspect_run(run)["checkpoints"]
    assert before["4"] == "finished"
    lines = describe(inspect_run(run, verify=True))
    assert "checkpoints/4: DAMAGED: model/weights was changed after it was written" in lines


def test_a_run_that_has_just_begun(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    write_json(run / "run.json", {"recipe": "text", "training": {"epochs": 3}})
    facts = inspect_run(run, verify=True)
    assert (facts["last_step"], facts["checkpoints"], facts["starts"]) == (None, {}, [])
    assert describe(facts) == [
        f"directory: {run}",
        "recipe: text",
        "step: none is recorded",
        "checkpoints: none",
        "locked by: none",
        "record: whole",
    ]


def test_nothing_is_written(run):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    inspect_run(run, verify=True)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert (run / "checkpoints" / "12").is_dir()


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_files_that_a_crash_cut_off(run, cut):
    for name in ("metrics.jsonl", "events.jsonl"):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[:-cut])
    assert describe(inspect_run(run))


def test_a_loss_that_is_not_finite(run):
    write_lines(run / "metrics.jsonl", [{"step": 4, "loss": float("nan")}])
    facts = inspect_run(run)
    assert "loss: nan" in describe(facts)
    write_json(run.parent / "facts.json", facts)  # JSON has no NaN


def test_the_plot(run):
    file = draw(run)
    assert file == run / "loss.png"
    assert file.read_bytes().startswith(b"\x89PNG")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no run \(run.json\); name a --workdir of"):
        inspect_run(tmp_path)
