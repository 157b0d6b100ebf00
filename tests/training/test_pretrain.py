import json
import shutil

import numpy as np
import pytest

from biomedlm_jax.corpus.documents import Document
from biomedlm_jax.corpus.rows import Rows
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens
from biomedlm_jax.training.pretrain import pretrain


def test_what_the_config_leaves_unset_comes_from_the_token_rows(finished):
    model = json.loads((finished / "config.json").read_text())["model"]
    assert (model["vocab_size"], model["context_length"], model["eos_token_id"]) == (300, 32, 299)


@pytest.mark.parametrize(
    ("group", "name", "value", "message"),
    [
        ("model", "heads", 7, "model.heads=7, which does not divide"),
        ("model", "context_length", 64, "64"),
        ("model", "vocab_size", 200, "200"),
        ("mesh", "data", 3, "mesh data=3"),
        ("mesh", "tensor", 8, "does not divide the model's heads of 4"),
        ("training", "batch_size", 12, "batch_size=12; expected a multiple"),
        ("training", "batch_size", 80_000, "80000"),
        ("training", "steps", 0, "at least 1"),
        ("optimizer", "learning_rate", float("nan"), "got optimizer.learning_rate=nan"),
        ("optimizer", "warmup_steps", 12, "set --config.optimizer.warmup_steps=1"),
        ("lora", "rank", 2, "no LoRA"),
        ("training", "loss_chunks", 5, "loss_chunks=5; expected a divisor"),
        ("data", "path", "nowhere", "nowhere"),
        ("data", "path", "", "empty config.data.path"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    config, tmp_path, group, name, value, message
):
    config[group][name] = value
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pretrain(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_or_missing_key(config, tmp_path):
    with config.unlocked():
        config.training.stepz = 3
    with pytest.raises(ValueError, match=r"got config.training.stepz, which is unknown"):
        pretrain(config, tmp_path / "run")
    with config.unlocked():
        del config.training.stepz
        del config.optimizer.beta1
    with pytest.raises(ValueError, match=r"config.optimizer lacks beta1"):
        pretrain(config, tmp_path / "run")


def test_a_directory_of_another_run_is_left_alone(config, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    config.optimizer.learning_rate = 1e-2
    with pytest.raises(ValueError, match=r"optimizer.learning_rate=0.003 \(now 0.01\)"):
        pretrain(config, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and holds no run"):
        pretrain(config, tmp_path / "papers")


def test_a_wrong_end_of_text_is_refused_at_once(config, tmp_path):
    config.model.eos_token_id = 7
    with pytest.raises(ValueError, match="299"):
        pretrain(config, tmp_path / "run")


def test_rows_of_another_tokenizer_do_not_touch_the_run(config, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = (run / "config.json").read_text()
    texts = [f"quite another corpus of {i * 7919} words and figures" for i in range(200)]
    documents = [Document(text, text) for text in texts]
    other = train_tokenizer(iter(texts), vocab_size=300)
    build_tokens(documents, other, tmp_path / "other", length=32, validation_fraction=0.1)
    config.data.path = str(tmp_path / "other")
    with pytest.raises(ValueError, match="the token rows have tokenizer_hash="):
        pretrain(config, run)
    assert (run / "config.json").read_text() == before


def test_bits_per_byte_are_of_the_rows_that_were_evaluated(config, tokenizer, tmp_path):
    config.training.evaluate_batches = 1
    metrics = pretrain(config, tmp_path / "run")
    rows = np.stack(list(Rows(config.data.path, "validation")))
    size = min(len(rows), config.training.batch_size)
    chosen = rows[[i * len(rows) // size for i in range(size)]]
    end, symbols = tokenizer.token_to_id("<|endoftext|>"), tokenizer.id_to_token
    text_bytes = sum(len(symbols(i)) for i in chosen[:, 1:].ravel().tolist() if i != end)
    bits = metrics["validation_loss"] / np.log(2) * chosen[:, 1:].size
    assert metrics["bits_per_byte"] == pytest.approx(bits / text_bytes, rel=1e-6)
