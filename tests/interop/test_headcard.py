"""headcard.py: the card's code, run as a reader would, computes the scores of this library."""

import json
import re

import jax
import numpy as np
import pytest

from biomedlm_jax.interop.finetuned import load_finetuned
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.model.heads import HEADS
from biomedlm_jax.qa.prompts import choice_prompts, classification_prompts
from biomedlm_jax.qa.questions import Question

torch = pytest.importorskip("torch", reason="the card's code is for torch")

CLASSES = ("maybe", "no", "yes")
CHOICES = [
    Question("a", "Which organ does cardiology treat?", ("the heart", "liver"), 0),
    Question("b", "Which gram?", ("cardiogram", "a hepatogram", "neuro", "gastro" * 9), 1),
    Question("c", "neuropathy " * 30, ("yes", "no, cardiopathy"), 1),
    Question("d", " spaces  and\nβ-blockers, naïve [SEP] ", ("Δ", "心筋"), 0, "A context."),
    Question("e", "", ("one", "two"), 1),
]
TEXTS = [
    Question("a", "Does it work?", CLASSES, 0, "It was seen in cardiology."),
    Question("b", "Is neuropathy a pathy?", CLASSES, 1, "hepatogram " * 30),
    Question("c", "gastroscopy? " * 30, CLASSES, 2, "Short."),
    Question("d", "gastroscopy? " * 30, CLASSES, 2, "neurology " * 30),
    Question("e", "β-blockers, naïve?", CLASSES, 2, ""),
]
QUESTIONS = {"choice": CHOICES, "classification": TEXTS}


def scores_here(model, tokenizer, head) -> list[list[float]]:
    """Scores of each row by itself, padded on the right to one length."""
    make = choice_prompts if head.kind == "choice" else classification_prompts
    options = {"row_format": head.row_format, "max_length": head.max_length}
    rows_of = {}
    for prompt in make(tokenizer, QUESTIONS[head.kind], **options).prompts:
        rows = [prompt.prefix + branch for branch in prompt.branches]
        rows_of.setdefault(prompt.question, []).extend(rows)
    rows = [row for question in sorted(rows_of) for row in rows_of[question]]
    tokens = np.zeros((len(rows), head.max_length), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    states = jax.jit(lambda tokens: model.trunk.hidden(tokens))(tokens)
    last = np.array([len(row) - 1 for row in rows])
    scores = iter(np.asarray(model(states[np.arange(len(rows)), last])).tolist())
    if head.kind == "classification":
        return list(scores)
    bias = float(model.score.bias[0])  # which transformers' class has not
    assert bias == 0.375
    scores = iter([score - bias for score in scores])
    return [[next(scores) for _ in rows_of[question]] for question in sorted(rows_of)]


def scores_of_the_card(directory, monkeypatch, head) -> list[list[float]]:
    """Run the code in README.md beside a directory named DIR."""
    assert directory.name == "DIR"
    (code,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.S)
    monkeypatch.chdir(directory.parent)
    names = {"__name__": "__main__"}
    exec(code, names)
    scores = []
    for item in QUESTIONS[head.kind]:
        question, answers = item.question, item.options
        if head.kind == "classification":
            answers = item.context
        elif item.context:
            question = f"{item.context} {question}"
        scores.append(names["scores"](question, answers).tolist())
    return scores


def assert_close(scores, expected, tolerance=5e-5):
    assert len(scores) == len(expected)
    assert max(map(max, expected)) - min(map(min, expected)) > 0.5
    for a, b in zip(scores, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("row_format", ["keep_end", "released"])
@pytest.mark.parametrize("kind", HEADS)
def test_the_cards_code_computes_the_same_scores(
    kind, row_format, make_finetuned, tmp_path, monkeypatch
):
    model, tokenizer, head = make_finetuned(kind, row_format)
    path = export_hf(model, tokenizer, tmp_path / "DIR", head=head)
    assert_close(scores_of_the_card(path, monkeypatch, head), scores_here(model, tokenizer, head))


@pytest.mark.parametrize("kind", HEADS)
def test_folded_and_sharded_the_scores_stay(kind, make_finetuned, tmp_path, monkeypatch):
    model, tokenizer, head = make_finetuned(kind)
    options = {"fold_attention_scale": True, "max_shard_size": "20KB"}
    path = export_hf(model, tokenizer, tmp_path / "DIR", head=head, **options)
    assert len(list(path.glob("model-*.safetensors"))) > 2
    config = json.loads((path / "config.json").read_text())
    assert config["scale_attn_by_inverse_layer_idx"] is False
    assert "folded into the query part" in " ".join((path / "README.md").read_text().split())
    expected = scores_here(model, tokenizer, head)
    assert_close(scores_of_the_card(path, monkeypatch, head), expected)
    folded, *_ = load_finetuned(path)
    assert_close(scores_here(folded, tokenizer, head), expected)


@pytest.mark.parametrize("row_format", ["keep_end", "released"])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
def test_the_second_family_scores_alike(
    model_type, kind, row_format, tiny_source, make_finetuned, tmp_path, monkeypatch
):
    model, tokenizer, head = make_finetuned(kind, row_format, tiny_source(model_type))
    path = export_hf(model, tokenizer, tmp_path / "DIR", head=head)
    assert_close(scores_of_the_card(path, monkeypatch, head), scores_here(model, tokenizer, head))
