import dataclasses
import runpy
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from biomedlm_jax.finetuning.config import QuestionSettings, TextSettings
from biomedlm_jax.generation.options import make_options
from biomedlm_jax.model.families import make_config
from biomedlm_jax.settings import Settings, check_names, read_settings, setting
from biomedlm_jax.training.pretrain import PretrainSettings

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner(Settings):
    group = "inner"
    rate: float = setting(above=0)
    steps: int | None = setting(None, least=1, free=True)
    names: tuple[str, ...] = setting(())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer(Settings):
    inner: Inner
    model: dict
    kind: str = setting("a", choices=("a", "b"))


GOOD = {"rate": 0.5, "steps": None, "names": ()}


def outer(**changes) -> Outer:
    inner = {**GOOD, **changes}
    return read_settings(Outer, ConfigDict({"inner": inner, "model": {"x": 1}, "kind": "b"}))


def test_groups_become_nested_settings():
    settings = outer(rate=1, steps=3, names=("x", "y"))
    assert settings.inner == Inner(rate=1, steps=3, names=("x", "y"))
    assert settings.model == {"x": 1}
    assert Inner.free_names() == {"steps"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": float("nan")}, "got inner.rate=nan; expected a finite number"),
        ({"rate": float("inf")}, "got inner.rate=inf; expected a finite number"),
        ({"rate": 0}, "got inner.rate=0; expected above 0"),
        ({"rate": 10**400}, "got inner.rate=10*; expected a finite number"),
        ({"rate": 1e39}, r"got inner.rate=1e\+39; expected a finite number"),
        ({"steps": 2**53 + 1}, "got inner.steps=9007199254740993; expected a whole number or None"),
        ({"rate": True}, "got inner.rate=True; expected a finite number"),
        ({"rate": "1"}, "got inner.rate='1'; expected a finite number"),
        ({"steps": 0}, "got inner.steps=0; expected at least 1"),
        ({"steps": 1.0}, "got inner.steps=1.0; expected a whole number or None"),
        ({"names": (1,)}, r"got inner.names=\(1,\); expected a tuple, each a string"),
        ({"raet": 1.0}, "got config.inner.raet, which is unknown; known: rate, steps, names"),
    ],
)
def test_a_bad_value_is_one_line(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        outer(**changes)


def test_a_missing_name_or_group_is_named():
    with pytest.raises(ValueError, match=r"config\.inner lacks rate"):
        read_settings(Outer, {"inner": {"steps": 1, "names": ()}, "model": {}, "kind": "a"})
    with pytest.raises(ValueError, match=r"got config\.inner=3; expected a group with rate"):
        read_settings(Outer, {"inner": 3, "model": {}, "kind": "a"})
    with pytest.raises(ValueError, match="got kind='c'; expected one of a, b"):
        Outer(inner=Inner(**GOOD), model={}, kind="c")
    check_names({"a": 1}, ("a", "b"), where="x", complete=False)


def read_all(settings_class: type, config: ConfigDict) -> None:
    """Read every group of a run's config, also those that are checked by another class."""
    settings = read_settings(settings_class, config)
    sizes = {"vocab_size": 300, "context_length": 32, "layers": 1, "width": 8, "heads": 2}
    make_config({"model_type": "gpt2", **sizes, **settings.model})
    make_options(**getattr(settings, "generation", {}))


@pytest.mark.parametrize(
    ("file", "settings_class"),
    [
        ("pretrain.py:tiny", PretrainSettings),
        ("pretrain.py:llama_2_7b", PretrainSettings),
        ("pretrain.py:llama_2_7b_lora", PretrainSettings),
        ("pretrain.py:llama_cpu", PretrainSettings),
        ("pretrain.py:llama_tiny", PretrainSettings),
        ("meditron_7b.py:", PretrainSettings),
        ("finetune.py:medqa", QuestionSettings),
        ("finetune.py:meqsum", TextSettings),
    ],
)
def test_nan_in_any_float_of_a_config_file_is_refused(file, settings_class):
    path, _, variant = file.partition(":")
    get_config = runpy.run_path(str(ROOT / "configs" / path))["get_config"]
    floats = [
        (group, name)
        for group, values in get_config(variant).items()
        if isinstance(values, ConfigDict)
        for name, value in values.items()
        if isinstance(value, float)
    ]
    assert len(floats) > 10
    for group, name in floats:
        config = get_config(variant)
        with config.unlocked():
            config.model = {k: v for k, v in config.model.items() if v is not None}
            if "train" in config.get("data", {}):
                config.data.train = "pairs.jsonl"
        config[group][name] = float("nan")
        with pytest.raises(ValueError, match=f"{name}=nan; expected a finite number"):
            read_all(settings_class, config)


def test_names_of_any_type_are_named():
    with pytest.raises(ValueError, match=r"got config\.None, which is unknown"):
        check_names({None: 1, 2: 3, "a": 4}, ["a", "2"], where="config")
