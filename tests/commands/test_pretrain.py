from pathlib import Path

import biomedlm_jax
from biomedlm_jax.cli import main

CONFIG = Path(__file__).parents[2] / "configs" / "pretrain.py"


def test_the_flags_reach_the_library(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        biomedlm_jax, "pretrain", lambda *arguments: calls.append(arguments), raising=False
    )
    flags = [f"--config={CONFIG}:gpt_cpu", "--config.training.steps=7", f"--workdir={tmp_path}"]
    assert main(["pretrain", *flags]) == 0
    ((config, workdir),) = calls
    assert (config.training.steps, config.model.width, workdir) == (7, 256, str(tmp_path))
