"""Model families: one row each, looked up by the `model_type` of a config."""

import dataclasses
import functools
import json
import warnings
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from biomedlm_jax.errors import InputError
from biomedlm_jax.mesh import platform, sharded
from biomedlm_jax.model import gpt2, llama
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.language_model import Family, LanguageModel
from biomedlm_jax.settings import check_names

FAMILIES: dict[str, Family] = {
    family.config.model_type: family for family in (gpt2.FAMILY, *llama.FAMILIES)
}


def family(model_type: object) -> Family:
    """Return the family of a `model_type`; InputError if it is not known."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InputError(f"got model_type={model_type!r}; the known model families are {known}")
    return FAMILIES[model_type]


def make_config(fields: Mapping[str, Any], **changes: Any) -> ModelConfig:
    """Build the config of a `model` group; InputError for a name or value its family lacks."""
    values = {**fields, **changes}
    cls = family(values.pop("model_type", None)).config
    known = [field.name for field in dataclasses.fields(cls)]
    check_names(values, known, where="model", complete=False)
    return cls(**values)


def make_model(config: ModelConfig, *, key: jax.Array) -> LanguageModel:
    """Build a model with random parameters; call it under jit or `jax.eval_shape`."""
    return family(config.model_type).model(config, key=key)


def abstract_model(config: ModelConfig, mesh: Mesh | None = None) -> LanguageModel:
    """Return a model's shapes and dtypes, with shardings on `mesh` if given, without values."""
    abstract = _abstract_model(config, platform())
    return jax.tree.map(lambda leaf: leaf, abstract) if mesh is None else sharded(abstract, mesh)


@functools.lru_cache(maxsize=64)
def _abstract_model(config: ModelConfig, platform: str) -> LanguageModel:
    # Tracing it takes 20 ms; the dtype "auto" depends on the platform of the mesh, whose devices
    # may be absent: the key is made inside.
    return jax.eval_shape(lambda: make_model(config, key=jax.random.key(0)))


def config_from_hf(config: Mapping[str, Any], **execution: Any) -> ModelConfig:
    """Read a Hugging Face `config.json`; InputError if its family does not compute the model.

    `execution` sets fields such as `compute_dtype`. Entries without a meaning here are kept in
    `hf_entries`, so that an export has them again.
    """
    of_type = family(config.get("model_type"))
    try:
        json.dumps(config, allow_nan=False)
    except ValueError:
        raise InputError("config.json has NaN or Infinity, which JSON lacks; remove it") from None
    if config.get("auto_map"):
        got = f"config.json has auto_map={config['auto_map']}, code of its own, which is not run"
        plain = f"the model is read as a {config['model_type']}"
        warnings.warn(f"{got}: {plain}", RuntimeWarning, stacklevel=2)
    config = _renamed(config, of_type.aliases)
    for name, only in of_type.fixed.items():
        got = config.get(name, only)
        if got != only and got not in of_type.equivalent.get(name, ()):
            reason = f"({of_type.reasons[name]})" if name in of_type.reasons else ""
            got = f"config.json has {name}={got!r} {reason}".rstrip()
            raise InputError(f"{got}; this library computes {name}={only!r}")
    missing = [name for name in of_type.required if name not in config]
    if missing:
        raise InputError(f"config.json lacks {', '.join(missing)}, which a model of its type needs")
    values = {ours: config[theirs] for ours, theirs in of_type.fields.items() if theirs in config}
    ids = {}
    for name in ("bos_token_id", "eos_token_id"):
        size = config["vocab_size"]
        default = of_type.absent_ids.get(name)
        inside = default is not None and type(size) is int and default < size
        ids[name] = config.get(name, default if inside else None)
    ends = ids["eos_token_id"]
    if isinstance(ends, list):
        ids["eos_token_id"], values["more_eos_token_ids"] = (ends or [None])[0], tuple(ends[1:])
    known = {"architectures", "auto_map", "model_type", "torch_dtype", "dtype"}
    known |= {*of_type.fixed, *of_type.repeated}
    known |= {*of_type.fields.values(), "eos_token_id"} - {n for n, i in ids.items() if i is None}
    known |= {name for name, value in of_type.stated.items() if config.get(name) == value}
    kept = {name: value for name, value in config.items() if name not in known}
    values |= {**of_type.read_more(config), **ids}
    values["hf_entries"] = json.dumps(kept, sort_keys=True)
    return of_type.config(**{**of_type.absent, **values, **execution})


def _renamed(config: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """Return the config with each entry under its own name; InputError if two names contradict."""
    result = {name: value for name, value in config.items() if name not in aliases}
    for alias, name in aliases.items():
        if alias in config and result.setdefault(name, config[alias]) != config[alias]:
            both = f"{alias}={config[alias]!r} and {name}={result[name]!r}"
            raise InputError(f"config.json has {both}, names of one setting; remove one of them")
    return result


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Return the Hugging Face `config.json` of the same function in transformers."""
    of_type = family(config.model_type)
    ends = config.end_ids
    return {
        "architectures": [of_type.architectures["language_model"]],
        "model_type": config.model_type,
        **{name: value for name, value in of_type.fixed.items() if value is not None},
        **{theirs: getattr(config, ours) for ours, theirs in of_type.fields.items()},
        "eos_token_id": list(ends) if config.more_eos_token_ids else config.eos_token_id,
        **of_type.write_more(config),
        **of_type.stated,
        "torch_dtype": "float32",
        **json.loads(config.hf_entries),
    }
