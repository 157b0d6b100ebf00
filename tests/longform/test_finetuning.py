"""The whole of long-form fine-tuning on a task that a tiny model can learn: to echo a word."""

import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from biomedlm_jax.cli import main
from biomedlm_jax.corpus.tokenizer import save_tokenizer, train_tokenizer
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.longform import rows as packing
from biomedlm_jax.longform.finetuning import finetune_longform, target_loss
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.training.checkpoint import save_model

ROOT = Path(__file__).parents[2]
WORDS = ["kinase", "receptor", "tissue", "fever", "insulin", "artery"]


def get_config(name: str) -> ConfigDict:
    return runpy.run_path(str(ROOT / "configs" / f"longform_{name}.py"))["get_config"]()


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A run directory of a fresh tiny model, and a file of examples."""
    folder = tmp_path_factory.mktemp("longform")
    texts = [f"what about {word}? it is {word}." for word in WORDS] * 9
    tokenizer = train_tokenizer(iter(texts), vocab_size=290)
    config = GPTConfig(
        vocab_size=290, context_length=64, layers=2, width=64, heads=4, embedding_dropout=0.0,
        attention_dropout=0.0, residual_dropout=0.0,
    )  # fmt: skip
    save_tokenizer(tokenizer, folder / "run")
    save_model(folder / "run", GPT(config, key=jax.random.key(0)))
    fields = {name: getattr(config, name) for name in GPTConfig.__dataclass_fields__}
    (folder / "run" / "config.json").write_text(json.dumps({"model": fields}))
    random = np.random.default_rng(0)
    lines = []
    for i in range(160):
        word = WORDS[random.integers(len(WORDS))]
        lines.append({"source": f"what about {word}? {i}", "target": f"it is {word}."})
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def small(start) -> ConfigDict:
    config = get_config("meqsum")
    config.data.update(
        {"train": str(start / "examples.jsonl"), "source_tokens": 20, "target_tokens": 12,
         "row_tokens": 64}
    )  # fmt: skip
    config.optimizer.learning_rate = 3e-3
    config.training.update({"epochs": 10, "batch_size": 8})
    config.evaluation.update({"examples": 4, "final_examples": 12})
    config.generation.update({"beams": 2, "max_new_tokens": 14})
    return config


def test_a_tiny_model_learns_to_answer(start, tmp_path):
    said = []
    result = finetune_longform(small(start), start / "run", tmp_path / "out", say=said.append)
    assert result["rouge1"]["mean"] > 80
    assert result["examples"] == 12
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").open()]
    assert lines[-1]["dev_loss"] < 0.3 * lines[0]["dev_loss"]
    assert "rougeL" in lines[0]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == result
    model, tokenizer = load(tmp_path / "out")
    assert model.config.vocab_size == 292
    assert tokenizer.token_to_id("<|startoftext|>") == 291
    # What it wrote decodes by itself as it was evaluated.
    first = json.loads((tmp_path / "out" / "predictions.jsonl").open().readline())
    answers = tmp_path / "answers.jsonl"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": first["source"] + "<|startoftext|>"}) + "\n")
    command = ["generate", f"--model={tmp_path / 'out'}", f"--prompts={prompts}", "--nonotice"]
    assert main([*command, f"--out={answers}"]) == 0
    assert json.loads(answers.read_text())["answers"] == [first["answer"]]


def test_packed_texts_do_not_see_one_another(start):
    model, tokenizer = load(start / "run")
    limits = packing.Limits(source=20, target=12, row=64)
    tokenizer.add_special_tokens(["[PAD]"])
    texts = [([5, 6, 289, 8, 9, 289], 3), ([7, 7, 7, 289, 3, 289], 4), ([1, 289, 2], 2)]

    def total(rows):
        batch = next(packing.batches(texts, rows=rows, batch_size=3, length=limits.row, pad=0))
        fields = (batch.tokens, batch.segments, batch.positions, batch.weights)
        return [float(x) for x in target_loss(model, fields)]

    together, apart = total([[0, 1, 2]]), total([[0], [1], [2]])
    np.testing.assert_allclose(together, apart, rtol=1e-5)
    assert together[1] == 6


def test_configs_are_the_published_format_and_decoding():
    for name in ("meqsum", "medquad"):
        config = get_config(name)
        assert (config.data.source_tokens, config.data.target_tokens) == (510, 510)
        assert config.generation.to_dict() == {
            "beams": 5,
            "no_repeat_ngram_size": 6,
            "length_penalty": -0.5,
            "min_length": 5,
            "max_new_tokens": 400,
        }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data.train": ""}, "config.data.train is empty"),
        ({"data.source_tokens": 60}, "a row must hold"),
        ({"data.row_tokens": 128}, "the model has 64 positions"),
        ({"generation.max_new_tokens": 60}, "the model has 64 positions"),
        ({"generation.beams": 1}, "ask for at least 2 beams"),
        ({"training.epochs": 0}, "training.epochs=0"),
        ({"optimizer.learning_rate": 0.0}, "the rate is above 0"),
        ({"training.batch_size": 3}, "does not divide"),
    ],
)
def test_configs_that_cannot_be(start, tmp_path, change, said):
    config = small(start)
    for name, value in change.items():
        group, key = name.split(".")
        config[group][key] = value
    with pytest.raises(ValueError, match=said):
        finetune_longform(config, start / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_not_empty_is_left_alone(start, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already"):
        finetune_longform(small(start), start / "run", tmp_path)
