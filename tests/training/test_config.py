import dataclasses
import json

import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.settings import read_settings
from biomedlm_jax.training.config import LoRASettings, OptimizerSettings, changed_settings, to_json
from biomedlm_jax.training.pretrain import PretrainSettings


def test_the_published_optimizer_is_the_default_of_fine_tuning():
    settings = OptimizerSettings(learning_rate=1e-5, warmup_ratio=0.5)
    assert (settings.schedule, settings.beta1, settings.beta2) == ("linear", 0.9, 0.999)
    assert (settings.epsilon, settings.weight_decay, settings.clip_norm) == (1e-8, 0.0, 1.0)


def test_the_steps_of_the_warmup():
    for steps, ratio, expected in ((1_000, 0.03, 30), (1_001, 0.03, 31), (9, 0.0, 0)):
        assert OptimizerSettings(learning_rate=1, warmup_ratio=ratio).warmup_of(steps) == expected
    assert OptimizerSettings(learning_rate=1, warmup_steps=7).warmup_of(3) == 7


@pytest.mark.parametrize("name", ["fsdp", "data"])
def test_what_is_free_makes_no_difference(config, name):
    settings = read_settings(PretrainSettings, config)
    before = json.loads(json.dumps(to_json(settings)))
    mesh = dataclasses.replace(settings.mesh, **{name: 2})
    assert changed_settings(before, dataclasses.replace(settings, mesh=mesh)) == []
    lora = dataclasses.replace(settings.lora, alpha=3.0)
    assert changed_settings(before, dataclasses.replace(settings, lora=lora)) == [
        "lora.alpha=16.0 (now 3.0)"
    ]


def test_frozen_weights_of_runs_before_the_setting_were_float32(config):
    config.lora.rank = 2
    settings = read_settings(PretrainSettings, config)
    before = json.loads(json.dumps(to_json(settings)))
    del before["lora"]["frozen_dtype"]
    assert changed_settings(before, settings) == []
    lora = dataclasses.replace(settings.lora, frozen_dtype="bfloat16")
    (line,) = changed_settings(before, dataclasses.replace(settings, lora=lora))
    assert line.startswith("lora.frozen_dtype=")


def test_only_lora_freezes_weights():
    with pytest.raises(InputError, match=r"frozen_dtype=bfloat16 with lora.rank=0, .*; set"):
        LoRASettings(frozen_dtype="bfloat16")
    with pytest.raises(InputError, match="expected one of float32, bfloat16"):
        LoRASettings(rank=2, frozen_dtype="float16")
