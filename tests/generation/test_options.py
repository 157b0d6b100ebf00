import json

import pytest

from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.generation.options import Options, make_options, read_settings
from biomedlm_jax.model.config import GPTConfig


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0; it must be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0; it must be above 0"),
        ({"temperature": 1.0, "min_p": 2.0}, "min_p=2.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"early_stopping": "soon", "beams": 2}, "early_stopping='soon'"),
        ({"top_k": 5}, "ask for a temperature above 0"),
        ({"length_penalty": 2.0}, "ask for at least 2 beams"),
        ({"beams": 3, "temperature": 1.0}, "beam search draws nothing"),
        ({"beams": 3, "stop": ("x",)}, "beams=3 with stop"),
        ({"samples": 3}, "all would be equal"),
        ({"samples": 3, "beams": 2}, "no more answers than beams"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9 above"),
        ({"bad_words": ("",)}, "bad_words"),
        ({"heat": 3}, "the option 'heat'; the options are max_new_tokens, temperature"),
    ],
    ids=str,
)
def test_options_that_cannot_be(given, said):
    with pytest.raises(ValueError, match=said):
        make_options(**given)


def test_options_begin_from_the_models_settings():
    settings = {
        "_from_model_config": True,
        "bos_token_id": 9,
        "eos_token_id": [9, 4],
        "num_beams": 5,
        "length_penalty": -0.5,
        "no_repeat_ngram_size": 6,
        "transformers_version": "5",
        "min_length": 5,
    }
    options = make_options(settings, max_new_tokens=400)
    assert options == Options(
        max_new_tokens=400, beams=5, length_penalty=-0.5, no_repeat_ngram_size=6, min_length=5,
        ends=(9, 4),
    )  # fmt: skip
    assert make_options(settings, beams=1).length_penalty == 1.0


def test_drawing_follows_do_sample():
    assert make_options({"do_sample": True, "top_p": 0.9}).temperature == 1.0
    assert make_options({"do_sample": True, "temperature": 0.6}).temperature == 0.6
    greedy = make_options({"do_sample": False, "temperature": 0.6, "top_k": 50})
    assert (greedy.temperature, greedy.top_k) == (0.0, 0)
    assert make_options({"do_sample": True, "top_k": 50}, temperature=0.0).top_k == 0


def test_settings_that_are_unknown_or_no_json(tmp_path):
    with pytest.raises(ValueError, match=r"penalty_alpha=0\.6, which this decoder does not know"):
        make_options({"penalty_alpha": 0.6})
    assert read_settings(tmp_path) == {}
    file = tmp_path / "generation_config.json"
    file.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_settings(tmp_path)
    file.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="holds a list"):
        read_settings(tmp_path)


def test_bad_words_are_banned_with_and_without_a_space():
    tokenizer = train_tokenizer(iter(["the drug, the drug"] * 9), vocab_size=262)
    config = GPTConfig(vocab_size=262, context_length=8, layers=1, width=8, heads=1)
    strategy = Options(bad_words=("drug",)).strategy(config, tokenizer)
    spelled = [tokenizer.decode(list(word)) for word in strategy.bad_words]
    assert spelled == ["drug", " drug"]
    assert strategy.ends == (261,)
