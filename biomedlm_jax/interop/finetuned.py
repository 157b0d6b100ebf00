"""Fine-tuned models: the record of a head, and model directories written and read.

A fine-tuned directory is a run directory whose config.json has `facts`, how it was made, and its
`head`, if any. A Hugging Face directory of `export_hf` has the head as `biomedlm_jax_head`.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from tokenizers import Tokenizer

from biomedlm_jax.agreement import from_first_process
from biomedlm_jax.buckets import as_path
from biomedlm_jax.corpus.tokenizer import save_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_json
from biomedlm_jax.interop import directories
from biomedlm_jax.interop.tensorfiles import TensorFiles
from biomedlm_jax.interop.weights import check_tensors, read_model
from biomedlm_jax.mesh import abstract_sharded, check_fits, one_device
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.heads import CHOICE, CLASSIFICATION, HEADS, Scorer, score_layer
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.model.lora import matrices_in, without_factors
from biomedlm_jax.outputs import atomic_directory, local_copy, recover_directory
from biomedlm_jax.settings import Settings, check_names, setting
from biomedlm_jax.training.checkpoint import load_tree, save_model
from biomedlm_jax.training.narrowing import Narrowing
from biomedlm_jax.training.stopping import wait_for_all

# How a question becomes a row, see qa/prompts.py: "released" is the published code's, which cuts
# the end of a long text; "keep_end" cuts its start, since most questions end with the request.
KEEP_END, RELEASED = ROW_FORMATS = ("keep_end", "released")
FORMER_NAME = "paper"  # of KEEP_END, in older directories


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head(Settings):
    """What a directory states about its head. Raises InputError if that is inconsistent."""

    group = "head"

    kind: str = setting(choices=(CHOICE, CLASSIFICATION))
    task: str = setting()  # the task of the last fine-tuning
    row_format: str = setting(choices=ROW_FORMATS)  # how a question becomes token ids
    max_length: int = setting(least=1)  # tokens of a row in training; longer texts are cut
    classes: tuple[str, ...] = setting(())  # of a classification, in the order of the scores

    def __post_init__(self):
        super().__post_init__()
        different = len({*self.classes}) == len(self.classes)
        if not different or bool(self.classes) == (self.kind == CHOICE):
            wanted = "a classification has different names, a choice has none"
            raise InputError(f"got head.classes={list(self.classes)}; {wanted}")

    @property
    def outputs(self) -> int:
        """Scores of each hidden state that is read."""
        return 1 if self.kind == CHOICE else len(self.classes)

    def to_json(self) -> dict[str, Any]:
        """Return the record as config.json has it."""
        return {**dataclasses.asdict(self), "classes": list(self.classes)}

    @classmethod
    def from_json(cls, value: Any, *, where: str) -> "Head":
        """Read what `to_json` wrote; raises InputError, which begins with `where`, otherwise."""
        try:
            check_names(value, [field.name for field in dataclasses.fields(cls)], where="head")
            listed = {k: tuple(v) for k, v in value.items() if isinstance(v, list)}
            fields: dict[str, Any] = {**value, **listed}
            fields |= {"row_format": KEEP_END} if value["row_format"] == FORMER_NAME else {}
            return cls(**fields)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None


def read_head(path: str | Path) -> Head | None:
    """Return the head of a fine-tuned directory; None for a language model.

    Raises InputError if `path` is no directory of a model.
    """
    value = directories.head_entry(path)
    return None if value is None else Head.from_json(value, where=str(path))


def with_head(model: LanguageModel, head: Head, *, key: jax.Array) -> Scorer:
    """Return `model` with a new score layer for `head`."""
    return HEADS[head.kind](model, score_layer(model.config, head.kind, head.outputs, key=key))


def abstract_finetuned(config: ModelConfig, head: Head, mesh: Mesh) -> Scorer:
    """Return a fine-tuned model's shapes, dtypes and shardings on `mesh`, without values."""

    def make(model: LanguageModel) -> Scorer:
        return with_head(model, head, key=jax.random.key(0))

    return abstract_sharded(make, mesh, abstract_model(config))


