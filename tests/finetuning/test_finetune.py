import pytest

from biomedlm_jax.finetuning.finetune import finetune


def test_the_config_names_the_recipe(question_config, world, tmp_path):
    config = question_config()
    config.recipe = "chat"
    with pytest.raises(ValueError, match="recipe='chat'; expected one of questions, text"):
        finetune(config, world / "base", tmp_path / "run")
    with config.unlocked():
        del config["recipe"]
    with pytest.raises(ValueError, match="recipe=None"):
        finetune(config, world / "base", tmp_path / "run")
    assert not (tmp_path / "run").exists()
