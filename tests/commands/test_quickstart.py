import sys
from types import SimpleNamespace

from biomedlm_jax.cli import main


def test_the_flags_reach_the_library(monkeypatch):
    calls = []
    module = SimpleNamespace(run_quickstart=lambda out, **options: calls.append((out, options)))
    monkeypatch.setitem(sys.modules, "biomedlm_jax.quickstart.quickstart", module)
    assert main(["quickstart", "--out=q", "--steps=50", "--documents=300"]) == 0
    assert calls == [("q", {"steps": 50, "documents": 300, "family": "gpt2"})]
    assert main(["quickstart", "--steps=5"]) == 2
