"""The README's commands, one after the other, in processes of their own, on generated text."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from processes import run_process

from biomedlm_jax.cli import main
from biomedlm_jax.quickstart.abstracts import write_world

ROOT = Path(__file__).parents[1]
TINY = [f"--config={ROOT}/configs/pretrain.py:tiny", "--config.training.steps=60"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("journey")
    write_world(path / "world", families=12, documents=300)
    return path


def biomedlm(place: Path, *arguments: str) -> subprocess.CompletedProcess:
    flags = {"XLA_FLAGS": os.environ["FAST_COMPILATION"]}
    done = run_process(["-m", "biomedlm_jax.cli", *arguments], cwd=place, env=flags)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_from_text_to_transformers(place, capsys):
    transformers = pytest.importorskip("transformers", reason="transformers is in the extra `dev`")
    torch = pytest.importorskip("torch", reason="torch is in the extra `dev`")
    text = "--input=world/abstracts.jsonl"
    biomedlm(place, "train-tokenizer", text, "--vocab_size=512", "--out=tokenizer")
    rows = ["--tokenizer=tokenizer", "--length=32", "--validation_fraction=0.1"]
    biomedlm(place, "build-tokens", text, *rows, "--out=tokens")
    run = ["pretrain", *TINY, "--config.data.path=tokens", "--workdir=run"]
    biomedlm(place, *run)
    metrics = [json.loads(line) for line in (place / "run" / "metrics.jsonl").open()]
    losses = [m["loss"] for m in metrics if "loss" in m]
    assert losses[-1] < losses[0] - 1
    biomedlm(place, "export-hf", "--model=run", "--out=release")
    assert biomedlm(place, "verify-hf", "--model=release", "--json=verified.json").stdout
    biomedlm(place, "import-hf", "--source=release", "--out=imported")

    from biomedlm_jax import load

    model, tokenizer = load(place / "imported")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        place / "release", attn_implementation="eager"
    )
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(place / "release")
    sentence = "The patients were treated and the gene was expressed."
    ids = tokenizer.encode(sentence).ids[:32]
    assert their_tokenizer(sentence)["input_ids"][:32] == ids
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(model(np.array([ids])), expected, atol=1e-4)

    # Nothing is overwritten unless --overwrite is given.
    capsys.readouterr()
    assert main(["export-hf", f"--model={place / 'run'}", f"--out={place / 'release'}"]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "release" in error
    assert (place / "release" / "model.safetensors").exists()
