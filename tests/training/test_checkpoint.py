import dataclasses

import jax
import numpy as np
import pytest
from gcs import bucket, gcs_server  # noqa: F401

from biomedlm_jax.buckets import as_path
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.mesh import one_device
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.training.checkpoint import Checkpointer, load_tree, save_model
from biomedlm_jax.training.saved_steps import steps


def test_a_checkpoint_of_another_model_is_refused(finished):
    other = abstract_model(dataclasses.replace(model_config(finished), layers=3), one_device())
    with pytest.raises(ValueError, match=r"of another model: h\.attn\..* is float32"):
        load_tree(finished, other)


def test_a_step_that_is_not_there_names_those_that_are(finished):
    with pytest.raises(InputError, match=r"no finished checkpoint of step 5; finished: \[6"):
        load(finished, step=5)


def test_a_model_alone_round_trips(finished, tmp_path):
    model, _ = load(finished, step=8)
    save_model(tmp_path / "other", model)
    again = load_tree(tmp_path / "other", abstract_model(model.config, one_device()))
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_storage_that_fails_while_weights_are_read_is_retryable(finished, bucket, monkeypatch):  # noqa: F811
    model, _ = load(finished, step=8)
    run = as_path(bucket) / "run"
    save_model(run, model)

    def fail(*_, **__):
        raise ValueError("UNAVAILABLE: Error reading")  # as TensorStore raises it

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.restore", fail)
    with pytest.raises(OSError, match=r"cannot read gs://.*UNAVAILABLE"):
        load_tree(run, abstract_model(model.config, one_device()))


def test_old_steps_stay_while_the_storage_fails(finished, bucket, monkeypatch):  # noqa: F811
    model, _ = load(finished, step=8)
    run = as_path(bucket) / "run"
    for step in (1, 2, 3):
        save_model(run, model, step=step)
    checkpointer = Checkpointer(run, keep=2)
    checkpointer._saving = 3
    with monkeypatch.context() as patch:

        def fail(*_, **__):
            raise ConnectionRefusedError(111, "no answer")

        patch.setattr(run._fs, "ls", fail)
        checkpointer.prune()
    assert steps(run) == [1, 2, 3]
    checkpointer.prune()
    assert steps(run) == [2, 3]
    with monkeypatch.context() as patch:  # it costs no request until the next save
        patch.setattr(run._fs, "info", None)
        checkpointer.prune()
    checkpointer.close()
