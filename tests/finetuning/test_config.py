import pytest

from biomedlm_jax.finetuning.config import ChatSettings, QuestionSettings, TextSettings
from biomedlm_jax.settings import read_settings

DECODING = {"beams": 5, "no_repeat_ngram_size": 6, "length_penalty": -0.5, "min_length": 5}


@pytest.mark.parametrize("name", ["bioasq", "medmcqa", "medqa", "pubmedqa"])
def test_the_published_questions(name, get_config):
    config = get_config(name)
    settings = read_settings(QuestionSettings, config)
    optimizer = config.optimizer.to_dict()
    wanted = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0}
    assert {name: optimizer[name] for name in wanted} == wanted
    assert (optimizer["clip_norm"], optimizer["warmup_ratio"]) == (1.0, 0.5)
    assert settings.task.name == name
    assert (settings.task.row_format, settings.task.max_length) == ("keep_end", 512)


@pytest.mark.parametrize("name", ["meqsum", "medquad"])
def test_the_published_texts(name, get_config):
    config = get_config(name)
    config.data.train = "file"
    settings = read_settings(TextSettings, config)
    assert (settings.data.source_tokens, settings.data.target_tokens) == (510, 510)
    assert settings.generation == {**DECODING, "max_new_tokens": 400}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("task.row_format", "papper", "row_format='papper'; expected one of keep_end, released"),
        ("task.max_length", 2, "max_length=2; expected at least 8"),
        ("training.epochs", 0, "epochs=0; expected at least 1"),
        ("training.seed", -1, "seed=-1"),
        (
            "training.loss_chunks",
            2,
            "loss_chunks=2 with recipe=questions, whose loss has no logits",
        ),
        ("lora.rank", -1, "lora.rank=-1; expected at least 0"),
        ("lora.alpha", 0.0, "lora.alpha=0.0; expected above 0"),
        ("optimizer.warmup_ratio", 1.5, "warmup_ratio=1.5"),
        ("optimizer.learning_rate", 0.0, "learning_rate=0.0"),
        ("optimizer.learning_rate", float("nan"), "learning_rate=nan"),
        ("optimizer.beta2", 1.0, "beta2"),
        ("optimizer.epsilon", 0.0, "epsilon"),
        ("optimizer.clip_norm", -1.0, "clip_norm"),
        ("optimizer.weight_decay", -0.1, "weight_decay"),
        ("sweep.seeds", (1, 1), "expected different seeds from 0"),
        ("sweep.seeds", (0, 2**32), r"expected different seeds from 0 to 2\*\*32-1"),
        ("sweep.learning_rates", (0.0,), "rates above 0"),
        ("sweep.learning_rates", ("fast",), "learning_rates"),
    ],
)
def test_values_out_of_range(get_config, name, value, message):
    config = get_config("medqa").unlock()
    group, key = name.split(".")
    with config.ignore_type():
        config[group][key] = value
    with pytest.raises(ValueError, match=message):
        read_settings(QuestionSettings, config)


def test_rows_of_options_apart_are_not_accumulated(get_config):
    config = get_config("medqa")
    config.task.row_format, config.training.accumulation = "released", 2
    with pytest.raises(ValueError, match="set --config"):
        read_settings(QuestionSettings, config)


def test_names_are_exact(get_config):
    config = get_config("medqa").unlock()
    config.training.epohcs = 3
    with pytest.raises(ValueError, match="epohcs"):
        read_settings(QuestionSettings, config)


def test_rows_hold_a_source_and_a_target(get_config):
    config = get_config("meqsum")
    config.data.update(train="file", row_tokens=1_000)
    with pytest.raises(ValueError, match="expected at least 1022 tokens"):
        read_settings(TextSettings, config)


def test_the_small_world_needs_no_other_value(get_config):
    settings = read_settings(QuestionSettings, get_config("small_world"))
    assert settings.model["residual_dropout"] == 0
    assert settings.optimizer.learning_rate == 1e-3


def test_the_variants_of_chats_are_complete(get_config):
    ranks = {"instruct": 0, "instruct_lora": 16, "instruct_lora_one_chip": 16}
    for variant, rank in ranks.items():
        config = get_config(variant)
        with pytest.raises(ValueError, match=r"got an empty data\.train"):
            read_settings(ChatSettings, config)
        config.data.update(train=("a.jsonl", "b.jsonl"), format=("alpaca",))
        settings = read_settings(ChatSettings, config)
        assert settings.lora.rank == rank
        assert (settings.lora.frozen_dtype == "bfloat16") == ("one_chip" in variant)
        assert settings.model["residual_dropout"] == 0
        settings.check_positions(1_024, 1_024)
        with pytest.raises(ValueError, match="expected at most the model's 512 positions"):
            settings.check_positions(100, 512)


def test_the_published_runs_on_instructions(get_config):
    for variant, rows in (("pmc_llama", 2_048), ("llama2_medtuned", 1_024)):
        config = get_config(variant)
        config.data.train = ("a.jsonl",)
        settings = read_settings(ChatSettings, config)
        assert (settings.data.template, settings.data.row_tokens) == ("alpaca", rows)
        assert (settings.optimizer.learning_rate, settings.training.epochs) == (2e-5, 3)
    config = get_config("mmedins_llama_3")
    config.data.update(train=("a.jsonl",), format=("messages",))
    assert read_settings(ChatSettings, config).data.template == "llama3"
