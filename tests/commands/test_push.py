"""push: the dry run, through the command line. tests/interop/test_hub.py uploads."""

import huggingface_hub
import jax

from biomedlm_jax.cli import main
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.model.families import make_model
from biomedlm_jax.model.gpt2 import GPT2Config


def test_a_dry_run_lists_what_would_be_sent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    tokenizer = train_tokenizer(["the kinase of a liver cell"] * 9, vocab_size=266)
    config = GPT2Config(vocab_size=266, context_length=16, layers=1, width=16, heads=2)
    path = export_hf(make_model(config, key=jax.random.key(0)), tokenizer, tmp_path / "out")
    flags = ["push", f"--model={path}", "--repo=owner/name", "--dry_run"]
    assert main(flags) == 2
    assert "the model card states no licence" in capsys.readouterr().err
    card = path / "README.md"
    card.write_text(card.read_text().replace("---\n", "---\nlicense: apache-2.0\n", 1))
    assert main([*flags, "--private", "--revision=v2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    size = (path / "model.safetensors").stat().st_size
    assert f"{size:>15,} bytes  model.safetensors" in lines
    assert {line.split()[-1] for line in lines[:-1]} == {one.name for one in path.iterdir()}
    assert lines[-1].startswith("nothing was sent; without --dry_run: 10 files, ")
    assert lines[-1].endswith(" to owner/name (private), branch v2")
    assert main([*flags[:-1], "--repo=name"]) == 2
    assert "got --repo=name; expected owner/name" in capsys.readouterr().err
