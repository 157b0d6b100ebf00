import dataclasses
import json
import re
import shutil

import pytest
from transformers import GenerationConfig, GPT2LMHeadModel, TemperatureLogitsWarper
from transformers import GPT2Config as PeerConfig

from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.generation.options import (
    FASTER,
    IGNORED,
    LACKING,
    Options,
    make_options,
    model_options,
    read_generation_config,
)
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.model.gpt2 import GPT2Config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0; expected at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0; expected at most 1 and above 0"),
        ({"temperature": 1.0, "min_p": 2.0}, "min_p=2.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"early_stopping": "soon", "beams": 2}, "early_stopping='soon'"),
        ({"top_k": 5}, "it needs a temperature above 0"),
        ({"length_penalty": 2.0}, "it needs at least 2 beams"),
        ({"beams": 3, "temperature": 1.0}, "beam search does not sample"),
        ({"samples": 3}, "all would be equal"),
        ({"samples": 3, "beams": 2}, "as many answers as beams"),
        (
            {"min_new_tokens": 9, "max_new_tokens": 8},
            "min_new_tokens=9; expected at most max_new_tokens=8",
        ),
        ({"bad_words": ("",)}, "bad_words"),
        ({"bad_words": ((3, -1),)}, "bad_words"),
        ({"stop": ("\ud800",)}, "stop=.*; expected text, not half surrogates"),
        ({"max_new_tokens": 4.5}, "max_new_tokens=4.5; expected a whole number"),
        ({"no_repeat_ngram_size": 2.5}, "no_repeat_ngram_size=2.5"),
        ({"samples": True}, "samples=True; expected a whole number"),
        ({"temperature": "0.7"}, "temperature='0.7'; expected a finite number"),
        (
            {"beams": 2, "length_penalty": float("nan")},
            "length_penalty=nan; expected a finite number",
        ),
        ({"beams": 2, "early_stopping": 1}, "early_stopping=1; expected True or False or a string"),
        ({"seed": 2**40}, "seed=1099511627776; expected at least 0 and at most 2147483647"),
        ({"seed": -1}, "seed=-1; expected at least 0"),
        ({"ends": (1.5,)}, r"ends=\(1.5,\); expected a tuple, each a whole number"),
        ({"heat": 3}, "options.heat, which is unknown; known: beams, samples"),
    ],
    ids=str,
)
def test_invalid_options_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
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


def test_sampling_at_temperature_zero_is_refused_as_in_transformers():
    with pytest.raises(ValueError, match=r"got temperature=0\.0 with do_sample in generation_c"):
        make_options({"do_sample": True, "temperature": 0.0})
    assert make_options({"do_sample": True, "temperature": 0.0}, temperature=0.0) == Options()
    with pytest.raises(ValueError, match="strictly positive"):
        TemperatureLogitsWarper(0.0)


def test_max_length_is_read_from_a_models_file_only(tmp_path):
    with pytest.raises(ValueError, match=r"options\.max_length, which is unknown"):
        make_options(max_length=20)
    (tmp_path / "generation_config.json").write_text('{"max_length": "20", "eos_token_id": 3}')
    with pytest.raises(ValueError, match="max_length='20'; expected a whole number"):
        model_options(GPT2Config(vocab_size=262, layers=1, width=8, heads=1), tmp_path)


