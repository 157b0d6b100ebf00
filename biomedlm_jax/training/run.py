"""A run's config and directory: read, checked and compared before anything is compiled."""

import json
import os
from pathlib import Path

from ml_collections import ConfigDict

from biomedlm_jax.model.config import GPTConfig

# Every group of a run's config but `model` (whose schema is GPTConfig) and the types it takes.
GROUPS = {
    "data": {"path": str, "seed": int},
    "mesh": {"data": int, "fsdp": int, "tensor": int},
    "optimizer": {
        "learning_rate": float,
        "warmup_steps": int,
        "final_lr_fraction": float,
        "beta1": float,
        "beta2": float,
        "epsilon": float,
        "weight_decay": float,
        "clip_norm": float,
    },
    "training": {
        "steps": int,
        "batch_size": int,
        "accumulation": int,
        "loss_chunks": int,
        "seed": int,
        "evaluate_every": int,
        "evaluate_batches": int,
    },
    "checkpoint": {"every": int, "keep": int},
    "logging": {"every": int, "tensorboard": bool},
}
# A run may be continued with other values of these: they change where and how it is executed.
FREE = {
    "model": {"compute_dtype", "reduce_dtype", "attention", "remat", "unroll"},
    "data": {"path"},
    "mesh": set(GROUPS["mesh"]),
    "training": {"loss_chunks", "evaluate_every", "evaluate_batches"},
    "checkpoint": set(GROUPS["checkpoint"]),
    "logging": set(GROUPS["logging"]),
}
AT_LEAST_ONE = {
    "training": ("steps", "batch_size", "accumulation", "loss_chunks"),
    "checkpoint": ("every", "keep"),
    "logging": ("every",),
}


def check_config(config: ConfigDict) -> GPTConfig:
    """Check groups, names, types and ranges of a run's config; return its model's.

    Raises ValueError naming the first key that is unknown, missing or of another type.
    """
    check_groups(config, GROUPS, AT_LEAST_ONE, others={"model"})
    if config.training.evaluate_every < 0:
        raise ValueError(
            f"config.training.evaluate_every={config.training.evaluate_every}; it must be at "
            "least 0 (never)"
        )
    if not config.data.path:
        raise ValueError(
            "config.data.path is empty; set --config.data.path=DIR to a directory that "
            "`biomedlm build-tokens` wrote"
        )
    _check_names("config.model", config.model, GPTConfig.__dataclass_fields__)
    return GPTConfig(**config.model)


def check_groups(config: ConfigDict, groups: dict, at_least_one: dict, *, others=frozenset()):
    """Raise ValueError unless a config has exactly these groups, names, types and ranges.

    `others` are groups with a schema of their own.
    """
    _check_names("config", config, {*others, *groups})
    for group, schema in groups.items():
        _check_names(f"config.{group}", config[group], schema)
        for name, kind in schema.items():
            value = config[group][name]
            fits = isinstance(value, (int, float) if kind is float else kind)
            if not fits or (isinstance(value, bool) and kind is not bool):
                raise ValueError(
                    f"config.{group}.{name}={value!r} is a {type(value).__name__}; "
                    f"it must be {kind.__name__}"
                )
    for group, names in at_least_one.items():
        for name in names:
            if config[group][name] < 1:
                raise ValueError(
                    f"config.{group}.{name}={config[group][name]}; it must be at least 1"
                )


def _check_names(where: str, got, known) -> None:
    if not isinstance(got, ConfigDict):
        raise ValueError(f"{where} is {got!r}; it must be a group with {sorted(known)}")
    unknown = sorted(set(got) - set(known))
    missing = sorted(set(known) - set(got))
    if unknown:
        raise ValueError(f"{where} has {unknown}, which is unknown; known are {sorted(known)}")
    if missing:
        raise ValueError(f"{where} lacks {missing}; every value stands in the config file")


def check_run(
    config: ConfigDict, workdir: Path, free: dict = FREE, *, name: str = "config.json"
) -> None:
    """Raise ValueError if `workdir` holds something else than a run of this config.

    `name` is the file that holds a run's config; `free` names, by group, the values that a run may
    be continued with others of.
    """
    path = workdir / name
    if not path.exists():
        if workdir.is_dir() and any(workdir.iterdir()):
            raise ValueError(
                f"{workdir} holds files but no such run (no {name}); choose an empty directory"
            )
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if "training" not in old:
        raise ValueError(
            f"{workdir} holds an imported model, not a training run; choose another --workdir"
        )
    for group, values in json.loads(config.to_json()).items():
        for key, value in values.items():
            before = old.get(group, {}).get(key)
            if before != value and key not in free.get(group, ()):
                raise ValueError(
                    f"{workdir} holds a run with {group}.{key}={before!r}, and the config says "
                    f"{value!r}; resume it with its own config, or choose another --workdir"
                )


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Make the run directory if need be, and write the config into it."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", json.loads(config.to_json()))


def write_json(path: Path, value: dict) -> None:
    """Replace a JSON file in one step: a crash leaves the old one or the new one."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(new, path)
