import dataclasses
import importlib.util
from pathlib import Path

import pytest

from biomedlm_jax.finetuning.config import QuestionSettings
from biomedlm_jax.model.families import abstract_model, make_config
from biomedlm_jax.model.language_model import parameter_count
from biomedlm_jax.quickstart.config import (
    LENGTH,
    MODELS,
    VOCAB_SIZE,
    finetuning_config,
    pretraining_config,
)
from biomedlm_jax.settings import read_settings
from biomedlm_jax.training.pretrain import PretrainSettings

FILE = Path(__file__).parents[2] / "configs" / "finetune.py"


def test_the_quickstart_finetunes_with_the_variant_small_world():
    spec = importlib.util.spec_from_file_location("finetune", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = read_settings(QuestionSettings, module.get_config("small_world"))
    ours = read_settings(QuestionSettings, finetuning_config(config.task.name))
    assert ours == dataclasses.replace(config, model={})
    dropouts = [value for name, value in config.model.items() if "dropout" in name]
    assert dropouts == [0.0, 0.0, 0.0]  # as in the model of the quickstart


def test_pretraining_has_a_warmup_of_at_most_a_quarter():
    for steps, warmup in ((40, 10), (1_200, 50)):
        settings = read_settings(PretrainSettings, pretraining_config("rows", steps=steps))
        assert settings.optimizer.warmup_steps == warmup


@pytest.mark.parametrize("family", MODELS)
def test_the_model_of_each_family_has_some_hundred_thousand_parameters(family):
    settings = read_settings(PretrainSettings, pretraining_config("rows", steps=40, family=family))
    config = make_config(settings.model, vocab_size=VOCAB_SIZE, context_length=LENGTH)
    assert config.model_type == family
    assert 400_000 < parameter_count(abstract_model(config)) < 900_000
