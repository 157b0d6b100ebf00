import json
import warnings

import biomedlm_jax
from biomedlm_jax.cli import main


def test_the_flags_reach_the_library(monkeypatch, capsys, tmp_path):
    figures, calls = tmp_path / "figures.json", []

    def verify_hf(path, *, mesh, **options):
        calls.append((path, mesh.size, options))
        warnings.warn("transformers ignores a setting", RuntimeWarning, stacklevel=1)
        return {"eager": {"max": 1e-6}, "run": {"max": 2e-6}}

    monkeypatch.setattr(biomedlm_jax, "verify_hf", verify_hf, raising=False)
    flags = ["--model=release", "--run=run", "--length=9", f"--json={figures}"]
    assert main(["verify-hf", *flags]) == 0
    options = {"run": "run", "batch": 2, "length": 9, "seed": 0, "tolerance": 1e-4}
    assert [(str(path), *others) for path, *others in calls] == [("release", 8, options)]
    captured = capsys.readouterr()
    assert "transformers, eager attention  max |difference| 1.00e-06" in captured.out
    assert "the run run                    max |difference| 2.00e-06" in captured.out
    assert captured.err == "WARNING: transformers ignores a setting\n"
    assert json.loads(figures.read_text())["run"]["max"] == 2e-6
