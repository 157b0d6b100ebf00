"""Measures of a run (FLOPs, MFU, bits per byte) and the writers that keep them."""

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from biomedlm_jax.chips import chip
from biomedlm_jax.model.config import GPTConfig


def flops_per_token(config: GPTConfig) -> int:
    """FLOPs that one training token costs: 6N + 12 * layers * width * length.

    N leaves the position embedding out, for it takes part in no product; recomputation is not
    counted. The convention of the PaLM paper's appendix B (arXiv 2204.02311).
    """
    matmul_parameters = config.parameter_count - config.context_length * config.width
    attention = 12 * config.layers * config.width * config.context_length
    return 6 * matmul_parameters + attention


def peak_flops(device_kind: str) -> float | None:
    """Peak bf16 FLOP/s of a jax device, or None where no peak is known (a CPU)."""
    found = chip(device_kind)
    return found.device_flops if found else None


def validation_metrics(loss: float, *, tokens: int, text_bytes: int) -> dict[str, float]:
    """Loss in nats per token, perplexity, and bits per byte of the validation text.

    Bits per byte divide by the bytes that a token stands for on average in the whole validation
    split, its separators counted as tokens: a figure that tokenizers share.
    """
    return {
        "validation_loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "bits_per_byte": loss / math.log(2) * tokens / text_bytes,
    }


def step_figures(
    step: int,
    metrics: dict,
    schedule: Callable,
    *,
    advice: str = "Lower optimizer.learning_rate and start a new run",
) -> dict[str, float]:
    """The figures of the update that made `step`; fetching them waits for it.

    Raises ValueError with the `advice` if they are not finite.
    """
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise ValueError(
            f"step {step} has loss {loss} and gradient norm {norm}; the last checkpoint is intact. "
            f"{advice}"
        )
    # `step` updates were done, the last of them with the rate of index step - 1.
    return {"loss": loss, "learning_rate": float(schedule(step - 1)), "grad_norm": norm}


class Recorder:
    """Writes metrics to the console, `metrics.jsonl` and TensorBoard. Close it.

    A resumed run continues the file: lines after `first_step` came from steps that no checkpoint
    kept, and are dropped, since those steps run again.
    """

    def __init__(self, run_directory: Path, *, first_step: int, steps: int, tensorboard: bool):
        path = run_directory / "metrics.jsonl"
        kept = []
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line, first_step) <= first_step]
        new = path.with_name(".metrics.jsonl.new")
        new.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(new, path)
        self._file = path.open("a", encoding="utf-8")
        self._board = None
        if tensorboard:
            # purge_step makes TensorBoard forget the same steps.
            purge = first_step + 1 if first_step else None
            self._board = SummaryWriter(str(run_directory), purge_step=purge)
        self._progress = None
        if sys.stderr.isatty():
            self._progress = Progress(
                TextColumn("[bold]step"),
                MofNCompleteColumn(),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=_stderr_console(),
            )
            self._task = self._progress.add_task("", total=steps, completed=first_step)
            self._progress.start()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record one line of figures of `step`."""
        print(json.dumps({"step": step, **values}), file=self._file, flush=True)
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        text = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        if self._progress and "loss" in values:
            brief = f"loss {values['loss']:.3f}  {values.get('tokens_per_second', 0):,.0f} tokens/s"
            self._progress.update(self._task, completed=step, description=brief)
        elif self._progress:
            self.say(f"step {step}  {text}")
        else:
            self.say(f"step {step}  {text}")

    def say(self, text: str) -> None:
        """Print a line for the person at the terminal."""
        if self._progress:
            self._progress.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Flush and close the files, and leave the terminal in order."""
        if self._progress:
            self._progress.stop()
        if self._board:
            self._board.close()
        self._file.close()


class Silent:
    """The recorder of every process but the first."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Drop the figures."""

    def say(self, text: str) -> None:
        """Drop the line."""

    def close(self) -> None:
        """Nothing to close."""


def _step_of(line: str, otherwise: int) -> int:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return otherwise + 1  # a line cut off by a crash


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _stderr_console():
    from rich.console import Console

    return Console(stderr=True)
