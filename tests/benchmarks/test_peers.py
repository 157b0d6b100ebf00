import jax
import pytest

from biomedlm_jax.benchmarks.peers import check_hf, load_hf
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.model.families import make_model
from biomedlm_jax.model.gpt2 import GPT2Config


@pytest.mark.parametrize("name", ["foo", "hf", "hf sdpa fused", "torch sdpa"])
def test_a_name_of_another_form_is_refused(name):
    with pytest.raises(ValueError, match=r"expected 'hf ATTENTION \[static\] \[compile\]'"):
        check_hf(name)


def test_the_model_has_the_attention_and_dtype_of_its_name(tmp_path):
    torch = pytest.importorskip("torch")
    config = GPT2Config(layers=1, width=16, heads=2, vocab_size=32, context_length=8)
    export_hf(make_model(config, key=jax.random.key(0)), None, tmp_path / "model")
    model = load_hf("hf eager", str(tmp_path / "model"), dtype="bfloat16")
    assert model.config._attn_implementation == "eager"
    assert next(model.parameters()).dtype == torch.bfloat16
    assert not model.training
