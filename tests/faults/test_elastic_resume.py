"""A run resumes on another mesh, in another number of processes and with other parts of a batch."""

import json
import shutil
import signal

import numpy as np
import pytest

from biomedlm_jax.cli import main
from biomedlm_jax.corpus.batches import Batches
from biomedlm_jax.corpus.rows import Rows

# Every process writes its shards of what it restored and of the tokens that it trains on.
SHARDS = """
from biomedlm_jax.corpus import batches

def write_shards(name, tree):
    shards = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        for shard in leaf.addressable_shards:
            starts = [part.start or 0 for part in shard.index]
            shards[f"{jax.tree_util.keystr(path)}|{list(leaf.shape)}|{starts}"] = shard.data
    np.savez(folder / f"{name}.{jax.process_index()}.npz", **shards)

def restore(self, *arguments, original=checkpoint.Checkpointer.restore, **options):
    state, position = original(self, *arguments, **options)
    arrays = {"model": state.model, "opt": state.opt_state, "step": state.step}
    write_shards(f"restored.{int(state.step)}", arrays)
    return state, position

def following(self, original=batches.Batches.__next__):
    step = self.position()["step"]
    batch = original(self)
    write_shards(f"tokens.{step}", batch)
    return batch

checkpoint.Checkpointer.restore = restore
batches.Batches.__next__ = following
"""
# Process 0 of 2 receives a signal in its third step after step 2.
SIGNALLED = """
def signalled(*arguments, original=fit.jit_step, **options):
    update, calls = original(*arguments, **options), []
    def step(*values, **named):
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return update(*values, **named)
    return step

fit.jit_step = signalled
"""
# Storage shows process 1 an older state of the directory.
OLD_LISTING = """
def step_folders(path, original=saved_steps.step_folders):
    return original(path)[:-1]

saved_steps.step_folders = step_folders
"""


def assembled(records, name: str, *, count: int) -> list[np.ndarray]:
    """The arrays of which the processes wrote shards."""
    whole = {}
    for index in range(count):
        with np.load(records / f"{name}.{index}.npz") as shards:
            for key, shard in shards.items():
                leaf, shape, starts = key.split("|")
                array = whole.setdefault(leaf, np.full(json.loads(shape), 99, shard.dtype))
                part = zip(json.loads(starts), shard.shape, strict=True)
                array[tuple(slice(start, start + size) for start, size in part)] = shard
    return [*whole.values()]


@pytest.mark.slow
def test_other_meshes_and_processes_continue_the_run(faults, dataset, undisturbed, tmp_path):
    """One process, then two of which process 0 gets a signal, then one; eight devices each."""
    run, records = tmp_path / "run", tmp_path / "records"
    shutil.copytree(undisturbed, run)
    for step in (4, 6, 8):
        shutil.rmtree(run / "checkpoints" / str(step))
    two = {"mesh.data": 4, "mesh.fsdp": 2}
    started = faults.start_group(
        faults.pretrain_arguments(dataset, run, **{**faults.ELASTIC, **two}),
        records,
        each={0: {"patch": SHARDS + SIGNALLED}, 1: {"patch": SHARDS + OLD_LISTING}},
    )
    texts = faults.ended(*started)
    assert [p.returncode for p in started] == [128 + signal.SIGUSR1] * 2, "\n".join(texts)
    assert faults.started_at(run) == 2
    assert faults.steps(run) == [2, 4, 5]
    one = {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2, "training.accumulation": 2}
    arguments = faults.pretrain_arguments(dataset, run, **{**faults.ELASTIC, **one})
    process = faults.start(arguments, records, patch=SHARDS, devices=8)
    (text,) = faults.ended(process)
    assert process.returncode == 0, text
    assert faults.started_at(run) == 5

    # Exactly the saved arrays are what is restored, whoever wrote them.
    for begin, count in ((2, 2), (5, 1)):
        restored = assembled(records, f"restored.{begin}", count=count)
        saved = [x for x in faults.saved_state(run, begin).values() if isinstance(x, np.ndarray)]
        assert len(saved) > 20
        assert sorted(map(faults.digest_of, restored)) == sorted(map(faults.digest_of, saved))
    # Every step has the rows that one device would have read.
    batches, rows = Batches(dataset, batch_size=8, seed=17), Rows(dataset, "train")
    for step in range(2, 8):
        (tokens,) = assembled(records, f"tokens.{step}", count=2 if step < 5 else 1)
        np.testing.assert_array_equal(tokens, rows.__getitems__(batches.rows_of(step)))
    batches.close()
    # The figures are those of the undisturbed run.
    for got, expected in zip(faults.lines_of(run), faults.lines_of(undisturbed), strict=True):
        assert sorted(got) == sorted(expected)
        for name in {*expected} & {"step", "loss", "train_loss", "validation_loss"}:
            assert got[name] == pytest.approx(expected[name], rel=0, abs=1e-5), name
    last = faults.saved_state(run)
    for name, expected in faults.saved_state(undisturbed).items():
        if isinstance(expected, np.ndarray):
            np.testing.assert_allclose(last[name], expected, rtol=0, atol=1e-4, err_msg=name)
        else:
            assert last[name]["data"] == expected["data"]
    changed = [event["changed"] for event in faults.read_events(run) if event["event"] == "start"]
    assert changed[-2]["mesh.data"] == [2, 4]
    assert changed[-1]["training.accumulation"] == [1, 2]


def test_accumulation_is_fixed_with_dropout(faults, dataset, reference, tmp_path, capsys):
    """The parts of a batch have dropout keys of their own."""
    run = shutil.copytree(reference[0], tmp_path / "run")
    saved = faults.steps(run)
    record = json.loads((run / "run.json").read_text())
    dropout = {"model.residual_dropout": 0.1}
    record["model"]["residual_dropout"] = 0.1
    record["started_from"]["initialisation"]["residual_dropout"] = 0.1
    (run / "run.json").write_text(json.dumps(record))
    settings = {**dropout, "training.accumulation": 2, "mesh.fsdp": 4, "mesh.tensor": 2}
    assert main(faults.pretrain_arguments(dataset, run, **settings)) == 2
    text = capsys.readouterr().err
    assert "training.accumulation=1 (now 2)" in text.splitlines()[-1]
    assert faults.steps(run) == saved