def test_a_models_settings_have_the_defaults_of_transformers():
    for idle in ({"temperature": 0.7}, {"top_k": 50}, {"max_length": 20}, {"length_penalty": 2.0}):
        assert make_options(idle) == Options()
    assert make_options({"do_sample": True}).top_k == 50
    assert make_options({"do_sample": True, "top_k": 0}).top_k == 0
    # What is asked for makes them count.
    assert make_options({"top_k": 9}, temperature=0.7) == Options(temperature=0.7, top_k=9)
    assert make_options({"length_penalty": 2.0}, beams=3) == Options(beams=3, length_penalty=2.0)
    with pytest.raises(ValueError, match="it needs a temperature above 0"):
        make_options({"temperature": 0.7}, top_k=5)


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(beams=5, length_penalty=-0.5, no_repeat_ngram_size=6, min_length=5, samples=2),
        Options(temperature=1.0, seed=9, samples=3, stop=("END", "\n"), max_new_tokens=128),
        Options(temperature=0.7, top_k=9, top_p=0.9, bad_words=("drug", (3, 4)), ends=(5, 6)),
    ],
    ids=str,
)
def test_settings_mean_the_same_in_transformers(options, tmp_path):
    tokenizer = train_tokenizer(iter(["the drug, the drug"] * 9), vocab_size=262)
    config = GPT2Config(vocab_size=262, context_length=8, layers=1, width=8, heads=1)
    settings = options.to_generation_config(config, tokenizer)
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    again = make_options(read_generation_config(tmp_path))
    assert again.strategy(config, tokenizer) == options.strategy(config, tokenizer)
    assert dataclasses.replace(again, ends=options.ends, bad_words=options.bad_words) == options
    theirs = GenerationConfig.from_pretrained(tmp_path)
    theirs.validate(strict=True)
    assert theirs.max_new_tokens == 128
    assert theirs.do_sample is (options.temperature > 0)
    assert (theirs.num_beams or 1) == options.beams
    assert (theirs.num_return_sequences or 1) == options.samples
    for name in ("temperature", "top_k") if options.temperature else ():
        assert getattr(theirs, name) == getattr(options, name)
    if options.beams > 1:
        assert (theirs.length_penalty, theirs.no_repeat_ngram_size) == (-0.5, 6)
    if options.bad_words:
        words = [list(word) for word in options.strategy(config, tokenizer).bad_words]
        assert theirs.bad_words_ids == words


@pytest.mark.parametrize("begin", [50_257, -1, "x", 10**30, True])
def test_a_begin_outside_of_the_vocabulary_is_refused(tmp_path, begin):
    """The embedding would take the row of another id."""
    (tmp_path / "generation_config.json").write_text(json.dumps({"bos_token_id": begin}))
    with (
        pytest.warns(RuntimeWarning, match="no eos_token_id"),
        pytest.raises(ValueError, match=r"got bos_token_id=.* up to 60 .*generation_config\.json"),
    ):
        model_options(GPT2Config(vocab_size=61), tmp_path)


def test_settings_that_are_unknown_or_no_json(tmp_path):
    with pytest.raises(ValueError, match=r"penalty_alpha=0\.6 in generation_config.json or "):
        make_options({"penalty_alpha": 0.6})
    assert read_generation_config(tmp_path) == {}
    file = tmp_path / "generation_config.json"
    file.write_text("{")
    with pytest.raises(ValueError, match="expected a JSON object"):
        read_generation_config(tmp_path)
    file.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="got JSON of type list"):
        read_generation_config(tmp_path)


def test_entries_that_change_nothing_pass_and_others_are_named():
    defaults = GenerationConfig._get_default_generation_params()
    neutral = {"num_beam_groups": 1, "typical_p": 1.0, "guidance_scale": 1.0, "epsilon_cutoff": 0.0}
    neutral |= {"renormalize_logits": False, "disable_compile": True, "suppress_tokens": []}
    settings = {name: value for name, value in defaults.items() if name != "max_length"} | neutral
    assert make_options(settings) == Options()
    for name, value in (("typical_p", 0.9), ("num_beam_groups", 2), ("suppress_tokens", [5])):
        with pytest.raises(ValueError, match=f"got {name}=.* in generation_config.json or config"):
            make_options({name: value})


def test_without_the_file_settings_are_those_of_config_json(tmp_path):
    config = {"model_type": "gpt2", "do_sample": True, "temperature": 0.5, "n_embd": 8}
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": 3}))
    options = make_options(read_generation_config(tmp_path))
    assert options == Options(temperature=0.5, top_k=50)
    kept = json.dumps({"do_sample": True, "temperature": 0.5})
    run = {"model": {"model_type": "gpt2", "hf_entries": kept}}
    (tmp_path / "config.json").write_text(json.dumps(run))
    assert make_options(read_generation_config(tmp_path)) == options


