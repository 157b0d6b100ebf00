"""Plots of a comparison: speeds with quartiles, parts of a step, utilisation, and peak memory."""

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from biomedlm_jax.benchmarks.rounds import OURS

COLOURS = ("#1668a8", "#c8701e", "#4b8b3b", "#8a5aa8", "#8a8a8a", "#b03a3a")
LIGHT = "#b8c4ce"
# Inches of a bar with its gap, and of a figure: narrow, so that a phone shows its text readably.
ROW, WIDTH = 0.3, 6.4


def speed_plot(tables: Mapping[str, Mapping[str, Mapping]]) -> bytes:
    """Return a PNG with the units per second of each side in each case, quartiles as lines."""
    heights = [len(sides) * ROW + 0.75 for sides in tables.values()]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    axes = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (case, sides) in zip(axes, tables.items(), strict=True):
        column = next(name for name in next(iter(sides.values())) if name.endswith("_per_second"))
        for place, (name, side) in enumerate(sides.items()):
            speed, median = side[column], side["median_seconds"]
            low, high = (speed * median / end for end in reversed(side["quartile_seconds"]))
            errors = [[max(0.0, speed - low)], [max(0.0, high - speed)]]
            colour = COLOURS[0] if name.startswith(OURS) else COLOURS[1]
            ax.barh(place, speed, xerr=errors, color=colour, height=0.7, capsize=3)
            text = f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
            ax.annotate(
                text, (max(speed, high), place), xytext=(6, 0), textcoords="offset points",
                va="center", fontsize=9,
            )  # fmt: skip
        _label(ax, list(sides))
        ax.margins(x=0.14)
        unit = column.removesuffix("_per_second").replace("mb", "MB")
        ax.set_title(f"{case}: {unit} per second", fontsize=10)
    return _png(figure)


def step_plot(rows: Mapping[str, Mapping[str, float]]) -> bytes:
    """Return a PNG with the forward pass, backward pass and update of each side's step."""
    parts = ("forward", "backward", "update")
    return _stacked(rows, [f"{part}_seconds" for part in parts], parts, "seconds of a step")


def memory_plot(tables: Mapping[str, Mapping[str, Mapping[str, float]]]) -> bytes:
    """Return a PNG with the peak memory of each side in each benchmark, imports apart."""
    rows = {}
    for kind, sides in tables.items():
        for name, side in sides.items():
            above = side["peak_gb"] - side["after_imports_gb"]
            rows[f"{kind}: {name}"] = {"after_imports_gb": side["after_imports_gb"], "above": above}
    labels = ("after the imports", "above that")
    return _stacked(rows, ["after_imports_gb", "above"], labels, "GB, peak of the process")


def utilisation_plot(rows: Mapping[str, Mapping[str, float]], peak: str) -> bytes:
    """Return a PNG with each side's share of the peak FLOP/s in each convention."""
    figure = Figure(figsize=(WIDTH, len(rows) * 3 * 0.24 + 1.2), layout="constrained")
    ax = figure.subplots()
    columns = [name for name in next(iter(rows.values())) if name.startswith("share_")]
    for number, column in enumerate(columns):
        places = [place + (number - 1) * 0.26 for place in range(len(rows))]
        values = [100 * row[column] for row in rows.values()]
        label = column.removeprefix("share_")
        bars = ax.barh(places, values, height=0.24, color=COLOURS[number], label=label)
        ax.bar_label(bars, fmt="%.1f %%", fontsize=8, padding=3)
    _label(ax, list(rows))
    ax.margins(x=0.12)
    ax.set_xlabel(f"% of the {peak}", fontsize=9)
    figure.legend(loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return _png(figure)


def _stacked(rows: Mapping[str, Mapping], columns, labels, unit: str) -> bytes:
    figure = Figure(figsize=(WIDTH, len(rows) * ROW + 1.2), layout="constrained")
    ax = figure.subplots()
    left, bars = [0.0] * len(rows), None
    colours = (LIGHT, COLOURS[0]) if len(columns) == 2 else COLOURS
    for column, label, colour in zip(columns, labels, colours, strict=False):
        values = [max(0.0, row[column]) for row in rows.values()]
        bars = ax.barh(range(len(rows)), values, left=left, color=colour, height=0.7, label=label)
        left = [a + b for a, b in zip(left, values, strict=True)]
    assert bars is not None
    ax.bar_label(bars, labels=[f"{value:.3g}" for value in left], fontsize=9, padding=4)
    _label(ax, list(rows))
    ax.margins(x=0.1)
    ax.set_xlabel(unit, fontsize=9)
    figure.legend(loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return _png(figure)


def _label(ax: Any, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.invert_yaxis()
    ax.tick_params(axis="x", labelsize=8)
    ax.set_xlim(left=0)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()
