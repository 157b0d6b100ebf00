"""replay_update(): compute a skipped update again, and print where the first bad value arises."""

import functools
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import checkify

from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.files import read_json
from biomedlm_jax.model.language_model import named_leaves
from biomedlm_jax.training.state import TrainState, accumulate_gradients, step_key


class Replayed(Exception):
    """The update was computed again; nothing else is to be done."""


def skipped_step(file: Path) -> int:
    """Return the step of a file in `skipped/`; raises InputError for another file."""
    step = read_json(file).get("step")
    if not isinstance(step, int) or step < 1:
        raise InputError(f"{file} is no record of a skipped update; name a file in RUN/skipped")
    return step


def replay_update(
    file: Path,
    state: TrainState,
    data: Any,
    *frozen: Any,
    loss_fn: Callable,
    seed: int,
    accumulation: int,
) -> None:
    """Compute loss and gradients of a skipped update, print the operation that made the first NaN.

    Of infinite values, the names of the parameters whose gradients have them. `state` is that of
    the newest checkpoint before the step, so the parameters are older than they were unless a
    checkpoint lies just before. Changes nothing; raises Replayed at the end.
    """
    record = read_json(file)
    step = skipped_step(file)
    if record.get("rows") != data.rows_of(step - 1):
        raise InputError(f"{file} has other rows than step {step} of this data; use the run's own")
    batch, key = data.at(step - 1), step_key(seed, step - 1)
    grad_fn = accumulate_gradients(jax.value_and_grad(loss_fn), accumulation)
    # Unlike jax_debug_nans, the checks reach into loops: of layers, and of parts of a batch.
    grad_fn = functools.partial(grad_fn, dropout_key=key)
    compute = jax.jit(checkify.checkify(grad_fn, errors=checkify.nan_checks))
    before = int(state.step)
    lines = [f"step {step}, rows {record['rows'][:8]}, with the parameters of step {before}"]
    if before < step - 1:
        between = counted(step - 1 - before, "update between them is", "updates between them are")
        lines.append(f"the {between} not in any checkpoint")
    checks, (loss, grads) = compute(state.model, batch, *frozen)
    sizes = {name: float(abs(leaf).max()) for name, leaf in named_leaves(grads).items()}
    lines.append(f"loss {float(loss):.6g}, largest gradient {max(sizes.values()):.6g}")
    bad = [name for name, size in sizes.items() if not math.isfinite(size)]
    if cause := checks.get_exception():
        lines.append(f"{' '.join(str(cause).split())} {_place(cause)}")
    if bad:
        lines.append(f"not finite are the gradients of {', '.join(bad[:4])} ({len(bad)} in all)")
    elif not cause and math.isfinite(float(loss)):
        lines.append("all finite")
    if jax.process_index() == 0:
        print("\n".join(lines), file=sys.stderr, flush=True)
    raise Replayed


def _place(cause: Any) -> str:
    """Return the innermost line of the program, not of a library, that made an operation."""
    frames = traceback.extract_tb(cause.traceback_info.as_python_traceback())
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"in {own[-1].name}, {own[-1].filename}:{own[-1].lineno}" if own else ""
