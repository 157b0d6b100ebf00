"""Flags: the flags of one command, and the flags that several commands share.

Nothing here imports jax before a command runs: `biomedlm plan` sets jax's platform first.
"""

import contextlib
import dataclasses
import json
import shlex
import typing
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from biomedlm_jax.corpus import documents, input_files
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_json
from biomedlm_jax.settings import Settings

MODEL = "Run directory or Hugging Face directory of the model."
ENGINES = ("processes", "beam")
KINDS: dict[type, Callable]
KINDS = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}


class SizesParser(flags.ArgumentParser):
    """Read whole numbers above 0, separated by commas."""

    def parse(self, argument) -> tuple[int, ...]:
        """Return the numbers in a text, or a default unchanged; InputError for other texts."""
        if not isinstance(argument, str):
            return argument
        sizes = argument.split(",") if argument else []
        if not all(size.isdecimal() and int(size) for size in sizes):
            raise InputError("expected whole numbers above 0, such as 1,2,4")
        return tuple(map(int, sizes))


class Flags(flags.FlagValues):
    """The flags of one command, in the order of its help."""

    def __init__(self, *groups: str):
        super().__init__()
        self.add(*groups)

    def add(self, *groups: str) -> None:
        """Add groups of flags by name: "config" calls `define_config`."""
        for group in groups:
            getattr(self, f"define_{group}")()

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
            self.require(name)

    def require(self, name: str) -> None:
        """Make a flag required, and not empty."""
        flags.register_validator(name, bool, "is required", flag_values=self)

    def define_sizes(self, name: str, default: tuple[int, ...], meaning: str) -> None:
        """Add a flag that lists whole numbers above 0, separated by commas."""
        flags.DEFINE(SizesParser(), name, default, meaning, self, flags.CsvListSerializer(","))

    def pick(self, *names: str) -> dict[str, Any]:
        """Return the values of some flags by name."""
        return {name: self[name].value for name in names}

    def define_config(self) -> None:
        """Add --config, required; --config.GROUP.NAME=VALUE changes one of its settings."""
        meaning = "Config file of the run, FILE.py or FILE.py:VARIANT."
        config_flags.DEFINE_config_file("config", None, meaning, flag_values=self)
        self.require("config")

    def define_model(self) -> None:
        """Add --model, required."""
        self.define("model", None, MODEL, required=True)

    def define_models(self) -> None:
        """Add --model, required and repeatable."""
        seeds = f"{MODEL} Several values: one model trained with several seeds."
        self.define("model", None, seeds, repeated=True, required=True)

    def define_workdir(self) -> None:
        """Add --workdir, required."""
        meaning = "Directory of the run; resumes the run that it contains."
        self.define("workdir", None, meaning, required=True)

    def define_out(self) -> None:
        """Add --out, required, and --overwrite."""
        self.define("out", None, "Directory to write.", required=True)
        self.define("overwrite", False, "Replace what this command wrote to --out before.")

    def define_json(self) -> None:
        """Add --json."""
        self.define("json", None, "File to write the figures to, as JSON.")
        new = "expected a file that does not exist yet"
        flags.register_validator("json", lambda p: not (p and Path(p).is_file()), new, self)

    def write_json(self, value: Any) -> None:
        """Write `value` to the file of --json, if that is given."""
        if self.json:
            write_json(self.json, value)

    def define_input(self) -> None:
        """Add the flags of a corpus; --input is required."""
        self.define_text()
        self.require("input")
        self.define("subsets", [], "Keep only JSON lines of these subsets, separated by commas.")
        self.define("subset_field", "meta.pile_set_name", "Field of a JSON line with its subset.")
        largest = "Maximum bytes of a line, JSON object or text file; a larger one counts as bad."
        self.define("max_document_bytes", documents.MAX_LINE_BYTES, largest)
        bad = "At a bad line: stop with an error, or skip it."
        self.define("on_error", "raise", bad, choices=documents.ON_ERROR)

    def define_text(self, only: str = "") -> None:
        """Add --input and --text_field; `only` names the benchmark that reads them, if one does."""
        what = f"{only}Files, directories or globs, separated by commas. {input_files.KNOWN}"
        self.define("input", None, what, repeated=True)
        text = "Field of a JSON line with the text; meta.text is nested, title,abstract are joined."
        self.define("text_field", "text", f"{only}{text}")

    def input_paths(self) -> list[Path]:
        """List the files of --input."""
        return input_files.input_files(self.paths())

    def paths(self) -> list[str]:
        """Return the values of --input."""
        return [path for paths in self.input for path in paths.split(",")]

    def reading(self) -> dict[str, Any]:
        """Return the flags of `define_input` but --input as arguments of `DocumentReader`."""
        names = ("text_field", "subsets", "subset_field", "on_error", "max_document_bytes")
        return {**self.pick(*names), "subsets": tuple(self.subsets)}

    def read_input(self, skipped: documents.Skipped | None = None) -> Iterator[documents.Document]:
        """Return the documents of `define_input`'s flags; `skipped` counts what is omitted."""
        return documents.read_documents(self.paths(), skipped=skipped, **self.reading())

    def define_engine(self) -> None:
        """Add --engine and --beam_options."""
        meaning = "What runs the work: processes of this machine, or a runner of Apache Beam."
        self.define("engine", ENGINES[0], meaning, choices=ENGINES)
        meaning = "Flags of Apache Beam, separated by spaces, such as --runner=FlinkRunner."
        self.define("beam_options", None, meaning)

    def beam_flags(self) -> list[str] | None:
        """Return the flags of --beam_options, None without Beam."""
        if self.engine == ENGINES[0]:
            if self.beam_options is not None:
                raise InputError("got --beam_options without --engine=beam, where it has no effect")
            return None
        if "workers" in self and self["workers"].present:
            raise InputError("got --workers with --engine=beam; set it in --beam_options")
        try:
            return shlex.split(self.beam_options or "")
        except ValueError as error:
            raise InputError(f"got --beam_options={self.beam_options}: {error}") from None

    def define_dtype(self) -> None:
        """Add --dtype."""
        meaning = "Dtype of activations and matrix products; auto: float32 on a CPU, else bfloat16."
        self.define("dtype", "auto", meaning, choices=("auto", "float32", "bfloat16"))

    def define_mesh(self) -> None:
        """Add --data, --fsdp and --tensor."""
        for name, size, meaning in (
            ("data", -1, "Devices that split the batch, with copies of the model; -1: the rest."),
            ("fsdp", 1, "Devices that split the batch and the weights (all-gathered before use)."),
            ("tensor", 1, "Devices that split attention heads, MLP and vocabulary."),
        ):
            self.define(name, size, meaning)

    def loading(self) -> dict[str, Any]:
        """Return --data, --fsdp, --tensor and --dtype as arguments of functions that load a model.

        Raises InputError if the mesh does not have exactly the devices there are.
        """
        from biomedlm_jax.mesh import make_mesh

        dtype = {"compute_dtype": self.dtype} if "dtype" in self else {}
        return {"mesh": make_mesh(**self.pick("data", "fsdp", "tensor")), **dtype}

    def define_processes(self) -> None:
        """Add the flags of a run in several processes."""
        for name, default, meaning in (
            ("distributed", False, "Get the other processes from the TPU pod or from Slurm."),
            ("coordinator", None, "HOST:PORT of process 0, instead of --distributed."),
            ("process_id", 0, "Number of this process, from 0, with --coordinator."),
            ("process_count", 1, "Number of processes, with --coordinator."),
            ("start_timeout", 300, "Seconds to wait for the other processes to start."),
            ("silence_timeout", 60, "Seconds without a heartbeat before a process counts as dead."),
        ):
            self.define(name, default, meaning)

    def define_faults(self) -> None:
        """Add --fallback and --replay."""
        meaning = "If the newest checkpoint is damaged, resume from the newest whole one."
        self.define("fallback", False, meaning)
        meaning = (
            "File in RUN/skipped: compute that skipped update again, print where the first value "
            "that is not finite arises, and end."
        )
        self.define("replay", None, meaning)

    def define_settings(self, cls: type[Settings], *, exclude: tuple[str, ...] = ()) -> None:
        """Add one flag, None by default, for each field of a Settings class, with its help."""
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.name in exclude:
                continue
            kinds = [hints[field.name], *typing.get_args(hints[field.name])]
            kind = next((kind for kind in kinds if kind in KINDS), str)
            number = isinstance(field.default, int | float) and not isinstance(field.default, bool)
            meaning = field.metadata["help"] + (f" (default {field.default})" if number else "")
            repeated = tuple in [typing.get_origin(kind) for kind in kinds]
            choices = [str(choice).lower() for choice in field.metadata["choices"] or ()]
            self.define(field.name, None, meaning, kind=kind, choices=choices, repeated=repeated)

    def given_settings(self, cls: type[Settings]) -> dict[str, Any]:
        """Return the values of `define_settings`'s flags that were given."""
        given = {}
        for field in dataclasses.fields(cls):
            value = self[field.name].value if field.name in self else None
            by_name = {str(choice).lower(): choice for choice in field.metadata["choices"] or ()}
            if isinstance(value, list):
                given[field.name] = tuple(value)
            elif value is not None:
                given[field.name] = by_name.get(value, value)
        return given

    @contextlib.contextmanager
    def multiprocess_run(self) -> Generator[None]:
        """Connect the processes of `define_processes`; if one fails in the block, all end."""
        from biomedlm_jax import distributed
        from biomedlm_jax.agreement import check_agreement, versions
        from biomedlm_jax.allocator import keep_freed_memory

        keep_freed_memory()  # before jax makes its devices, to count processes
        if self.coordinator and self.distributed:
            raise InputError("got --coordinator and --distributed; expected one of them")
        for name in ("process_count", "process_id"):
            if self[name].value != self[name].default and not self.coordinator:
                raise InputError(f"--{name} needs --coordinator=HOST:PORT of process 0")
        if self.coordinator or self.distributed:
            numbers = self.pick("process_id", "process_count", "start_timeout", "silence_timeout")
            distributed.start_processes(self.coordinator, **numbers)
        with distributed.fail_together(silence_timeout=self.silence_timeout):
            check_agreement({"flags": self._agreed(), "versions": versions()})
            yield

    def _agreed(self) -> dict[str, Any]:
        """Return the flags that must be the same in all processes, and the config's values."""
        own = {"process_id", "coordinator", "start_timeout", "silence_timeout", "config"}
        given = {name: self[name].value for name in self if name not in own and "." not in name}
        config = self.config.to_dict() if "config" in self else {}
        return json.loads(json.dumps({**given, "config": config}, default=str))
