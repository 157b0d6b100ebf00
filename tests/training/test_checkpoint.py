import dataclasses

import jax
import numpy as np
import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.mesh import one_device
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.training.checkpoint import load_tree, save_model


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
