import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.gpt2 import GPT2Config
from biomedlm_jax.training.description import describe_run

SIZES = {"vocab_size": 300, "context_length": 32, "layers": 2, "width": 64, "heads": 4}


@pytest.mark.parametrize(
    ("platform", "dropout", "kernel"),
    [
        ("cpu", 0.0, "attention by xla"),
        (
            "tpu",
            0.0,
            "attention by xla (not splash: it works on blocks of 128 positions, not on 32)",
        ),
        ("gpu", 0.1, "attention by xla (not cudnn: it has no dropout (set model.attention_drop"),
    ],
)
def test_a_run_states_its_kernel_and_why_it_is_not_fused(monkeypatch, platform, dropout, kernel):
    monkeypatch.setattr(meshes, "platform", lambda: platform)
    config = GPT2Config(**SIZES, compute_dtype="float32", attention_dropout=dropout)
    line = describe_run(abstract_model(config), meshes.make_mesh(data=2, fsdp=4))
    wanted = "121,344 parameters on 8 cpu (data 2 x fsdp 4 x tensor 1), float32, "
    assert line.startswith(wanted + kernel)
