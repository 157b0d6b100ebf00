"""export-hf, import-hf and back, through the command line on a mesh of eight devices."""

import jax
import numpy as np
import pytest

from biomedlm_jax.cli import main
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.interop.finetuned import save_finetuned
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.model.families import make_model
from biomedlm_jax.model.gpt2 import GPT2Config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    tokenizer = train_tokenizer(
        ["the kinase binds the receptor of a liver cell"] * 9, vocab_size=270
    )
    config = GPT2Config(vocab_size=270, context_length=16, layers=2, width=32, heads=2)
    path = tmp_path_factory.mktemp("models") / "run"
    save_finetuned(path, make_model(config, key=jax.random.key(0)), tokenizer)
    return path


def test_a_run_is_exported_and_imported(run, tmp_path, capsys):
    release, back = tmp_path / "release", tmp_path / "back"
    flags = [f"--model={run}", f"--out={release}", "--max_shard_size=50KB", "--fsdp=2"]
    assert main(["export-hf", *flags]) == 0
    assert f"biomedlm verify-hf --model={release}" in capsys.readouterr().out
    assert len(list(release.glob("*.safetensors"))) > 1
    assert main(["export-hf", *flags]) == 2
    assert main(["export-hf", *flags, "--overwrite", "--step=9"]) == 2
    assert main(["import-hf", f"--source={release}", f"--out={back}"]) == 0
    assert f"wrote {back}" in capsys.readouterr().out
    before, after = (jax.tree.leaves(load(path)[0]) for path in (run, back))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_bad_input_is_refused_before_the_model_is_read(run, tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    for flags, message in (
        ([f"--model={run}", "--max_shard_size=big"], "big"),
        ([f"--model={tmp_path / 'none'}"], "none"),
        ([f"--model={run}", "--data=3"], "data=3"),
        (
            [f"--model={run}", "--tensor=4"],
            "mesh.tensor=4, which does not divide the model's heads",
        ),
    ):
        assert main(["export-hf", out, *flags]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
