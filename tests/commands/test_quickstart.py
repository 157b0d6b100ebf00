from biomedlm_jax.cli import main
from biomedlm_jax.quickstart import tour


def test_the_flags_reach_the_library(monkeypatch):
    calls = []
    monkeypatch.setattr(tour, "take_tour", lambda out, **options: calls.append((out, options)))
    assert main(["quickstart", "--out=q", "--steps=50", "--documents=300"]) == 0
    assert calls == [("q", {"steps": 50, "documents": 300})]
    assert main(["quickstart", "--steps=5"]) == 2
