"""What a result is of: hashes of the model and the questions, and how they were evaluated."""

import datetime
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import biomedlm_jax
from biomedlm_jax.corpus.tokenizer import tokenizer_hash
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import content_hash
from biomedlm_jax.interop.directories import training_record
from biomedlm_jax.qa.questions import Question, questions_hash
from biomedlm_jax.qa.tasks import without_directory
from biomedlm_jax.training.provenance import NOT_COMPARED, weights_hash

# Groups of run.json that do not change the model, or whose content is hashed in `started_from`.
UNCOMPARED = (
    "facts",
    "started_from",
    "mesh",
    "sweep",
    "logging",
    "checkpoint",
    "model",
    "task",
    "faults",
)


def question_hash(question: Question) -> str:
    """Return the hash of what is asked: the context, the question and its options in order."""
    return content_hash([question.context, question.question, question.options])[:16]


def used_in_training(
    path: str | Path, task: str, split: str, questions: Sequence[Question]
) -> list[str]:
    """Return which of "train" and "dev" (it chose the checkpoint) these questions were.

    Those of earlier trainings, from which this one started, count as well.

    `questions` are the whole split. Their hash decides; the names of task and split do, too, but
    of somebody's own set only where training recorded no hash.
    """
    record = training_record(path)
    facts, settings = record.get("facts", {}), record.get("task") or {}
    if "dev_accuracy" not in facts:
        return []
    digest, here = questions_hash(questions), (without_directory(task), split)
    uses = set()
    for stage in (facts, *facts.get("earlier", ())):
        settings = settings if stage is facts else {}
        of_run = without_directory(str(stage.get("task")))
        for one in ("train", "dev"):
            recorded = stage.get(f"{one}_questions")
            named = of_run, stage.get(f"{one}_split", settings.get(f"{one}_split"))
            by_name = named == here and not (recorded and of_run.startswith("jsonl:"))
            if recorded == digest or by_name:
                uses.add(one)
    return sorted(uses, reverse=True)


def check_seeds(paths: Sequence[str | Path]) -> None:
    """Raise InputError unless the directories state that they are seeds of one model."""
    first, *others = map(_start_and_settings, paths)
    fix = "several --model are seeds of one training; evaluate others one at a time"
    for path, other in zip(paths[1:], others, strict=True):
        names = sorted(n for n in {*first, *other} if first.get(n) != other.get(n))
        if names:
            raise InputError(f"{paths[0]} and {path} differ in {', '.join(names[:4])}; {fix}")


def describe(
    path: str | Path,
    model: Any,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    row_format: str = "",
) -> dict[str, Any]:
    """Return what a loaded model is: hashes of weights and tokenizer, dtype, longest row."""
    max_length = max_length or model.config.context_length
    return {
        "path": str(path),
        "weights": weights_hash(model),
        "tokenizer": tokenizer_hash(tokenizer),
        "dtype": jax.numpy.dtype(model.config.dtype).name,
        "max_length": max_length,
        **({"row_format": row_format} if row_format else {}),
    }


def run_environment() -> dict[str, Any]:
    """Return when, by which version and command, and on what a result is computed."""
    device = jax.devices()[0]
    return {
        "version": f"biomedlm-jax {biomedlm_jax.__version__}, jax {jax.__version__}, "
        f"Python {platform.python_version()}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "command": f"{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}".strip(),
    }


def _start_and_settings(path: str | Path) -> dict[str, Any]:
    """Return what must be equal between seeds: where training started, and its settings."""
    record = training_record(path)
    start = record.get("started_from")
    if not start:
        fix = "several --model are seeds of one training; evaluate it alone"
        raise InputError(f"{path} does not state what it was trained from; {fix}")
    compared = {f"started_from.{k}": v for k, v in start.items() if k not in NOT_COMPARED}
    for group in record.keys() - {*UNCOMPARED}:
        fields = record[group] if isinstance(record[group], Mapping) else {"": record[group]}
        compared |= {f"{group}.{name}".rstrip("."): value for name, value in fields.items()}
    free = {"training.seed", "data.path", "data.train", "data.dev"}  # the data are hashed
    return {name: value for name, value in compared.items() if name not in free}
