"""The config of a long-form run: its groups, checked before anything is read or compiled."""

from ml_collections import ConfigDict

from biomedlm_jax.generation.options import Options, make_options

GROUPS = {
    "data": {
        "train": str,
        "dev": str,
        "source_field": str,
        "target_field": str,
        "group_field": str,
        "dev_fraction": float,
        "source_tokens": int,
        "target_tokens": int,
        "row_tokens": int,
    },
    "mesh": {"data": int, "fsdp": int, "tensor": int},
    "optimizer": {
        "learning_rate": float,
        "warmup_fraction": float,
        "beta1": float,
        "beta2": float,
        "epsilon": float,
        "weight_decay": float,
        "clip_norm": float,
    },
    "training": {"epochs": int, "batch_size": int, "loss_chunks": int, "seed": int},
    "evaluation": {"examples": int, "final_examples": int, "batch_size": int},
}
DECODING = "generation"  # its names are those of Options


def check_config(config: ConfigDict) -> Options:
    """Check groups, names, types and ranges; return how the run decodes.

    Raises ValueError naming the first key that is unknown, missing or of another type.
    """
    _check_names("config", config, {*GROUPS, DECODING})
    for group, schema in GROUPS.items():
        _check_names(f"config.{group}", config[group], schema)
        for name, kind in schema.items():
            value = config[group][name]
            fits = isinstance(value, (int, float) if kind is float else kind)
            if not fits or isinstance(value, bool):
                raise ValueError(
                    f"config.{group}.{name}={value!r} is a {type(value).__name__}; it must be "
                    f"{kind.__name__}"
                )
    for group, least in (("training", 1), ("evaluation", 0)):
        for name in GROUPS[group]:
            low = 1 if name == "batch_size" else 0 if name == "seed" else least
            if config[group][name] < low:
                raise ValueError(
                    f"config.{group}.{name}={config[group][name]}; it must be at least {low}"
                )
    optimizer = config.optimizer
    if optimizer.learning_rate <= 0 or not 0 <= optimizer.warmup_fraction < 1:
        raise ValueError(
            f"config.optimizer has learning_rate={optimizer.learning_rate} and warmup_fraction="
            f"{optimizer.warmup_fraction}; the rate is above 0, the fraction in [0, 1)"
        )
    if not config.data.train:
        raise ValueError(
            "config.data.train is empty; set --config.data.train=FILE to a JSONL file or to the "
            "stem of a .source and a .target file"
        )
    return make_options(**config[DECODING].to_dict())


def _check_names(where: str, got, known) -> None:
    if not isinstance(got, ConfigDict):
        raise ValueError(f"{where} is {got!r}; it must be a group with {sorted(known)}")
    unknown, missing = sorted(set(got) - set(known)), sorted(set(known) - set(got))
    if unknown or missing:
        what = f"has {unknown}, unknown" if unknown else f"lacks {missing}"
        raise ValueError(f"{where} {what}; its values are {sorted(known)}")
