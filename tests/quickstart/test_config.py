"""The quickstart's fine-tuning is the one that configs/finetune_small_world.py describes."""

import importlib.util
from pathlib import Path

from biomedlm_jax.qa.setup import check_config
from biomedlm_jax.quickstart.config import get_finetuning_config

FILE = Path(__file__).parents[2] / "configs" / "finetune_small_world.py"


def test_the_tour_tunes_with_the_config_that_the_readme_names():
    spec = importlib.util.spec_from_file_location("finetune_small_world", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    check_config(config)
    assert config == get_finetuning_config(config.task.name)
