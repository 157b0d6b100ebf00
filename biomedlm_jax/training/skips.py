"""SkippedUpdates: what is recorded of updates that were not applied, and when they end a run."""

import math
from pathlib import Path
from typing import Any

import jax

from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.files import write_json
from biomedlm_jax.training.checkpoint import Checkpointer
from biomedlm_jax.training.config import FaultSettings

FOLDER = "skipped"


class SkippedUpdates:
    """Counts skipped updates; each one's rows are kept in `skipped/<step>.json` for a replay."""

    def __init__(
        self,
        workdir: Path,
        recorder: Any,
        settings: FaultSettings,
        checkpointer: Checkpointer,
        *,
        count: int = 0,
        in_a_row: int = 0,
    ):
        self.count, self._in_a_row = count, in_a_row
        self._workdir, self._recorder = workdir, recorder
        self._settings, self._checkpointer = settings, checkpointer

    def counts(self) -> dict[str, int]:
        """Return the counts, for the checkpoint."""
        return {"count": self.count, "in_a_row": self._in_a_row}

    def check(
        self, step: int, figures: dict[str, float], applied: bool, limit: float, data: Any
    ) -> None:
        """Record a step whose update was skipped, or whose loss is above `limit`.

        Raises InputError after too many skipped updates in a row, and for a spike if the settings
        say so.
        """
        finite = all(map(math.isfinite, figures.values()))
        if applied:
            self._in_a_row = 0
            if figures["loss"] <= limit:
                return
        what = f"loss {figures['loss']:.6g} and gradient norm {figures['grad_norm']:.6g}"
        reason = f"above the limit of {limit:.6g}" if finite else "not finite"
        # JSON has no NaN.
        facts: dict[str, Any] = {"reason": reason}
        facts |= {name: str(value) for name, value in figures.items()}
        file = self._workdir / FOLDER / f"{step}.json"
        if not applied:
            self.count, self._in_a_row = self.count + 1, self._in_a_row + 1
            facts |= {"step": step, "rows": data.rows_of(step - 1)}
            if jax.process_index() == 0:
                try:
                    write_json(file, facts)
                except OSError as error:  # it is a log
                    self._recorder.print_line(f"cannot write {file} ({error})")
        self._recorder.event("spike" if applied else "skip", **{**facts, "step": step, "rows": []})
        done = "" if applied else f"; the update is skipped, its rows are in {FOLDER}/{step}.json"
        self._recorder.print_line(f"step {step} has {what}, {reason}{done}")
        last = self._checkpointer.last_step
        saved = "no step is saved" if last is None else f"the last good checkpoint is step {last}"
        fix = "continue with a lower optimizer.learning_rate in a new run, or other data"
        if self._in_a_row >= self._settings.skipped_in_a_row:
            updates = counted(self._in_a_row, "update was", "updates in a row were")
            raise InputError(
                f"{updates} skipped, until step {step} with {what}; "
                f"{saved}; --replay={file} looks for the cause; {fix}"
            )
        if applied and self._settings.spike == "stop":
            raise InputError(f"step {step} has {what}, {reason}; {saved}; {fix}")
