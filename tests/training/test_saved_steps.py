import shutil

import jax
import numpy as np
import pytest
from gcs import bucket, gcs_server  # noqa: F401

from biomedlm_jax.buckets import as_path
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.mesh import one_device
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.training.checkpoint import load_tree, save_model
from biomedlm_jax.training.saved_steps import (
    COMMITTED,
    choose_step,
    is_committed,
    latest_step,
    steps,
)


def test_a_step_of_a_bucket_is_finished_by_its_mark_alone(finished, bucket):  # noqa: F811
    """Its hashes are written before: a kill in between leaves them."""
    model, _ = load(finished, step=8)
    run = as_path(bucket) / "run"
    for step in (1, 2):
        save_model(run, model, step=step)
    assert steps(run) == [1, 2]
    (run / "checkpoints/2" / COMMITTED).unlink()
    assert not is_committed(run / "checkpoints/2")
    assert (steps(run), latest_step(run)) == ([1], 1)
    abstract = abstract_model(model.config, one_device())
    with pytest.raises(InputError, match=r"no finished checkpoint of step 2; finished: \[1\]"):
        load_tree(run, abstract, step=2)
    assert choose_step(run, fallback=False) == 1
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["1", "2.unfinished"]
    for a, b in zip(*map(jax.tree.leaves, (model, load_tree(run, abstract))), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_was_set_aside_stays(finished, tmp_path, capsys):
    """Each damaged step gets a name of its own, also one of the same number."""
    run = shutil.copytree(finished, tmp_path / "run")
    folder, newest = run / "checkpoints", latest_step(run)
    for name in (f"{newest}.damaged", f"{newest}.damaged.2"):
        shutil.copytree(folder / str(newest), tmp_path / "whole", dirs_exist_ok=True)
        (folder / str(newest) / "data" / "metadata").write_text("{}")
        assert choose_step(run, fallback=True) == steps(run)[-1] < newest
        assert f"renamed to {name}\n" in capsys.readouterr().err
        assert (folder / name).is_dir()
        shutil.copytree(tmp_path / "whole", folder / str(newest))
    assert latest_step(run) == newest


def test_without_a_whole_step_there_is_no_fallback(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    for step in steps(run):
        (run / "checkpoints" / str(step) / "SHA256SUMS").unlink()
    for fallback in (False, True):
        with pytest.raises(InputError, match="no checkpoint is whole"):
            choose_step(run, fallback=fallback)
    assert not [*(run / "checkpoints").glob("*.damaged")]
