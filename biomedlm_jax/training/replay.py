"""replay_update(): compute a skipped update again, and print where the first bad value arises."""

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json
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
    """Compute loss and gradients of a skipped update with `jax_debug_nans`, and print the result.

    `state` is that of the newest checkpoint before the step, so the parameters are older than they
    were unless a checkpoint lies just before. Changes nothing; raises Replayed at the end.
    """
    record = read_json(file)
    step = skipped_step(file)
    if record.get("rows") != data.rows_of(step - 1):
        raise InputError(f"{file} has other rows than step {step} of this data; use the run's own")
    batch, key = data.at(step - 1), step_key(seed, step - 1)
    grad_fn = accumulate_gradients(jax.value_and_grad(loss_fn), accumulation)
    compute = jax.jit(functools.partial(grad_fn, dropout_key=key))
    before = int(state.step)
    lines = [f"step {step}, rows {record['rows'][:8]}, with the parameters of step {before}"]
    if before < step - 1:
        lines.append(f"the {step - 1 - before} updates between them are not in any checkpoint")
    try:
        with jax.debug_nans(True), jax.debug_infs(True):
            loss, grads = jax.block_until_ready(compute(state.model, batch, *frozen))
        sizes = [float(abs(leaf).max()) for leaf in jax.tree.leaves(grads)]
        finite = math.isfinite(float(loss)) and all(map(math.isfinite, sizes))
        lines.append(
            f"loss {float(loss):.6g}, largest gradient {max(sizes):.6g}: "
            f"{'all finite' if finite else 'not finite'}"
        )
    except FloatingPointError as error:
        lines.append(f"not finite: {' '.join(str(error).split())[:500]}")
    if jax.process_index() == 0:
        print("\n".join(lines), file=sys.stderr, flush=True)
    raise Replayed
