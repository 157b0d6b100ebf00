"""Run lm-evaluation-harness's tasks on a model, and write its results (extra `harness`)."""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import parse_object, write_text
from biomedlm_jax.generation.options import read_generation_config
from biomedlm_jax.integrity import SUMS
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.outputs import atomic_directory, check_output
from biomedlm_jax.qa.harness import Harness
from biomedlm_jax.qa.models import check_model
from biomedlm_jax.qa.questions import check_limit
from biomedlm_jax.qa.scoring import BATCH_TOKENS
from biomedlm_jax.streams import read_blocks

RESULTS = "harness.json"
WRITTEN = (RESULTS, "results_*.json", "samples_*.jsonl", SUMS)


def evaluate_tasks(
    models: Sequence[str | Path],
    out: str | Path,
    *,
    tasks: Sequence[str],
    task_directory: str | Path | None = None,
    num_fewshot: int | None = None,
    limit: float | None = None,
    samples: Mapping[str, Sequence[int]] | str | Path | None = None,
    confirm_run_unsafe_code: bool = False,
    chat_template: bool = False,
    date: str = "",
    batch_tokens: int = BATCH_TOKENS,
    overwrite: bool = False,
    mesh: Mesh | None = None,
    notify: Callable[[str], None] = print,
    **execution: Any,
) -> dict:
    """Run tasks on a run or Hugging Face directory; write results and samples into `out`.

    Args:
      tasks: names of tasks, groups or tags in `task_directory`, else of lm-eval's own, whose data
        sets are downloaded, or read from the `datasets` cache if HF_HUB_OFFLINE is set.
      task_directory: holds the YAML files of tasks.
      num_fewshot: answered questions before each question, in place of the task's.
      limit: questions of each task, or below 1 a fraction of them.
      samples: the numbers of each task's questions; or JSON, or a JSON file, of them.
      confirm_run_unsafe_code: run the code that a task of programs lets the model write.
      chat_template: put prompts into the tokenizer's chat template, shots as turns of their own.
      date: YYYY-MM-DD, what that template prints as today; "": the day of the call.
      notify: gets the harness's tables.
      execution: fields of the model's config.

    `out` gets lm-eval's results_*.json and samples_*.jsonl in a folder named after the model, and
    the results as harness.json. Call it in every process; process 0 writes. Returns the harness's
    results. Raises InputError for tasks, samples or a model that do not fit.
    """
    # Slow to import, as all metrics and data sets come along.
    from lm_eval import simple_evaluate, utils
    from lm_eval.loggers import EvaluationTracker

    keep_freed_memory()
    manager = _task_manager(tasks, task_directory)
    if len(models) != 1 or check_model(models[0], mesh) is not None:
        raise InputError(f"got {list(models)}; harness tasks take one model, without a head")
    if limit is not None and samples is not None:
        raise InputError("got both a limit and samples; expected only one of them")
    output = {"replaceable": _is_written, "overwrite": overwrite}
    writes = jax.process_index() == 0
    if writes:
        check_output(out, **output)
    options = {"num_fewshot": num_fewshot, "task_manager": manager, "torch_random_seed": None}
    options["confirm_run_unsafe_code"] = confirm_run_unsafe_code
    options["limit"], options["apply_chat_template"] = check_limit(limit), chat_template
    try:
        options["samples"] = _check_samples(samples, manager, tasks)
        model, tokenizer = load(models[0], mesh=mesh, **execution)
        assert tokenizer is not None  # checked above
        run: Any = simple_evaluate  # its decorator hides its parameters from type checkers
        # lm-eval forks to bootstrap an interval, which may deadlock the threads of JAX.
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        config = read_generation_config(models[0])
        given: dict[str, Any] = {
            "batch_tokens": batch_tokens,
            "generation_config": config,
            "date": date,
        }
        harness = Harness(model, tokenizer, **given)
        tracker = EvaluationTracker()
        options |= {"model_args": {"path": str(models[0])}, "evaluation_tracker": tracker}
        results = run(harness, tasks=list(tasks), **options)
    except ConnectionError as error:
        problem = " ".join(str(error).split())
        problem = f"a data set of {list(tasks)} is not available: {problem}"
        raise InputError(problem) from None
    results["config"]["model"] = tracker.general_config_tracker.model_source = "biomedlm"
    tracker.general_config_tracker.model_name_sanitized = Path(models[0]).resolve().name
    if writes:
        table = {name: value for name, value in results.items() if name != "samples"}
        with atomic_directory(out, **output) as new:
            _save(tracker, table, results["samples"], new)
        for name, shots in results["n-shot"].items():
            if num_fewshot not in (None, shots):
                notify(f"{name} has num_fewshot: {shots} in its file, which --num_fewshot keeps")
        notify(utils.make_table(results))
        if results.get("groups"):
            notify(utils.make_table(results, "groups"))
    return results


