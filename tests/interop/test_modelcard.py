import json

import pytest

from biomedlm_jax.interop.modelcard import (
    licence_line,
    model_card,
    stated_licence,
    training_facts,
)
from biomedlm_jax.model.gpt2 import GPT2Config

SMALL = GPT2Config(vocab_size=300, context_length=24, layers=2, width=32, heads=4)


def card(config=SMALL, *, facts=None, folded=False) -> str:
    return model_card(config, name="small", facts=facts, folded=folded, has_tokenizer=True)


def plain(text: str) -> str:
    return " ".join(text.split())


def test_card_warns_of_the_attention_scale_when_it_is_on():
    assert "transformers 4.42 to 4.57 silently ignore that setting" in plain(card())
    assert "--fold_attention_scale" in card()
    off = GPT2Config(**{**vars(SMALL), "scale_attn_by_inverse_layer_idx": False})
    assert "silently" not in card(off)
    assert "folded into the query part" in plain(card(off, folded=True))


def test_card_says_what_it_is_not_for_and_invents_nothing():
    assert "not a source of medical advice" in card()
    assert "No training facts were recorded" in card()
    assert "license:" not in card()


def test_facts_of_a_run_come_from_its_files(tmp_path):
    splits = {"train": {"rows": 100, "tokens": 2400}}
    manifest = {"splits": splits, "fingerprint": "abc", "separator": "eos", "length": 24}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    record = {
        "recipe": "pretrain",
        "data": {"path": "/home/me/tokens", "seed": 3},
        "optimizer": {"learning_rate": 1.6e-4},
        "training": {"steps": 1000, "batch_size": 8, "seed": 5},
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "config.json").write_text(json.dumps({"model": {"model_type": "gpt2"}}))
    lines = [{"step": 40, "validation_loss": 2.5}, {"step": 50, "loss": 3.0}]
    lines += [{"step": 90, "validation_loss": 1.5}]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(line)}\n" for line in lines) + '{"step'
    )
    facts = training_facts(tmp_path, step=50)
    assert facts["Steps"]["tokens trained on"] == 50 * 8 * 24
    assert facts["Steps"]["passes over the data"] == 4.0
    assert facts["Data"]["fingerprint"] == "abc"
    assert facts["Validation"] == {"step": 40, "validation_loss": 2.5}
    text = card(facts=facts)
    assert "| tokens trained on | 9,600 |" in text
    assert "| learning_rate | 0.00016 |" in text
    assert "| path | tokens |" in text
    # A mixture of 99 to 1: nothing is said of the first source alone.
    record["started_from"] = {"sources": {"1": {}, "2": {}}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    kept = [{"name": name, "weight": w, "manifest": manifest} for name, w in (("a", 99), ("b", 1))]
    (tmp_path / "sources.json").write_text(json.dumps({"sources": kept}))
    facts = training_facts(tmp_path, step=50)
    assert facts["Steps"]["tokens trained on"] == 50 * 8 * 24
    assert "passes over the data" not in facts["Steps"]
    assert not {"training tokens", "fingerprint"} & {*facts["Data"]}
    assert "| source 2 | b: 1 % of the rows, 4 rows, 0.04 passes over 100 rows (2,400" in card(
        facts=facts
    )
    (tmp_path / "manifest.json").unlink()
    assert "passes over the data" not in training_facts(tmp_path, step=50)["Steps"]


def test_no_absolute_path_is_shown():
    rows = {
        "path": "/home/me/a model",
        "command": "biomedlm x --data=/home/me/rows,/home/me/b.jsonl --out /tmp/run/",
        "paths": ["/data/a.jsonl", "~/b.jsonl"],
        "url": "https://example.org/a/b and 3/4 mg/ml",
    }
    text = card(facts={"Data": rows})
    assert "| path | a model |" in text
    assert "| command | biomedlm x --data=rows,b.jsonl --out run |" in text
    assert "| paths | a.jsonl, b.jsonl |" in text
    assert "| url | https://example.org/a/b and 3/4 mg/ml |" in text


def test_licence_travels(tmp_path):
    assert stated_licence(tmp_path) is None
    facts = {"Source": {"licence": "bigscience-bloom-rail-1.0"}}
    (tmp_path / "README.md").write_text(card(facts=facts))
    assert stated_licence(tmp_path) == "bigscience-bloom-rail-1.0"


@pytest.mark.parametrize(
    ("licence", "config", "message"),
    [
        (None, SMALL, "not stated in the source"),
        ("mit", SMALL, "mit"),
        (None, GPT2Config(), "bigscience-bloom-rail-1.0, which forbids medical advice"),
        ("bigscience-bloom-rail-1.0", SMALL, "forbids medical advice"),
    ],
)
def test_licence_line(licence, config, message):
    assert message in licence_line(licence, config)
