"""The steps that a run has saved: which are finished and whole, which to resume from."""

import itertools
import math
import sys
import threading
from pathlib import Path
from typing import Any

import jax

from biomedlm_jax.agreement import all_gather, from_first_process
from biomedlm_jax.buckets import as_path, is_bucket
from biomedlm_jax.errors import InputError
from biomedlm_jax.integrity import SUMS, damage, has_sums
from biomedlm_jax.outputs import remove_tree

FOLDER = "checkpoints"
COMMITTED = "commit_success.txt"  # Orbax writes it last
TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a step that is being written


def steps(run_directory: str | Path) -> list[int]:
    """Return the steps of a run's finished checkpoints, ascending."""
    return [step for step, path in step_folders(run_directory) if is_finished(path)]


def latest_step(run_directory: str | Path) -> int | None:
    """Return the step of the newest finished checkpoint, or None."""
    return max(steps(run_directory), default=None)


def step_folders(run_directory: str | Path) -> list[tuple[int, Path]]:
    """Return (step, directory) of a run's checkpoints, finished or not, ascending."""
    paths = (as_path(run_directory) / FOLDER).glob("*")
    return sorted((int(path.name), path) for path in paths if path.name.isdecimal())


def is_committed(path: Path) -> bool:
    """Return whether a step was completed, perhaps by an earlier version, without hashes.

    On a disk a step is renamed when it is complete, and its hashes say so, too.
    """
    return (path / COMMITTED).exists() or (has_sums(path) and not is_bucket(path))


def is_finished(path: Path) -> bool:
    """Return whether a step was completed, with the hashes of its files."""
    return has_sums(path) and is_committed(path)


def problems_of(path: Path, **choice: Any) -> list[str]:
    """Return how a step's files differ from what was written; `choice` as in `damage`."""
    if not has_sums(path):
        return [f"{SUMS} is missing"]
    return damage(path, **choice)


def choose_step(run_directory: Path, *, fallback: bool, newest: float = math.inf) -> int | None:
    """Return the step to resume from, the newest whose files are whole; None if there is none.

    Steps after `newest` are left out.

    Every process calls it: the first one lists the storage and decides, all verify a share of the
    files. What was never finished, and with `fallback` what is damaged, is renamed, not deleted:
    "7.unfinished", "7.damaged". Leftovers of a save that was killed are deleted. Raises InputError,
    which names the file and the newest good step, if a newer step is damaged and there is no
    `fallback`, or no step is whole.
    """
    share = jax.process_index(), jax.process_count()

    def list_steps() -> list[list[int]]:
        for left in (run_directory / FOLDER).glob(f"*{TEMPORARY}*"):  # of a process that was killed
            remove_tree(left)
        folders = step_folders(run_directory)
        for _, path in folders:
            if not is_committed(path):
                _set_aside(path, "unfinished")
        left = [(step, path) for step, path in folders if path.exists() and step <= newest]
        return [[step, has_sums(path)] for step, path in left]

    first_problem, good = "", None
    damaged: list[int] = []
    for step, hashed in reversed(from_first_process(list_steps)):
        path = run_directory / FOLDER / str(step)
        if hashed and not has_sums(path):
            index = jax.process_index()
            raise OSError(
                f"process {index} does not find {path / SUMS}, which process 0 finds; the storage "
                "lists it late, or is not shared"
            )
        problems = [one for some in all_gather(problems_of(path, share=share)) for one in some]
        if not problems:
            good = step
            break
        damaged.append(step)
        first_problem = first_problem or f"{path}: {problems[0]}"
    if damaged and (good is None or not fallback):
        whole = "no checkpoint is whole" if good is None else f"the newest whole one is step {good}"
        advice = whole if good is None else f"{whole}; --fallback continues from there"
        raise InputError(
            f"the checkpoint {first_problem}; {advice}{_adopt(first_problem, run_directory)}"
        )
    for step in damaged if jax.process_index() == 0 else ():
        _set_aside(run_directory / FOLDER / str(step), "damaged")
    return good


def delete_step(path: Path) -> None:
    """Delete a finished step; a kill in between leaves what the next start removes."""
    if is_bucket(path):  # where nothing can be renamed
        for mark in (COMMITTED, SUMS):
            (path / mark).unlink(missing_ok=True)
        remove_tree(path)
        return
    gone = path.with_name(f"{path.name}{TEMPORARY}-deleted")
    path.rename(gone)
    threading.Thread(target=remove_tree, args=(gone,)).start()  # training need not wait for it


def advice_on(problem: str, others: list[int], run: str | Path) -> str:
    """Return what to do about a damaged step, if `others` are there."""
    advice = "restore a copy of it"
    if others:
        advice += f", or move it away to use an older one: {others}"
    return advice + _adopt(problem, run)


def _adopt(problem: str, run: str | Path) -> str:
    if problem.endswith(f"{SUMS} is missing"):
        return f"; if an earlier version wrote it, run biomedlm verify {run} --write_sums first"
    return ""


def _set_aside(path: Path, why: str) -> None:
    names = itertools.chain([why], (f"{why}.{number}" for number in itertools.count(2)))
    asides = (path.with_name(f"{path.name}.{name}") for name in names)
    aside = next(aside for aside in asides if not aside.exists())
    print(f"{path} is {why}: renamed to {aside.name}", file=sys.stderr, flush=True)
    path.rename(aside)
