"""All sides compute the same numbers; the times depend on the machine."""

import json

import pytest

from biomedlm_jax.benchmarks import bench_medqa
from biomedlm_jax.benchmarks.rounds import print_result
from biomedlm_jax.corpus.tokenizer import save_tokenizer, train_tokenizer

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
    monkeypatch.setattr(bench_medqa, "MODEL", {"model_type": "gpt2", **small})
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
    print_result(result)
    assert "questions per second" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ["cooking"]}, "expected some of scoring, tuning"),
        ({}, "needs --model, or --tokenizer"),
    ],
)
def test_bad_arguments(directory, options, message):
    with pytest.raises(ValueError, match=message):
        bench_medqa.measure(directory / "dev.jsonl", **options)
