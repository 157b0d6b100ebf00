"""Flags that several commands have, each declared once.

Nothing here imports jax: `biomedlm plan` chooses jax's platform before that.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

if TYPE_CHECKING:
    from jax.sharding import Mesh

KINDS = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}


def define(
    values: flags.FlagValues,
    name: str,
    default: Any,
    meaning: str,
    *,
    kind: type = str,
    least: float | None = None,
    choices: Sequence[str] = (),
    repeated: bool = False,
    required: bool = False,
) -> None:
    """Add a flag to a command: of the default's type, or of `kind` if that is None.

    A list is separated by commas; a `repeated` flag is given once for each value.
    """
    kind = kind if default is None else type(default)
    if choices:
        flags.DEFINE_enum(name, default, list(choices), meaning, values)
    elif repeated:
        flags.DEFINE_multi_string(name, default, meaning, values)
    elif kind in (int, float):
        KINDS[kind](name, default, meaning, least, flag_values=values)
    else:
        {**KINDS, list: flags.DEFINE_list}.get(kind, flags.DEFINE_string)(
            name, default, meaning, flag_values=values
        )
    if required:
        flags.mark_flag_as_required(name, flag_values=values)


def define_config(values: flags.FlagValues) -> None:
    """Add --config, required; --config.GROUP.NAME=VALUE changes one of its settings."""
    meaning = "Config file of the run, FILE.py or FILE.py:VARIANT."
    config_flags.DEFINE_config_file("config", None, meaning, flag_values=values)
    flags.mark_flag_as_required("config", flag_values=values)


def define_model(values: flags.FlagValues, *, repeated: bool = False) -> None:
    """Add --model, required."""
    meaning = "Run directory or Hugging Face directory of the model."
    meaning += " Repeat it for one model with several seeds." if repeated else ""
    define(values, "model", None, meaning, repeated=repeated, required=True)


def define_workdir(values: flags.FlagValues) -> None:
    """Add --workdir, required."""
    meaning = "Directory of the run; a run that it contains is resumed."
    define(values, "workdir", None, meaning, required=True)


def define_out(values: flags.FlagValues, what: str) -> None:
    """Add --out, required, and --overwrite; `what` is written."""
    define(values, "out", None, f"Directory to write {what} to.", required=True)
    define(values, "overwrite", False, f"Replace {what} in --out.")


def define_json(values: flags.FlagValues, what: str = "the figures") -> None:
    """Add --json."""
    define(values, "json", None, f"File to write {what} to, as JSON.")


def define_dtype(values: flags.FlagValues) -> None:
    """Add --dtype."""
    meaning = "Dtype of activations and matrix products; auto: float32 on a CPU, else bfloat16."
    define(values, "dtype", "auto", meaning, choices=("auto", "float32", "bfloat16"))


def define_mesh(values: flags.FlagValues) -> None:
    """Add --data, --fsdp and --tensor."""
    for name, size, meaning in (
        ("data", -1, "Devices with copies of the model, each a part of the batch; -1: the rest."),
        ("fsdp", 1, "Devices that split the weights, gathered before use, and the batch."),
        ("tensor", 1, "Devices that split attention heads, MLP and vocabulary."),
    ):
        define(values, name, size, meaning)


def make_mesh(options: flags.FlagValues) -> "Mesh":
    """Return the mesh of `define_mesh`'s flags; raises ValueError if it is not all devices."""
    from biomedlm_jax import mesh

    return mesh.make_mesh(data=options.data, fsdp=options.fsdp, tensor=options.tensor)


def define_processes(values: flags.FlagValues) -> None:
    """Add the flags of a run in several processes."""
    for name, default, meaning in (
        ("distributed", False, "Read the other processes from the environment (TPU pod, Slurm)."),
        ("coordinator", None, "HOST:PORT where process 0 listens, instead of --distributed."),
        ("process_id", 0, "Number of this process, from 0, with --coordinator."),
        ("process_count", 1, "Number of processes, with --coordinator."),
        ("start_timeout", 300, "Seconds to wait for the other processes to start."),
        ("silence_timeout", 60, "Seconds without a heartbeat until a process counts as dead."),
    ):
        define(values, name, default, meaning)


@contextlib.contextmanager
def joined(options: flags.FlagValues) -> Iterator[None]:
    """Join the other processes of `define_processes`'s flags; on failure all end together."""
    from biomedlm_jax import distributed

    if options.process_count > 1 and not options.coordinator:
        raise ValueError("--process_count needs --coordinator=HOST:PORT of process 0")
    if options.coordinator or options.distributed:
        distributed.start_processes(
            options.coordinator,
            process_id=options.process_id,
            process_count=options.process_count,
            start_timeout=options.start_timeout,
            silence_timeout=options.silence_timeout,
        )
    with distributed.leaving_together(silence_timeout=options.silence_timeout):
        yield


def define_settings(values: flags.FlagValues, cls: type, *, exclude: tuple[str, ...] = ()) -> None:
    """Add one flag, None by default, for each field of a Settings class, with the field's help."""
    hints = typing.get_type_hints(cls)
    for field in _fields(cls, exclude):
        kinds = [hints[field.name], *typing.get_args(hints[field.name])]
        kind = next((kind for kind in kinds if kind in KINDS), str)
        number = isinstance(field.default, int | float) and not isinstance(field.default, bool)
        meaning = field.metadata["help"] + (f" (default {field.default})" if number else "")
        repeated = tuple in [typing.get_origin(kind) for kind in kinds]
        choices = [str(choice).lower() for choice in field.metadata["choices"] or ()]
        meaning += "; repeatable" if repeated else ""
        define(values, field.name, None, meaning, kind=kind, choices=choices, repeated=repeated)


def given_settings(
    options: flags.FlagValues, cls: type, *, exclude: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the values of `define_settings`'s flags that were given."""
    given = {}
    for field in _fields(cls, exclude):
        value = options[field.name].value
        by_name = {str(choice).lower(): choice for choice in field.metadata["choices"] or ()}
        if value is not None:
            given[field.name] = (
                tuple(value) if isinstance(value, list) else by_name.get(value, value)
            )
    return given


def _fields(cls: type, exclude: tuple[str, ...]) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if field.name not in exclude]