def _task_manager(tasks: Sequence[str], directory: str | Path | None):
    """Return lm-eval's manager of the tasks in a directory, and of its own if they are named.

    Raises InputError without the directory, or for an unknown task.
    """
    from lm_eval.tasks import TaskManager

    here: list[str] = []
    if directory:
        if not Path(directory).is_dir():
            raise InputError(f"no directory with the tasks' YAML files: {directory}")
        manager = TaskManager(include_path=str(directory), include_defaults=False)
        here = manager.all_tasks
        if tasks and {*tasks} <= {*here}:
            return manager
    unknown = sorted({*tasks} - {*here, *_own_tasks().all_tasks})
    if not tasks or unknown:
        where = f"{directory} has {', '.join(here) or 'none'}, and " if directory else ""
        fix = "`lm_eval ls tasks` lists them, --harness_directory adds your own"
        raise InputError(f"got the harness tasks {unknown}; {where}lm-eval has no such task: {fix}")
    return TaskManager(include_path=str(directory)) if directory else _own_tasks()


@functools.cache
def _own_tasks():
    """Return the manager of lm-eval's own tasks, which reads 14,000 YAML files."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _check_samples(samples, manager, tasks: Sequence[str]) -> dict[str, list[int]] | None:
    """Return the numbers of each task's questions; InputError for a task or number not there."""
    if samples is None:
        return None
    if not isinstance(samples, Mapping):
        file = Path(samples)
        is_text = str(samples).lstrip().startswith("{")
        raw = str(samples).encode("utf-8") if is_text else b"".join(read_blocks(file))
        samples = parse_object(raw, "samples" if is_text else str(file))
    loaded = manager.load(list(tasks))["tasks"]
    for name, numbers in samples.items():
        if name not in loaded:
            raise InputError(f"got samples of {name}; expected some of {', '.join(loaded)}")
        count = len(loaded[name].eval_docs)
        whole = isinstance(numbers, Sequence) and all(type(n) is int for n in numbers)
        if not numbers or not whole or not all(0 <= n < count for n in numbers):
            expected = f"a list of numbers from 0 to {count - 1}"
            raise InputError(f"got samples {numbers!r} of {name}; expected {expected}")
    return {name: list(numbers) for name, numbers in samples.items()}


def _is_written(path: Path) -> bool:
    """Whether all files of a directory are names that `evaluate_tasks` writes."""
    files = [file for file in path.rglob("*") if not file.is_dir()]
    return all(any(file.match(name) for name in WRITTEN) for file in files)


def _save(tracker, table: dict, samples: dict[str, list[dict]], folder: Path) -> None:
    """Write lm-eval's files and harness.json; OSError if lm-eval wrote less, which it only logs."""
    from lm_eval.utils import handle_non_serializable

    tracker.output_path = str(folder)
    tracker.save_results_aggregated(results=table, samples=samples)
    for name, rows in samples.items():  # copies, as the tracker changes them
        tracker.save_results_samples(task_name=name, samples=[dict(row) for row in rows])
    if len(list(folder.glob("*/*"))) != 1 + len(samples):
        raise OSError(f"lm-eval did not write all its results below {folder}; check the disk")
    text = json.dumps(table, indent=2, default=handle_non_serializable)
    write_text(folder / RESULTS, text + "\n")
