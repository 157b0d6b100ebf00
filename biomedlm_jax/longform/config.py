"""The config of a long-form run: its groups, checked before anything is read or compiled."""

from ml_collections import ConfigDict

from biomedlm_jax.generation.options import Options, make_options
from biomedlm_jax.training.optimizer import check_tuning
from biomedlm_jax.training.run import check_groups

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
        "warmup_ratio": float,
        "beta1": float,
        "beta2": float,
        "epsilon": float,
        "weight_decay": float,
        "clip_norm": float,
    },
    "training": {"epochs": int, "batch_size": int, "loss_chunks": int, "seed": int},
    "checkpoint": {"every": int, "keep": int},
    "logging": {"every": int, "tensorboard": bool},
    "evaluation": {"examples": int, "final_examples": int, "batch_size": int},
}
# A run may be continued with other values of these; a hash of its texts is kept, too.
FREE = {
    "data": {"train", "dev"},
    "mesh": set(GROUPS["mesh"]),
    "training": {"loss_chunks"},
    "checkpoint": set(GROUPS["checkpoint"]),
    "logging": set(GROUPS["logging"]),
    "evaluation": {"batch_size"},
}
AT_LEAST_ONE = {
    "data": ("source_tokens", "target_tokens", "row_tokens"),
    "training": ("epochs", "batch_size", "loss_chunks"),
    "checkpoint": ("every", "keep"),
    "logging": ("every",),
    "evaluation": ("batch_size",),
}
AT_LEAST_ZERO = {"training": ("seed",), "evaluation": ("examples", "final_examples")}
DECODING = "generation"  # its names are those of Options


def check_config(config: ConfigDict) -> Options:
    """Check groups, names, types and ranges; return how the run decodes.

    Raises ValueError naming the first key that is unknown, missing or of another type.
    """
    check_groups(config, GROUPS, AT_LEAST_ONE, others={DECODING})
    for group, names in AT_LEAST_ZERO.items():
        for name in names:
            if config[group][name] < 0:
                raise ValueError(
                    f"config.{group}.{name}={config[group][name]}; it must be at least 0"
                )
    check_tuning(config.optimizer)
    if not config.data.train:
        raise ValueError(
            "config.data.train is empty; set --config.data.train=FILE to a JSONL file or to the "
            "stem of a .source and a .target file"
        )
    if not isinstance(config[DECODING], ConfigDict):
        raise ValueError(f"config.{DECODING} is {config[DECODING]!r}; it must be a group")
    return make_options(**config[DECODING].to_dict())
