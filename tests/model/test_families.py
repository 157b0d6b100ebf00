import functools

import jax
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.families import (
    abstract_model,
    config_from_hf,
    config_to_hf,
    family,
    make_config,
    make_model,
)
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.model.language_model import named_leaves

TINY = {"vocab_size": 300, "context_length": 32, "layers": 2, "width": 64, "heads": 4}


def test_a_config_round_trips_through_json_and_through_hugging_face():
    config = GPT2Config(**TINY, unroll=2)
    assert make_config(config.to_json()) == config
    assert config_from_hf(config_to_hf(config), unroll=2) == config


def test_code_of_a_config_is_not_run_and_not_exported():
    config = {**config_to_hf(GPT2Config(**TINY)), "auto_map": {"AutoModel": "modeling.Own"}}
    with pytest.warns(RuntimeWarning, match=r"auto_map=.*, which is not run: .* read as a gpt2"):
        read = config_from_hf(config)
    assert read == GPT2Config(**TINY)
    assert "auto_map" not in config_to_hf(read)


def test_a_model_is_looked_up_by_its_type():
    make = functools.partial(make_model, GPT2Config(**TINY))
    model = jax.eval_shape(lambda: make(key=jax.random.key(0)))
    assert isinstance(model, GPT2)
    shapes = {name: leaf.shape for name, leaf in named_leaves(abstract_model(model.config)).items()}
    assert shapes == {name: leaf.shape for name, leaf in named_leaves(model).items()}
    mesh = meshes.make_mesh(fsdp=8)
    assert named_leaves(abstract_model(model.config, mesh))["wte"].sharding.mesh == mesh


@pytest.mark.parametrize("model_type", [None, "bert", 3])
def test_an_unknown_family_names_the_known_ones(model_type):
    with pytest.raises(ValueError, match=r"got model_type=.*; the known model families are gpt2"):
        family(model_type)


def test_an_unknown_setting_names_the_known_ones():
    with pytest.raises(ValueError, match=r"got model.rope, which is unknown; known: .*layers"):
        make_config({"model_type": "gpt2", **TINY, "rope": 1})
