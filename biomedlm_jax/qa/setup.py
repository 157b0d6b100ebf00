"""A fine-tuning run's config, and what its directory says about the head."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from biomedlm_jax.interop.directories import head_entry
from biomedlm_jax.model.heads import CHOICE
from biomedlm_jax.qa.rows import FORMATS, LEAST_LENGTH, RELEASED
from biomedlm_jax.training.optimizer import check_tuning
from biomedlm_jax.training.run import check_groups

GROUPS = {
    "model": {  # how the model is executed; what it is stands in its own directory
        "compute_dtype": str,
        "attention": str,
        "remat": str,
        "unroll": int,
        "embedding_dropout": float,
        "attention_dropout": float,
        "residual_dropout": float,
    },
    "task": {
        "name": str,
        "path": str,
        "train_split": str,
        "dev_split": str,
        "fold": int,
        "on_error": str,
        "row_format": str,
        "max_length": int,
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
    "training": {"epochs": int, "batch_size": int, "accumulation": int, "seed": int},
    "lora": {"rank": int, "alpha": float},
    "checkpoint": {"every": int, "keep": int},
    "logging": {"every": int, "tensorboard": bool},
    "sweep": {"learning_rates": tuple, "seeds": tuple},
}
FREE = {
    "model": {"compute_dtype", "attention", "remat", "unroll"},
    "task": {"path", "name"},  # jsonl:PATH is a name; a hash of the questions is kept, too
    "mesh": set(GROUPS["mesh"]),
    "checkpoint": set(GROUPS["checkpoint"]),
    "logging": set(GROUPS["logging"]),
    "sweep": set(GROUPS["sweep"]),
}
AT_LEAST_ONE = {
    "task": ("max_length",),
    "training": ("epochs", "batch_size", "accumulation"),
    "checkpoint": ("every", "keep"),
    "logging": ("every",),
}


def check_config(config: ConfigDict) -> None:
    """Check groups, names, types and ranges; raises ValueError naming the first that is wrong."""
    check_groups(config, GROUPS, AT_LEAST_ONE)
    task, lora = config.task, config.lora
    if task.row_format not in FORMATS:
        raise ValueError(
            f"config.task.row_format={task.row_format!r}; choose one of {', '.join(FORMATS)}"
        )
    if task.row_format == RELEASED and config.training.accumulation > 1:
        raise ValueError(
            "config.task.row_format='released' cuts long questions option by option, which may "
            "then lie in different parts of a batch; set --config.training.accumulation=1"
        )
    check_tuning(config.optimizer)
    if task.max_length < LEAST_LENGTH:
        raise ValueError(
            f"config.task.max_length={task.max_length}; it must be at least {LEAST_LENGTH}"
        )
    if config.training.seed < 0:
        raise ValueError(f"config.training.seed={config.training.seed}; it must be at least 0")
    _check_sweep("learning_rates", config.sweep.learning_rates, (int, float), "above 0", 0)
    _check_sweep("seeds", config.sweep.seeds, int, "at least 0", -1)
    if lora.rank < 0 or lora.alpha <= 0:
        raise ValueError(
            f"config.lora.rank={lora.rank} must be at least 0 (0: train every parameter), and "
            f"config.lora.alpha={lora.alpha} above 0"
        )


def _check_sweep(name: str, values: tuple, kinds, wanted: str, above: int) -> None:
    good = all(isinstance(v, kinds) and not isinstance(v, bool) and v > above for v in values)
    if not good or len(set(values)) < len(values):
        raise ValueError(
            f"config.sweep.{name}={tuple(values)!r}; each must be a number {wanted}"
            f"{' and whole' if kinds is int else ''}, and none twice"
        )


@dataclasses.dataclass(frozen=True)
class Head:
    """What a fine-tuned directory says about its head, beside the model's config."""

    kind: str  # "choice" or "classification"
    task: str  # the task that it was tuned on last
    row_format: str
    max_length: int  # tokens of a row in training
    classes: tuple[str, ...] = ()  # of a classification, in the order of the scores

    @property
    def outputs(self) -> int:
        """Scores per read state."""
        return 1 if self.kind == CHOICE else len(self.classes)

    def to_json(self) -> dict[str, Any]:
        """As a run's config.json holds it."""
        return {**dataclasses.asdict(self), "classes": list(self.classes)}

    @classmethod
    def from_json(cls, value: dict, *, where: str) -> "Head":
        """Read what `to_json` wrote; raises ValueError for anything else."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(value, dict) or set(value) != names:
            raise ValueError(
                f"{where} has the head {value!r}; it must have exactly {sorted(names)}"
            )
        return cls(**{**value, "classes": tuple(value["classes"])})


def read_head(path: str | Path) -> Head | None:
    """The head of a fine-tuned directory; None for any other directory of a model."""
    file = Path(path) / "config.json"
    head = head_entry(path) if file.exists() else None
    return Head.from_json(head, where=str(file)) if head is not None else None
