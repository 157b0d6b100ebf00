from pathlib import Path

import biomedlm_jax
from biomedlm_jax.cli import main
from biomedlm_jax.interop import initial

CONFIG = Path(__file__).parents[2] / "configs" / "pretrain.py"


def test_the_flags_reach_the_library(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(initial, "initial_weights", lambda path: f"weights of {path}")
    monkeypatch.setattr(
        biomedlm_jax, "pretrain", lambda *a, **named: calls.append((a, named)), raising=False
    )
    flags = [f"--config={CONFIG}:gpt_cpu", "--config.training.steps=7", f"--workdir={tmp_path}"]
    assert main(["pretrain", *flags]) == 0
    assert main(["pretrain", *flags, "--init=base", "--extend"]) == 0
    ((config, workdir), named), (_, others) = calls
    assert (config.training.steps, config.model.width, workdir) == (7, 256, str(tmp_path))
    assert named == {"init": None, "extend": False, "fallback": False, "replay": None}
    assert others == {**named, "init": "weights of base", "extend": True}
