"""The typed groups of a training run's config file, shared by every recipe."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from biomedlm_jax.errors import InputError
from biomedlm_jax.mesh import make_mesh
from biomedlm_jax.settings import Settings, setting
from biomedlm_jax.training.trackers import TENSORBOARD, TRACKERS

# What runs did before a setting existed.
ABSENT = {"lora.frozen_dtype": "float32"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings(Settings):
    """Sizes of the device mesh; one may be -1, the rest of the devices."""

    group = "mesh"
    data: int = setting(1, least=-1, free=True)
    fsdp: int = setting(-1, least=-1, free=True)
    tensor: int = setting(1, least=-1, free=True)

    def make(self) -> Mesh:
        """Return the mesh of all devices; raises InputError if the sizes do not make them."""
        return make_mesh(data=self.data, fsdp=self.fsdp, tensor=self.tensor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings(Settings):
    """AdamW: `schedule` cosine (pre-training), linear (fine-tuning) or constant: optimizer.py."""

    group = "optimizer"
    schedule: str = setting("linear", choices=("cosine", "linear", "constant"))
    learning_rate: float = setting(above=0)
    warmup_steps: int | None = setting(None, least=0)  # this, or a share of all steps:
    warmup_ratio: float | None = setting(None, least=0, most=1)
    final_lr_fraction: float = setting(0.0, least=0, most=1)  # of learning_rate, at the end
    beta1: float = setting(0.9, least=0, below=1)
    beta2: float = setting(0.999, least=0, below=1)
    epsilon: float = setting(1e-8, above=0)
    weight_decay: float = setting(0.0, least=0)
    decoupled: bool = setting(False)  # weight_decay per step at the peak rate, not times the rate
    clip_norm: float = setting(1.0, least=0)  # of the global gradient; 0: no clipping

    def __post_init__(self):
        super().__post_init__()
        if (self.warmup_steps is None) == (self.warmup_ratio is None):
            raise InputError(
                f"got optimizer.warmup_steps={self.warmup_steps} and "
                f"optimizer.warmup_ratio={self.warmup_ratio}; set one of them, the other to None"
            )
        if self.schedule == "constant" and self.final_lr_fraction != 1.0:
            raise InputError(
                f"got optimizer.final_lr_fraction={self.final_lr_fraction} with schedule=constant, "
                "which does not decay; set --config.optimizer.final_lr_fraction=1.0"
            )

    def warmup_of(self, steps: int) -> int:
        """Return the steps of the warmup of a run of `steps` steps."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return math.ceil((self.warmup_ratio or 0.0) * steps)

    @property
    def schedule_depends_on_total_steps(self) -> bool:
        """Whether the learning rate of a step depends on the number of all steps."""
        return self.schedule != "constant" or self.warmup_ratio is not None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSettings(Settings):
    """What every recipe's `training` group has."""

    group = "training"
    batch_size: int = setting(least=1)  # rows, or questions, of one update
    accumulation: int = setting(1, least=1)  # parts whose gradients are summed for one update
    loss_chunks: int = setting(1, least=1, free=True)  # parts of a row whose logits exist at once
    seed: int = setting(least=0, most=2**32 - 1)  # more bits would be cut off


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRASettings(Settings):
    """Low-rank adaptation; rank 0 trains every parameter."""

    group = "lora"
    rank: int = setting(0, least=0)
    alpha: float = setting(16.0, above=0)
    # Of the frozen model's matrices; factors, added rows and score layers are float32.
    frozen_dtype: str = setting("float32", choices=("float32", "bfloat16"))

    def __post_init__(self):
        super().__post_init__()
        if not self.rank and self.frozen_dtype != "float32":
            raise InputError(
                f"got lora.frozen_dtype={self.frozen_dtype} with lora.rank=0, which freezes "
                "nothing; set --config.lora.rank=16, or --config.lora.frozen_dtype=float32"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSettings(Settings):
    """When a run is saved."""

    group = "checkpoint"
    every: int = setting(least=1, free=True)  # steps; also before an evaluation
    minutes: float = setting(0.0, least=0, free=True)  # and after so many; 0: by steps only
    keep: int = setting(least=1, free=True)  # newest checkpoints
    keep_every: int = setting(0, least=0, free=True)  # steps of which multiples stay; 0: none


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaultSettings(Settings):
    """What is done about losses that are not finite or far too high, and about a hang.

    An update whose loss or gradient is not finite is always skipped.
    """

    group = "faults"
    skipped_in_a_row: int = setting(10, least=1, free=True)  # end the run after so many
    spike: str = setting("log", choices=("off", "log", "skip", "stop"), free=True)
    spike_deviations: float = setting(6.0, above=0, free=True)  # above the mean of 128 steps
    hang_minutes: float = setting(
        30.0, least=0, most=10_000, free=True
    )  # without a step; 0: wait for ever


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggingSettings(Settings):
    """When figures are written, and to which trackers beside the run directory."""

    group = "logging"
    every: int = setting(least=1, free=True)  # steps
    trackers: tuple[str, ...] = setting((TENSORBOARD,), free=True)  # of TRACKERS; (): none

    def __post_init__(self):
        super().__post_init__()
        if unknown := [name for name in self.trackers if name not in TRACKERS]:
            expected = f"expected some of {', '.join(TRACKERS)}"
            fix = "fix: --config.logging.trackers=\"('tensorboard','wandb')\""
            raise InputError(f"got logging.trackers with {unknown[0]!r}; {expected}; {fix}")
        if len({*self.trackers}) < len(self.trackers):
            raise InputError(f"got logging.trackers={self.trackers}; expected each name once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """The groups that `fit` reads; a recipe's config adds its own and narrows `training`."""

    model: dict
    mesh: MeshSettings
    optimizer: OptimizerSettings
    training: StepSettings
    lora: LoRASettings
    checkpoint: CheckpointSettings
    logging: LoggingSettings
    faults: FaultSettings

    @property
    def has_dropout(self) -> bool:
        """Whether a step is random beyond its batch: its parts depend on their number, then."""
        return any(rate != 0 for name, rate in self.model.items() if "dropout" in name)


def changed_settings(
    before: Mapping[str, Any], settings: Settings, *, may_change: Sequence[str] = ()
) -> list[str]:
    """Return how a saved run's groups differ from `settings`, free settings excepted.

    `may_change` are names of others to leave out, such as training.steps. `before` is the JSON
    object of `to_json`; the `model` group is compared by its caller.
    """
    differing = []
    for group, new in to_json(settings).items():
        typed, old = getattr(settings, group), before.get(group, {})
        differing += [
            f"{group}.{name}={old.get(name, ABSENT.get(f'{group}.{name}'))!r} (now {value!r})"
            for name, value in (new.items() if isinstance(typed, Settings) else ())
            if name not in typed.free_names() and f"{group}.{name}" not in may_change
            if old.get(name, ABSENT.get(f"{group}.{name}")) != value
        ]
    return differing


def to_json(settings: Settings) -> dict[str, Any]:
    """Return the settings as JSON has them: tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))
