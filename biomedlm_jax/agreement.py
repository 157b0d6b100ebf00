"""Agreement of the processes of one run: the first decides, all compare what they were given."""

import functools
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import flatten

T = TypeVar("T")
PACKAGES = ("biomedlm-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
PACKAGES += ("numpy", "tokenizers")
SHOWN = 60  # characters of a value in a message


def all_gather(value: Any) -> list[Any]:
    """Return the JSON value of every process, by process index; every process calls it."""
    if jax.process_count() == 1:
        return [value]
    sent = np.frombuffer(json.dumps(value).encode("ascii"), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(sent)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(sent)] = sent
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def from_first_process(read: Callable[[], T]) -> T:
    """Return what `read()` returns, a JSON value, in process 0, which alone calls it.

    Storage that several machines share may be listed differently by each of them. An error of
    process 0 is raised in all: InputError as such, others as OSError with the same text.
    """
    if jax.process_count() == 1:
        return read()
    value, error = None, None
    if jax.process_index() == 0:
        try:
            value = read()
        except Exception as raised:
            error = raised
    text = None if error is None else [isinstance(error, InputError), str(error)]
    value, text = all_gather([value, text])[0]
    if error is not None:
        raise error
    if text is not None:
        raise (InputError if text[0] else OSError)(text[1])
    return value


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Raise InputError, in every process, unless all were given the same facts.

    `facts` is a JSON object; the error names the first process that differs from process 0 and
    how, "data.seed=99 (process 0: 0)".
    """
    first, *others = (flatten(one) for one in all_gather(facts))
    for index, other in enumerate(others, start=1):
        names = [n for n in sorted({*first, *other}) if first.get(n) != other.get(n)]
        if names:
            differing = ", ".join(
                f"{n}={_shown(other.get(n))} (process 0: {_shown(first.get(n))})" for n in names[:4]
            )
            raise InputError(
                f"process {index} of {jax.process_count()} differs from process 0: {differing}; "
                "start all processes with the same command, data and packages"
            )


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run's numbers."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