def abstract_on(config: ModelConfig, head: Head | None, mesh: Mesh | None) -> Any:
    """Return the shapes, dtypes and shardings of a model, with its head if any, on `mesh`.

    Without a mesh it is on one device. Raises InputError if the mesh does not divide the model.
    """
    mesh = one_device() if mesh is None else mesh
    check_fits(mesh, model=abstract_model(config))
    return abstract_finetuned(config, head, mesh) if head else abstract_model(config, mesh)


def load_finetuned(
    path: str | Path, *, mesh: Mesh | None = None, dtype: str = "float32", **execution
) -> tuple[Scorer, Tokenizer, Head]:
    """Load a model with its head, its tokenizer and its Head from a fine-tuned directory.

    `path` is a run of `finetune`, a fine-tuned directory, or what `export_hf` wrote of one. `mesh`,
    `dtype` and `execution` are those of `load`. Raises InputError if there is no such
    model.
    """
    head = read_head(path)
    if head is None:
        fix = f"biomedlm finetune --config=CONFIG --model={path} --workdir=DIR"
        raise InputError(f"{path} has no head; fine-tune it first: {fix}")
    config = directories.model_config(path, **execution)
    tokenizer = directories.read_tokenizer(path, config, required=True)
    assert tokenizer is not None
    abstract = matrices_in(abstract_on(config, head, mesh), dtype)
    return read_weights(path, abstract), tokenizer, head


def read_weights(path: str | Path, abstract: Any, *, step: int | None = None) -> Any:
    """Read the model `abstract` from a run or Hugging Face directory that holds exactly it.

    A warning has how many numbers are rounded to the dtypes of `abstract`. Raises InputError
    otherwise.
    """
    path = directories.model_directory(path)
    if directories.kind_of(path) == directories.RUN:
        return load_tree(path, abstract, step=step)
    if step is not None:
        raise InputError(f"got step={step}; {path} is a Hugging Face directory, without steps")
    with local_copy(path) as local:
        files = TensorFiles(local, abstract.config)
        check_tensors(files.shapes, abstract, where=str(path))
        if files.heads:
            left_out = f"{path}: left out {', '.join(files.heads)} of another head"
            warnings.warn(left_out, RuntimeWarning, stacklevel=3)
        narrowing = Narrowing(path)
        model = read_model(abstract, files.read, narrowing=narrowing)
        narrowing.warn()
        return model


def save_finetuned(
    path: str | Path,
    model: LanguageModel | Scorer,
    tokenizer: Tokenizer | None,
    head: Head | None = None,
    *,
    step: int = 0,
    facts: Mapping[str, Any] | None = None,
    files: Mapping[str, Mapping[str, Any]] | None = None,
    replaceable: Callable[[Path], bool] = lambda path: (path / directories.CONFIG).exists(),
    overwrite: bool = True,
) -> Path:
    """Write a model, with its head if it has one, as the run directory `path` in one step.

    LoRA's factors are merged and what is frozen in bfloat16 is written as float32.
    `facts` are for its model card, `files` more JSON files by name, such as generation_config.json;
    `replaceable` and `overwrite` are those of `outputs.atomic_directory`. Call it in every process.
    """
    with _directory_of_first(path, replaceable=replaceable, overwrite=overwrite) as new:
        if jax.process_index() == 0:
            entry = {} if head is None else {"head": head.to_json()}
            fields = {"model": model.config.to_json(), **entry, "facts": dict(facts or {})}
            write_json(new / directories.CONFIG, fields)
            if tokenizer is not None:
                save_tokenizer(tokenizer, new, model_max_length=model.config.context_length)
            for name, value in (files or {}).items():
                write_json(new / name, value)
        save_model(new, without_factors(model), step=step)
    wait_for_all("replaced")
    return as_path(path)


def read_facts(path: str | Path) -> dict[str, Any]:
    """Return the facts that `save_finetuned` wrote; {} if there is no directory.

    Call it in every process: after a crash, the first restores the directory being replaced.
    """
    if jax.process_index() == 0:
        recover_directory(path)
    wait_for_all("recovered")
    exists = (as_path(path) / directories.CONFIG).exists()
    return directories.read_config(path).get("facts", {}) if exists else {}


@contextlib.contextmanager
def _directory_of_first(path: str | Path, **options: Any) -> Generator[Path]:
    """Yield the `atomic_directory` of the first process in every process."""
    with contextlib.ExitStack() as stack:
        directory = atomic_directory(path, **options)
        yield as_path(from_first_process(lambda: str(stack.enter_context(directory))))
