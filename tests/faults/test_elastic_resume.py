"""A run resumes on another mesh, in another number of processes and with other parts of a batch."""

import json
import shutil

import numpy as np
import pytest

from biomedlm_jax.cli import main
from biomedlm_jax.corpus.batches import Batches
from biomedlm_jax.corpus.rows import Rows

# Eight devices each: processes, and what differs from the undisturbed run.
STAGES = [
    (2, 2, {"mesh.data": 4, "mesh.fsdp": 2, "training.accumulation": 1}),
    (4, 1, {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2, "training.accumulation": 2}),
]
# Writes what a process restored and which tokens it trains on, gathered from all processes.
GATHER = """
from jax.experimental import multihost_utils

def gathered(tree):
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    whole = lambda leaf: multihost_utils.process_allgather(leaf, tiled=True)
    return {jax.tree_util.keystr(path): np.asarray(whole(leaf)) for path, leaf in pairs}

def restore(self, *arguments, original=checkpoint.Checkpointer.restore, **options):
    state, position = original(self, *arguments, **options)
    arrays = gathered({"model": state.model, "opt": state.opt_state, "step": state.step})
    if jax.process_index() == 0:
        np.savez(folder / f"restored.{int(state.step)}.npz", **arrays)
    return state, position

from biomedlm_jax.corpus import batches

def following(self, original=batches.Batches.__next__):
    step = self.position()["step"]
    batch = original(self)
    tokens = np.asarray(multihost_utils.process_allgather(batch, tiled=True))
    if jax.process_index() == 0:
        np.save(folder / f"tokens.{step}.npy", tokens)
    return batch

checkpoint.Checkpointer.restore = restore
batches.Batches.__next__ = following
"""


def test_other_meshes_and_processes_continue_the_run(faults, dataset, undisturbed, tmp_path):
    run, records = tmp_path / "run", tmp_path / "records"
    shutil.copytree(undisturbed, run)
    for begin, count, changes in STAGES:
        for step in faults.steps(run):
            if step > begin:
                shutil.rmtree(run / "checkpoints" / str(step))
        arguments = faults.pretrain_arguments(dataset, run, **{**faults.ELASTIC, **changes})
        if count == 1:
            started = [faults.start(arguments, records, patch=GATHER, devices=8)]
        else:
            started = faults.start_group(arguments, records, patch=GATHER, count=count)
        texts = faults.ended(*started)
        assert [p.returncode for p in started] == [0] * count, "\n".join(texts)
        assert faults.started_at(run) == begin

        # Exactly the saved arrays are what is restored, whoever wrote them.
        with np.load(records / f"restored.{begin}.npz") as arrays:
            restored = dict(arrays)
        saved = faults.saved_state(run, begin)
        saved.pop("data")
        by_value = sorted(map(faults.digest_of, restored.values()))
        assert by_value == sorted(map(faults.digest_of, saved.values()))
        # Every step has the rows that one device would have read.
        batches = Batches(dataset, batch_size=8, seed=17)
        rows = Rows(dataset, "train")
        for step in range(begin, 8):
            tokens = np.load(records / f"tokens.{step}.npy")
            numbers = batches.rows_of(step)
            np.testing.assert_array_equal(tokens, rows.__getitems__(numbers))
            (records / f"tokens.{step}.npy").unlink()
        batches.close()
        # The figures are those of the undisturbed run.
        assert [sorted(r) for r in faults.lines_of(run)] == [
            sorted(r) for r in faults.lines_of(undisturbed)
        ]
        for got, expected in zip(faults.lines_of(run), faults.lines_of(undisturbed), strict=True):
            for name in {*expected} & {"step", "loss", "train_loss", "validation_loss"}:
                assert got[name] == pytest.approx(expected[name], rel=0, abs=1e-5), name
        last = faults.saved_state(run)
        for name, expected in faults.saved_state(undisturbed).items():
            if isinstance(expected, np.ndarray):
                np.testing.assert_allclose(last[name], expected, rtol=0, atol=1e-4, err_msg=name)
            else:
                assert last[name].keys() == expected.keys()
                assert last[name]["data"] == expected["data"]
    changed = [event["changed"] for event in faults.read_events(run) if event["event"] == "start"]
    assert changed[-2]["mesh.data"] == [2, 4]
    assert changed[-1]["training.accumulation"] == [1, 2]


def test_accumulation_is_fixed_with_dropout(faults, dataset, undisturbed, tmp_path, capsys):
    """The parts of a batch have dropout keys of their own."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    record = json.loads((run / "run.json").read_text())
    dropout = {"model.residual_dropout": 0.1}
    record["model"]["residual_dropout"] = 0.1
    record["started_from"]["initialisation"]["residual_dropout"] = 0.1
    (run / "run.json").write_text(json.dumps(record))
    settings = {
        **faults.ELASTIC,
        **dropout,
        "training.accumulation": 2,
        "mesh.fsdp": 4,
        "mesh.tensor": 2,
    }
    assert main(faults.pretrain_arguments(dataset, run, **settings)) == 2
    text = capsys.readouterr().err
    assert "training.accumulation=1 (now 2)" in text.splitlines()[-1]
    assert len(faults.steps(run)) == 4
