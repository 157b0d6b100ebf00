"""All sides compute the same numbers; the times depend on the machine."""

import json

import pytest

from biomedlm_jax.benchmarks import bench_medqa
from biomedlm_jax.benchmarks.rounds import print_result
from biomedlm_jax.corpus.tokenizer import save_tokenizer, train_tokenizer

SMALL = {"model_type": "gpt2", "layers": 1, "width": 32, "heads": 2, "context_length": 64}
WORDS = ["kinase", "receptor", "liver", "kidney", "trial", "dose"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A directory with a tokenizer and MedQA's dev.jsonl."""
    path = tmp_path_factory.mktemp("questions")
    save_tokenizer(train_tokenizer([" ".join(WORDS)] * 20, vocab_size=270), path / "tokenizer")
    rows = [
        {
            "question": f"which {WORDS[i % 6]} {i}",
            "options": dict(zip("ABCD", WORDS[:4], strict=True)),
            "answer_idx": "ABCD"[i % 4],
            "answer": WORDS[i % 4],
        }
        for i in range(6)
    ]
    (path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_all_sides_score_and_learn_the_same(directory, capsys, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(bench_medqa, "MODEL", SMALL)
    result = bench_medqa.measure(
        directory / "dev.jsonl",
        tokenizer=directory / "tokenizer",
        questions=2,
        steps=2,
        rounds=1,
        batch_size=3,
        max_length=48,
        hf_batch_sizes=(2,),
    )
    scoring, tuning = result["tables"]["scoring"], result["tables"]["tuning"]
    assert list(scoring) == ["score, option", "harness plug-in", "harness hf, batch 2"]
    assert list(tuning) == ["shared prefix", "one row per option", "transformers + torch"]
    assert all(side["difference"] < 1e-3 for side in (*scoring.values(), *tuning.values()))
    assert result["errors"] == []
    print_result(result)
    assert "questions per second" in capsys.readouterr().out


def test_other_scores_and_losses_are_errors(directory, monkeypatch):
    def sides(*_):
        return {"ours": lambda: [-1.0, -2.0], "peer": lambda: [-1.0, -2.002]}

    monkeypatch.setattr(bench_medqa, "PACKAGES", ())
    monkeypatch.setattr(bench_medqa, "MODEL", SMALL)
    for name in ("scoring_sides", "tuning_sides"):
        monkeypatch.setattr(bench_medqa, name, sides)
    options = {"tokenizer": directory / "tokenizer", "rounds": 1, "steps": 1, "batch_size": 2}
    result = bench_medqa.measure(directory / "dev.jsonl", **options)
    scores, losses = result["errors"]
    assert scores.startswith("peer: log-probabilities differ by 0.002, expected at most 0.001")
    assert losses.startswith("peer: losses differ by 0.002, expected at most 0.001")
    assert "all sides run on the CPU only" in result["notes"]


def test_another_device_is_refused(monkeypatch):
    monkeypatch.setattr(bench_medqa.jax, "default_backend", lambda: "gpu")
    with pytest.raises(ValueError, match="CPU only, got jax on gpu; fix: JAX_PLATFORMS=cpu"):
        bench_medqa.measure("dev.jsonl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ["cooking"]}, "expected some of scoring, tuning"),
        ({"parts": []}, "expected some of scoring, tuning"),
        ({"steps": 2, "batch_size": 4}, "got steps=2 with 4 questions each, and 6 questions"),
        ({"steps": 1, "batch_size": 4}, "needs --model, or --tokenizer"),
    ],
)
def test_bad_arguments(directory, options, message, monkeypatch):
    monkeypatch.setattr(bench_medqa, "PACKAGES", ())
    with pytest.raises(ValueError, match=message):
        bench_medqa.measure(directory / "dev.jsonl", **options)
