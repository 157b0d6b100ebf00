"""Model families: one row each, looked up by the `model_type` of a config."""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
from jax.sharding import Mesh

from biomedlm_jax.mesh import abstract_sharded
from biomedlm_jax.model import gpt2
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.settings import check_names

FAMILIES: dict[str, ModuleType] = {gpt2.Config.model_type: gpt2}


def family(model_type: object) -> ModuleType:
    """Return the module of a family (Config, Model, tables); ValueError if it is not known."""
    if model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"got model_type={model_type!r}; the known model families are {known}")
    return FAMILIES[str(model_type)]


def make_config(fields: Mapping[str, Any], **changes: Any) -> ModelConfig:
    """Build the config of a `model` group; ValueError for a name or value its family lacks."""
    values = {**fields, **changes}
    cls = family(values.pop("model_type", None)).Config
    known = [field.name for field in dataclasses.fields(cls)]
    check_names(values, known, where="model", complete=False)
    return cls(**values)


def make_model(config: ModelConfig, *, key: jax.Array) -> LanguageModel:
    """Build a model with random parameters; call it under jit or `jax.eval_shape`."""
    return family(config.model_type).Model(config, key=key)


def abstract_model(config: ModelConfig, mesh: Mesh | None = None) -> LanguageModel:
    """Return a model's shapes and dtypes, with shardings on `mesh` if given, without values."""

    def make() -> LanguageModel:  # the key is made inside: devices of the mesh may be absent
        return make_model(config, key=jax.random.key(0))

    return jax.eval_shape(make) if mesh is None else abstract_sharded(make, mesh)


def config_from_hf(config: Mapping[str, Any], **execution: Any) -> ModelConfig:
    """Read a Hugging Face `config.json`; ValueError if its family does not compute the model.

    `execution` sets fields such as `compute_dtype`.
    """
    module = family(config.get("model_type"))
    for name, only in module.FIXED.items():
        if config.get(name, only) != only:
            raise ValueError(
                f"config.json has {name}={config[name]!r}; this library computes {name}={only!r}"
            )
    missing = [name for name in module.REQUIRED if name not in config]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}, which a model of its type needs")
    values = {ours: config[theirs] for ours, theirs in module.FIELDS.items() if theirs in config}
    return module.Config(**{**module.ABSENT, **values, **execution})


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Return the Hugging Face `config.json` of the same function in transformers."""
    module = family(config.model_type)
    return {
        "architectures": [module.ARCHITECTURES["language_model"]],
        "model_type": config.model_type,
        **module.FIXED,
        **{theirs: getattr(config, ours) for ours, theirs in module.FIELDS.items()},
        **module.more_fields(config),
        "torch_dtype": "float32",
        "use_cache": True,
    }
