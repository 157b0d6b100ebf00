"""Flags: the flags of one command; those that several commands have are declared here, once.

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


class Flags(flags.FlagValues):
    """The flags of one command."""

    def define(
        self,
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
        """Add a flag: of the default's type, or of `kind` if that is None.

        A list is separated by commas; a `repeated` flag is given once for each value.
        """
        kind = kind if default is None else type(default)
        if choices:
            flags.DEFINE_enum(name, default, list(choices), meaning, self)
        elif repeated:
            flags.DEFINE_multi_string(name, default, meaning, self)
            self[name].help = f"{meaning.rstrip('.')}; repeatable."
        elif kind in (int, float):
            KINDS[kind](name, default, meaning, least, flag_values=self)
        else:
            {**KINDS, list: flags.DEFINE_list}.get(kind, flags.DEFINE_string)(
                name, default, meaning, flag_values=self
            )
        if required:
            flags.mark_flag_as_required(name, flag_values=self)

    def pick(self, *names: str) -> dict[str, Any]:
        """Return the values of some flags by name."""
        return {name: self[name].value for name in names}

    def define_config(self) -> None:
        """Add --config, required; --config.GROUP.NAME=VALUE changes one of its settings."""
        meaning = "Config file of the run, FILE.py or FILE.py:VARIANT."
        config_flags.DEFINE_config_file("config", None, meaning, flag_values=self)
        flags.mark_flag_as_required("config", flag_values=self)

    def define_model(self, *, repeated: bool = False) -> None:
        """Add --model, required."""
        meaning = "Run directory or Hugging Face directory of the model."
        meaning += " Several are one model with several seeds" if repeated else ""
        self.define("model", None, meaning, repeated=repeated, required=True)

    def define_workdir(self) -> None:
        """Add --workdir, required."""
        meaning = "Directory of the run; a run that it contains is resumed."
        self.define("workdir", None, meaning, required=True)

    def define_out(self, what: str) -> None:
        """Add --out, required, and --overwrite; `what` is written."""
        self.define("out", None, f"Directory to write {what} to.", required=True)
        self.define("overwrite", False, f"Replace {what} in --out.")

    def define_json(self, what: str = "the figures") -> None:
        """Add --json."""
        self.define("json", None, f"File to write {what} to, as JSON.")

    def define_dtype(self) -> None:
        """Add --dtype."""
        meaning = "Dtype of activations and matrix products; auto: float32 on a CPU, else bfloat16."
        self.define("dtype", "auto", meaning, choices=("auto", "float32", "bfloat16"))

    def define_mesh(self) -> None:
        """Add --data, --fsdp and --tensor."""
        for name, size, meaning in (
            ("data", -1, "Devices with copies of the model, for parts of the batch; -1: the rest."),
            ("fsdp", 1, "Devices that split the weights, gathered before use, and the batch."),
            ("tensor", 1, "Devices that split attention heads, MLP and vocabulary."),
        ):
            self.define(name, size, meaning)

    def make_mesh(self) -> "Mesh":
        """Return the mesh of `define_mesh`'s flags; raises ValueError if it is not all devices."""
        from biomedlm_jax import mesh

        return mesh.make_mesh(data=self.data, fsdp=self.fsdp, tensor=self.tensor)

    def define_processes(self) -> None:
        """Add the flags of a run in several processes."""
        for name, default, meaning in (
            ("distributed", False, "Find the other processes: on a TPU pod or under Slurm."),
            ("coordinator", None, "HOST:PORT where process 0 listens, instead of --distributed."),
            ("process_id", 0, "Number of this process, from 0, with --coordinator."),
            ("process_count", 1, "Number of processes, with --coordinator."),
            ("start_timeout", 300, "Seconds to wait for the other processes to start."),
            ("silence_timeout", 60, "Seconds without a heartbeat until a process counts as dead."),
        ):
            self.define(name, default, meaning)

    def define_settings(self, cls: type, *, exclude: tuple[str, ...] = ()) -> None:
        """Add one flag, None by default, for each field of a Settings class, with its help."""
        hints = typing.get_type_hints(cls)
        for field in _fields(cls, exclude):
            kinds = [hints[field.name], *typing.get_args(hints[field.name])]
            kind = next((kind for kind in kinds if kind in KINDS), str)
            number = isinstance(field.default, int | float) and not isinstance(field.default, bool)
            meaning = field.metadata["help"] + (f" (default {field.default})" if number else "")
            repeated = tuple in [typing.get_origin(kind) for kind in kinds]
            choices = [str(choice).lower() for choice in field.metadata["choices"] or ()]
            self.define(field.name, None, meaning, kind=kind, choices=choices, repeated=repeated)

    def given_settings(self, cls: type, *, exclude: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return the values of `define_settings`'s flags that were given."""
        given = {}
        for field in _fields(cls, exclude):
            value = self[field.name].value
            by_name = {str(choice).lower(): choice for choice in field.metadata["choices"] or ()}
            if isinstance(value, list):
                given[field.name] = tuple(value)
            elif value is not None:
                given[field.name] = by_name.get(value, value)
        return given

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Join the other processes of `define_processes`'s flags; on failure all end together."""
        from biomedlm_jax import distributed

        if self.process_count > 1 and not self.coordinator:
            raise ValueError("--process_count needs --coordinator=HOST:PORT of process 0")
        if self.coordinator or self.distributed:
            distributed.start_processes(
                self.coordinator,
                process_id=self.process_id,
                process_count=self.process_count,
                start_timeout=self.start_timeout,
                silence_timeout=self.silence_timeout,
            )
        with distributed.leaving_together(silence_timeout=self.silence_timeout):
            yield


def _fields(cls: type, exclude: tuple[str, ...]) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if field.name not in exclude]
