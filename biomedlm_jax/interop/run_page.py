"""run_page(): a run's curves and events as one HTML page."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biomedlm_jax.buckets import as_path
from biomedlm_jax.html_page import Figure, Section, Table, render_page
from biomedlm_jax.interop.inspection import (
    changed_settings,
    fact_rows,
    goodput_line,
    health_rows,
    start_time,
)
from biomedlm_jax.training.goodput import PARTS
from biomedlm_jax.training.metrics import read_events, read_metrics

LOSSES = {"loss": "training", "train_loss": "training, mean", "validation_loss": "validation"}
LOSSES |= {"dev_loss": "dev"}
# A panel of each group of metrics: its title and what its lines are.
PANELS: tuple[tuple[str, dict[str, str]], ...] = (
    ("loss (nats)", LOSSES),
    ("learning rate", {"learning_rate": ""}),
    ("gradient norm", {"grad_norm": ""}),
    ("tokens per second", {"tokens_per_second": ""}),
    ("MFU", {"mfu": ""}),
)
SHOWN = 200  # rows of a table; the first and the last ones of more
OF_STEPS = {"step", "loss", "learning_rate", "grad_norm", "step_seconds"}
OF_STEPS |= {"tokens_per_second", "mfu"}


def run_page(run: str | Path, facts: Mapping[str, Any]) -> str:
    """Return the page of a run; `facts` are those of `inspect_run`.

    Curves have the lines of metrics.jsonl; a value that is not finite leaves a gap. Restarts,
    skipped updates and spikes are marked in each.
    """
    directory = as_path(run)
    lines, events = read_metrics(directory), read_events(directory)
    curves = _curves(lines, events)
    parts = [Figure(curves, _caption(events))] if curves else ["No step is recorded."]
    sections = [Section("Curves", parts)]
    evaluations = [line for line in lines if "loss" not in line]
    if evaluations:
        names = dict.fromkeys(name for line in evaluations for name in line)
        head = [name for name in names if name not in OF_STEPS]
        rows = [[line["step"], *map(line.get, head)] for line in evaluations]
        sections += [Section("Evaluations", [_table(["step", *head], rows)])]
    if facts["starts"]:
        head = ["start (UTC)", "after step", "repeated", "processes", "devices", "changed"]
        rows = [_start(event) for event in facts["starts"]]
        sections += [Section("Starts and restarts", [_table(head, rows)])]
    if facts["skipped"]:
        rows = [
            [one.get("step"), one["event"], one.get("loss"), one.get("grad_norm"), one["reason"]]
            for one in ({"reason": None, **event} for event in facts["skipped"])
        ]
        head = ["step", "event", "loss", "gradient norm", "reason"]
        sections += [Section("Skipped updates and spikes", [_table(head, rows)])]
    use = facts["goodput"]
    if use["goodput"] is not None:
        seconds = {part: use["seconds"][part] for part in PARTS}
        rows = [[k, v, f"{100 * v / use['wall_seconds']:.1f} %"] for k, v in seconds.items()]
        table = Table(["part", "seconds", "of the wall time"], rows)
        sections += [Section("Goodput", [goodput_line(facts), table])]
    if rows := health_rows(facts):
        sections += [
            Section("Files, compared with their hashes", [_table(["part", "state"], rows)])
        ]
    return render_page(f"Run {directory.name}", sections, facts=dict(fact_rows(facts)))


def _start(event: Mapping[str, Any]) -> list[Any]:
    step = event.get("step", 0)
    repeated = max(0, event.get("reached", step) - step)
    changed = changed_settings(event) or None
    where = event.get("processes"), event.get("devices")
    return [start_time(event), step, repeated, *where, changed]


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return a table whose middle rows are left out if there are more than SHOWN."""
    caption, half = "", SHOWN // 2
    if len(rows) > SHOWN:
        caption = f"The first and the last {half} of {len(rows):,} rows"
        rows = [*rows[:half], *rows[-half:]]
    shown = [[_finite(cell) for cell in row] for row in rows]
    return Table(columns, shown, caption)


def _finite(cell: Any) -> Any:
    return str(cell) if isinstance(cell, float) and not math.isfinite(cell) else cell


def _points(lines: Sequence[Mapping], name: str) -> tuple[list[int], list[float]]:
    """Return steps and values of a metric, NaN where a value is not finite or no number."""
    steps, values = [], []
    for line in lines:
        if name in line:
            value = line[name]
            known = isinstance(value, int | float) and math.isfinite(value)
            steps.append(line["step"])
            values.append(float(value) if known else math.nan)
    return steps, values


def _curves(lines: Sequence[Mapping], events: Sequence[Mapping]) -> bytes | None:
    """Return a PNG of a panel for each group of metrics that has a value; None without any."""
    series = []
    for title, names in [*PANELS, ("accuracy and other shares", _shares(lines))]:
        of_panel = [(label, *_points(lines, name)) for name, label in names.items()]
        drawn = [one for one in of_panel if any(map(math.isfinite, one[2]))]
        series += [(title, drawn)] if drawn else []
    if not series:
        return None
    from matplotlib.figure import Figure as Drawing  # slow to import

    drawing = Drawing(figsize=(7, 1.9 * len(series) + 0.6), layout="constrained")
    panels = drawing.subplots(len(series), sharex=True, squeeze=False)[:, 0]
    marks = _marks(events)
    for axes, (title, drawn) in zip(panels, series, strict=True):
        for label, steps, values in drawn:
            few = sum(map(math.isfinite, values)) < 40
            marker = "o" if few else ""
            axes.plot(steps, values, marker=marker, markersize=3, linewidth=1.2, label=label)
        for color, style, steps, _ in marks:
            height = {"transform": axes.get_xaxis_transform(), "linewidth": 0.9, "zorder": 0.5}
            axes.vlines(steps, 0, 1, colors=color, linestyles=style, **height)
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if any(label for label, *_ in drawn):
            axes.legend(fontsize=8, framealpha=0.8, edgecolor="none")
    panels[-1].set_xlabel("step")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    image = io.BytesIO()
    drawing.savefig(image, dpi=140, format="png")
    return image.getvalue()


def _shares(lines: Sequence[Mapping]) -> dict[str, str]:
    """Return the metrics of evaluations that are shares: accuracies, F1, ROUGE."""
    names: dict[str, str] = {}
    known = {name for _, of_panel in PANELS for name in of_panel} | OF_STEPS
    for line in lines:
        names |= {name: name for name in line if name not in known | {"bits_per_byte"}}
    inside = {}
    for name, label in names.items():
        finite = [value for value in _points(lines, name)[1] if math.isfinite(value)]
        if finite and all(0 <= value <= 1 for value in finite):
            inside[name] = label
    return inside


def _marks(events: Sequence[Mapping]) -> list[tuple[str, str, list[int], str]]:
    """Return color, line style, steps and name of what is marked in the curves."""
    starts = sorted({e.get("step", 0) for e in events if e["event"] == "start"} - {0})
    skips = sorted({e["step"] for e in events if e["event"] == "skip" and "step" in e})
    spikes = sorted({e["step"] for e in events if e["event"] == "spike" and "step" in e})
    return [
        ("0.6", "--", starts, "restarts (grey, dashed)"),
        ("#c62828", "-", skips, "skipped updates (red)"),
        ("#ef8a17", ":", spikes, "spikes (orange, dotted)"),
    ]


def _caption(events: Sequence[Mapping]) -> str:
    there = [f"{name}: {len(steps):,}" for *_, steps, name in _marks(events) if steps]
    return f"Vertical lines: {', '.join(there)}" if there else "No restart, skipped update or spike"
