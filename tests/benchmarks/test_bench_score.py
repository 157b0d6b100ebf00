"""All sides compute the same numbers; the times depend on the machine."""

import json

import pytest

from biomedlm_jax.benchmarks import bench_score
from biomedlm_jax.benchmarks.rounds import print_result
from biomedlm_jax.corpus.tokenizer import save_tokenizer, train_tokenizer
from biomedlm_jax.model.gpt2 import GPT2Config

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
    small = {"layers": 1, "width": 32, "heads": 2, "context_length": 64}
    monkeypatch.setattr(bench_score, "MODEL", {"model_type": "gpt2", **small})
    result = bench_score.measure_medqa(
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
    print_result(result)
    assert "questions per second" in capsys.readouterr().out


CONFIG = GPT2Config(layers=2, width=32, heads=2, vocab_size=96, context_length=96)


def test_all_sides_score_random_questions_the_same():
    """Ours beside transformers with eager attention and with SDPA."""
    pytest.importorskip("torch")
    result = bench_score.measure(CONFIG, questions=3, rounds=1, details=False)
    table = result["tables"]["scoring"]
    unshared = "biomedlm_jax, one row per option"
    assert list(table) == ["biomedlm_jax", unshared, "hf eager", "hf sdpa"]
    assert 0 < max(side["difference"] for side in table.values()) < 1e-3
    assert result["errors"] == []


def test_other_scores_are_an_error(monkeypatch):
    def make_side(name, **work):
        return {"score": lambda: [-1.0, -2.0 if name.startswith("biomedlm_jax") else -2.1]}

    monkeypatch.setattr(bench_score, "make_side", make_side)
    monkeypatch.setattr(bench_score.timed, "available_peers", lambda peers, notes: peers)
    options = {"questions": 1, "rounds": 1, "peers": ("hf sdpa",), "details": False}
    (error,) = bench_score.measure(CONFIG, **options)["errors"]
    assert error.startswith("hf sdpa: log-probabilities differ by 0.1, expected at most 0.001")


def test_a_context_that_holds_no_question_is_refused():
    short = GPT2Config(layers=1, width=32, heads=2, vocab_size=96, context_length=64)
    with pytest.raises(ValueError, match="expected at least 72; fix: --length"):
        bench_score.measure(short, questions=1, peers=())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ["cooking"]}, "expected some of scoring, tuning"),
        ({}, "needs --model, or --tokenizer"),
    ],
)
def test_bad_arguments(directory, options, message):
    with pytest.raises(ValueError, match=message):
        bench_score.measure_medqa(directory / "dev.jsonl", **options)
