"""Directories that are written whole or not at all, and what kind of model one holds."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from biomedlm_jax.model.config import GPTConfig

RUN, HUGGING_FACE = "run", "Hugging Face"
EXECUTION = ("compute_dtype", "reduce_dtype", "attention", "remat", "unroll")
DROPOUT = ("embedding_dropout", "attention_dropout", "residual_dropout")
GENERATION_CONFIG = "generation_config.json"  # how a model decodes, by transformers' names
FINETUNING = "finetuning.json"  # of a fine-tuning run, whose `best` is the fine-tuned model
HEAD_ENTRY = "biomedlm_jax_head"  # of an exported head's config.json; a run's says `head`


def kind_of(path: str | Path) -> str:
    """RUN or HUGGING_FACE, by config.json; raises ValueError or FileNotFoundError if neither."""
    config = read_config(path)
    if isinstance(config.get("model"), dict):
        return RUN
    if "model_type" in config:
        return HUGGING_FACE
    raise ValueError(
        f"{Path(path) / 'config.json'} has neither a model group (a run's) nor a model_type "
        "(Hugging Face's)"
    )


def head_entry(path: str | Path) -> dict | None:
    """What config.json says of the head of a fine-tuned model; None for a language model."""
    config = read_config(path)
    return config.get("head") if isinstance(config.get("model"), dict) else config.get(HEAD_ENTRY)


def refuse_heads(path: str | Path) -> None:
    """Raise ValueError if the directory is of a fine-tuned model, where one without is wanted."""
    if (Path(path) / FINETUNING).exists():
        raise ValueError(
            f"{path} is a run of finetune, whose models have a head; answer questions with it: "
            f"biomedlm evaluate --model={path}, or export it: biomedlm export-hf --model={path}"
        )
    config = read_config(path)
    head = head_entry(path)
    if head is not None:
        kind = head.get("kind", "unknown") if isinstance(head, dict) else "unknown"
        raise ValueError(
            f"{path} is a fine-tuned model with a {kind} head, not a language model; answer "
            f"questions with it: biomedlm evaluate --model={path}"
        )
    for name in config.get("architectures") or ():
        if str(name).endswith("SequenceClassification"):
            raise ValueError(
                f"{path} is a {name} of others, which does not say how its texts are laid out; "
                f"add {HEAD_ENTRY} to its config.json as export-hf writes it, then evaluate it"
            )


def read_config(path: str | Path) -> dict:
    """The config.json of a directory; raises ValueError or FileNotFoundError."""
    file = Path(path) / "config.json"
    if not Path(path).is_dir():
        hub = str(path).count("/") == 1 and not str(path).startswith((".", "/"))
        advice = f"; download it first: hf download {path} --local-dir DIR" if hub else ""
        raise FileNotFoundError(f"no such directory: {path}{advice}")
    if (Path(path) / FINETUNING).exists() and not file.exists():
        raise FileNotFoundError(
            f"{path} is a fine-tuning run; what it made is {Path(path) / 'best'}, for `evaluate`"
        )
    if not file.exists():
        raise FileNotFoundError(f"{path} has no config.json, so it is no run or Hugging Face model")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__}; expected a JSON object")
    return config


def model_config(path: str | Path, **execution) -> GPTConfig:
    """The GPTConfig of a run or Hugging Face directory, executed as this machine does best.

    How a run was executed (its kernel, its dtype) suits the machine it ran on; `execution` sets
    those fields anew, and the dropout rates. Raises ValueError for any other name.
    """
    unknown = sorted(set(execution) - {*EXECUTION, *DROPOUT})
    if unknown:
        allowed = ", ".join((*EXECUTION, *DROPOUT))
        raise ValueError(f"got {unknown}; what can be set on loading is {allowed}")
    config = read_config(path)
    if kind_of(path) == HUGGING_FACE:
        return GPTConfig.from_hf(config, **execution)
    fields = {k: v for k, v in config["model"].items() if k not in EXECUTION}
    unknown = sorted(set(fields) - set(GPTConfig.__dataclass_fields__))
    if unknown:
        raise ValueError(f"{Path(path) / 'config.json'} has model.{unknown[0]}, which is unknown")
    return GPTConfig(**{**fields, **execution})


def check_output(path: str | Path, *, kind: str, overwrite: bool) -> None:
    """Raise at once, before any work, if `building` would refuse to write `path`."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; name a directory")
    if not path.exists() or not any(path.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists; name another directory, or pass --overwrite")
    try:
        same = kind_of(path) == kind
    except (ValueError, FileNotFoundError):
        same = False
    if not same:
        raise FileExistsError(
            f"{path} holds something else than a {kind} directory, which is not overwritten; "
            "name another directory"
        )


@contextlib.contextmanager
def building(path: str | Path, *, kind: str, overwrite: bool) -> Iterator[Path]:
    """Yield an empty directory beside `path` that takes its place when the block ends well.

    After an error, what was at `path` is still there, and nothing else.
    """
    check_output(path, kind=kind, overwrite=overwrite)
    path = Path(os.path.realpath(path))  # of a link, the directory it stands for is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        check_output(path, kind=kind, overwrite=overwrite)  # somebody may have been faster
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
