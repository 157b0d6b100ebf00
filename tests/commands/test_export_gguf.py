"""export-gguf, through the command line; tests/interop/test_gguf_files.py reads the files."""

import jax
import pytest

from biomedlm_jax.cli import main
from biomedlm_jax.commands import export_gguf
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.interop import gguf_files
from biomedlm_jax.interop.finetuned import save_finetuned
from biomedlm_jax.model.families import make_model
from biomedlm_jax.model.gpt2 import GPT2Config


def test_a_run_becomes_a_file(tmp_path, capsys):
    gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
    tokenizer = train_tokenizer(["the kinase of a liver cell"] * 9, vocab_size=266)
    config = GPT2Config(vocab_size=266, context_length=16, layers=1, width=32, heads=2)
    run, out = tmp_path / "run", tmp_path / "x.gguf"
    save_finetuned(run, make_model(config, key=jax.random.key(0)), tokenizer)
    flags = ["export-gguf", f"--model={run}", f"--out={out}"]
    assert main([*flags, "--dtype=q8_0"]) == 0
    assert f"wrote {out}, 0.0 MB" in capsys.readouterr().out
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    assert kinds == {"F32", "Q8_0"}
    assert main(flags) == 2
    assert "exists; name another file, or pass --overwrite" in capsys.readouterr().err
    assert main([*flags, "--overwrite"]) == 0
    assert main([*flags, "--overwrite", "--step=9"]) == 2
    assert main([*flags[:2], f"--out={tmp_path}"]) == 2
    assert "is a directory; name a file" in capsys.readouterr().err


def test_the_flag_has_all_formats():
    assert export_gguf.CHOICES == gguf_files.DTYPES
