"""Flags that several commands have, each declared once.

Nothing here imports jax: `biomedlm plan` chooses jax's platform before that.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

if TYPE_CHECKING:
    from jax.sharding import Mesh

DTYPES = ["auto", "float32", "bfloat16"]


def define_config(values: flags.FlagValues) -> None:
    """Add --config, required; --config.GROUP.NAME=VALUE changes one of its settings."""
    meaning = "Config file of the run, FILE.py or FILE.py:VARIANT."
    config_flags.DEFINE_config_file("config", None, meaning, flag_values=values)
    flags.mark_flag_as_required("config", flag_values=values)


def define_model(values: flags.FlagValues, *, repeated: bool = False) -> None:
    """Add --model, required."""
    meaning = "Model: a run directory or a Hugging Face directory"
    if repeated:
        meaning += "; repeat it for several seeds of one model."
        flags.DEFINE_multi_string("model", None, meaning, values, required=True)
    else:
        flags.DEFINE_string("model", None, f"{meaning}.", values, required=True)


def define_workdir(values: flags.FlagValues) -> None:
    """Add --workdir, required."""
    meaning = "Directory of the run; a run that it contains is resumed."
    flags.DEFINE_string("workdir", None, meaning, values, required=True)


def define_out(values: flags.FlagValues, what: str) -> None:
    """Add --out, required, and --overwrite; `what` is written."""
    flags.DEFINE_string("out", None, f"Directory to write {what} to.", values, required=True)
    flags.DEFINE_bool("overwrite", False, f"Replace {what} in --out.", values)


def define_json(values: flags.FlagValues, what: str = "the figures") -> None:
    """Add --json."""
    flags.DEFINE_string("json", None, f"File to write {what} to, as JSON.", values)


def define_dtype(values: flags.FlagValues) -> None:
    """Add --dtype."""
    meaning = "Dtype of activations and matrix products; auto: float32 on a CPU, else bfloat16."
    flags.DEFINE_enum("dtype", "auto", DTYPES, meaning, values)


def define_mesh(values: flags.FlagValues) -> None:
    """Add --data, --fsdp and --tensor."""
    for name, size, meaning in (
        ("data", -1, "Devices with copies of the model, each a part of the batch; -1: the rest."),
        ("fsdp", 1, "Devices that split the weights, gathered before use, and the batch."),
        ("tensor", 1, "Devices that split attention heads, MLP and vocabulary."),
    ):
        flags.DEFINE_integer(name, size, meaning, flag_values=values)


def make_mesh(options: flags.FlagValues) -> "Mesh":
    """Return the mesh of `define_mesh`'s flags; raises ValueError if it is not all devices."""
    from biomedlm_jax import mesh

    return mesh.make_mesh(data=options.data, fsdp=options.fsdp, tensor=options.tensor)


def define_processes(values: flags.FlagValues) -> None:
    """Add the flags of a run in several processes."""
    meaning = "Find the other processes from the environment (TPU pod, Slurm, Open MPI)."
    flags.DEFINE_bool("distributed", False, meaning, values)
    meaning = "HOST:PORT where process 0 listens, instead of --distributed."
    flags.DEFINE_string("coordinator", None, meaning, values)
    for name, default, meaning in (
        ("process_id", 0, "Number of this process, from 0, with --coordinator."),
        ("process_count", 1, "Number of processes, with --coordinator."),
        ("start_timeout", 300, "Seconds to wait for the other processes to start."),
        ("silence_timeout", 60, "Seconds without a heartbeat until a process counts as dead."),
    ):
        flags.DEFINE_integer(name, default, meaning, flag_values=values)


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
    kinds = {int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_bool}
    for field in _fields(cls, exclude):
        hint, meaning = hints[field.name], field.metadata["help"]
        kind = next((k for k in (hint, *typing.get_args(hint)) if k in kinds), None)
        choices = field.metadata["choices"]
        if field.default is not None and not isinstance(field.default, str | tuple):
            meaning += f" (default {field.default})"
        if choices:
            names = [str(choice).lower() for choice in choices]
            flags.DEFINE_enum(field.name, None, names, meaning, values)
        elif kind:
            kinds[kind](field.name, None, meaning, flag_values=values)
        elif hint is str:
            flags.DEFINE_string(field.name, None, meaning, values)
        else:
            flags.DEFINE_multi_string(field.name, None, f"{meaning}; repeatable", values)


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
