import biomedlm_jax
from biomedlm_jax.cli import main


def test_the_flags_reach_the_library(monkeypatch, capsys):
    calls = []

    def import_hf(source, out, *, overwrite, resize_embeddings):
        calls.append((source, out, overwrite, resize_embeddings))
        return out

    monkeypatch.setattr(biomedlm_jax, "import_hf", import_hf, raising=False)
    assert main(["import-hf", "--source=hf://owner/name", "--out=run", "--overwrite"]) == 0
    assert calls == [("hf://owner/name", "run", True, False)]
    assert capsys.readouterr().out == "wrote run\n"
    assert main(["import-hf", "--out=run"]) == 2
    assert "--source is required." in capsys.readouterr().err