def test_settings_that_this_decoder_lacks_are_refused_in_config_json_too(tmp_path):
    names = set(vars(GenerationConfig())) - {*IGNORED, "eos_token_id"}
    names = {name for name in names if not re.fullmatch(FASTER, name)}
    for name in sorted(names - {"do_sample"}):
        config = {"model_type": "gpt2", "eos_token_id": 3, name: "x"}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert read_generation_config(tmp_path) == {name: "x"}
        if name in LACKING:
            with pytest.raises(ValueError, match=f"got {name}='x' in .*, which this decoder"):
                make_options(read_generation_config(tmp_path))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_end_of_null_ends_no_answer_as_in_transformers(tmp_path, file):
    """transformers then stops at max_new_tokens only, also where config.json has an end."""
    sizes = {"vocab_size": 262, "n_positions": 8, "n_layer": 1, "n_embd": 8, "n_head": 1}
    config = {"model_type": "gpt2", "eos_token_id": 5, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert make_options(read_generation_config(tmp_path)).ends == ()
    (tmp_path / file).write_text(json.dumps({**config, "eos_token_id": None}))
    if file != "config.json":
        (tmp_path / file).write_text('{"eos_token_id": null}')
    options = make_options(read_generation_config(tmp_path))
    ours = GPT2Config(vocab_size=262, context_length=8, layers=1, width=8, heads=1)
    assert options.strategy(ours, None).ends == ()
    assert options.to_generation_config(ours, None)["eos_token_id"] is None
    given = make_options(read_generation_config(tmp_path), ends=(7,))
    assert given.strategy(ours, None).ends == (7,)
    peer = GPT2LMHeadModel(PeerConfig(**sizes, eos_token_id=None, bos_token_id=None))
    peer.save_pretrained(tmp_path / "peer")
    for name in ("config.json", file):
        shutil.copy(tmp_path / name, tmp_path / "peer" / name)
    if file == "config.json":
        (tmp_path / "peer" / "generation_config.json").unlink()
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "peer").generation_config.eos_token_id is None
    # An id that is given in place of config.json's is the model's.
    config = model_config(tmp_path, eos_token_id=9)
    assert "eos_token_id" not in json.loads(config.hf_entries)


def test_a_file_without_an_end_is_named(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"num_beams": 2}')
    with pytest.warns(RuntimeWarning, match="has no eos_token_id: transformers does not stop"):
        config = read_generation_config(tmp_path)
    assert config == {"num_beams": 2}


def test_several_ends_of_a_model_end_an_answer():
    sizes = {"vocab_size": 262, "context_length": 8, "layers": 1, "width": 8, "heads": 1}
    config = GPT2Config(**sizes, eos_token_id=5, more_eos_token_ids=(7,), bos_token_id=2)
    assert Options().strategy(config, None).ends == (5, 7)
    settings = Options().to_generation_config(config, None)
    assert (settings["bos_token_id"], settings["eos_token_id"]) == (2, [5, 7])


def test_a_finetuning_run_decodes_by_the_settings_of_its_model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "generation_config.json").write_text('{"num_beams": 5}')
    assert make_options(read_generation_config(tmp_path)).beams == 5


def test_bad_words_are_banned_with_and_without_a_space():
    tokenizer = train_tokenizer(iter(["the drug, the drug"] * 9), vocab_size=262)
    config = GPT2Config(vocab_size=262, context_length=8, layers=1, width=8, heads=1)
    strategy = Options(bad_words=("drug",)).strategy(config, tokenizer)
    spelled = [tokenizer.decode(list(word)) for word in strategy.bad_words]
    assert spelled == ["drug", " drug"]
    with pytest.raises(ValueError, match=r"the ids \(3, 262\); expected ids up to 261"):
        Options(bad_words=((3, 262),)).strategy(config, tokenizer)
    assert strategy.ends == (261,)
