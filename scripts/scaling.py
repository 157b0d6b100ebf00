"""Estimate how pre-training scales over TPU chips, without TPUs: 4 to 1,024 chips of v5e.

    python scripts/scaling.py --out=scaling

Compiles the training step of both families with `biomedlm_jax.plan` (needs the extra `tpu`): weak
scaling (rows per chip fixed), strong scaling (the published global batch), and ten times the chips
and the parameters. Writes scaling.json after each compile, and scaling.md and scaling.png from all
that it has. A second call continues: it compiles only what scaling.json lacks. All times are
estimates of the compiler under the planner's assumptions, and the step is an upper bound.
"""

import argparse
import dataclasses
import datetime
import functools
import importlib.metadata
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs; before jax is imported

import matplotlib.figure

from biomedlm_jax import plan
from biomedlm_jax.chips import GIB
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json, write_json, write_text

ROOT = Path(__file__).parents[1]
RUN_TOKENS = 300e9  # of the published run, for both families
TOPOLOGIES = {4: "v5e:2x2", 16: "v5e:4x4", 64: "v5e:8x8", 256: "v5e:16x16"}
TOPOLOGIES |= {256 * slices: f"{slices}xv5e:16x16" for slices in (2, 4, 10)}


@dataclasses.dataclass(frozen=True)
class Family:
    """A config, its variant, and the values that this script changes."""

    name: str
    path: str
    variant: str
    change: dict[str, Any]


GPT2 = Family("GPT-2 2.6B", "configs/pretrain.py", "biomedlm_2_7b_fast", {})
# Ten times the matrices: 12 x 32 x 8,192^2 parameters instead of 12 x 32 x 2,560^2.
GPT2_10X = Family("GPT-2 26B", GPT2.path, GPT2.variant, {"model.width": 8_192, "model.heads": 64})
# Rows of 2,048 tokens, as Meditron's, and gradient sums in bfloat16, as GPT-2's here.
LLAMA = Family(
    "Llama 2 7B",
    "configs/meditron_7b.py",
    "",
    {"model.context_length": 2_048, "model.reduce_dtype": "compute"},
)


@dataclasses.dataclass(frozen=True)
class Point:
    """One step to compile."""

    family: Family
    scaling: str  # weak, strong, both, or what is ten times as large
    chips: int
    rows: int  # of a step, on all chips
    at_once: int  # rows of a chip between two accumulations of gradients
    fsdp: int = 32

    @property
    def key(self) -> str:
        """Identify what is compiled."""
        return f"{self.family.name}, {TOPOLOGIES[self.chips]}, fsdp {self.shards}, " + (
            f"{self.rows} rows, {self.at_once} at once"
        )

    @property
    def shards(self) -> int:
        """Size of the fsdp axis; the data axis has the other chips."""
        return min(self.fsdp, self.chips)


def weak(family: Family, chips: int, *, rows: int) -> Point:
    """Return the point with `rows` rows for each chip."""
    return Point(family, "weak", chips, rows * chips, rows)


def strong(family: Family, chips: int, *, rows: int, at_once: int) -> Point:
    """Return the point with `rows` rows in all, at most `at_once` of a chip at a time."""
    return Point(family, "strong", chips, rows, max(1, min(at_once, rows // chips)))


# The order is that of use: an interrupted run has the ends of the range.
POINTS = [
    # These compile nothing: the rows do not divide over the chips.
    strong(GPT2, 2_560, rows=1_024, at_once=4),
    strong(LLAMA, 256, rows=1_600, at_once=1),
    strong(LLAMA, 1_024, rows=1_600, at_once=1),
    dataclasses.replace(weak(GPT2, 256, rows=4), scaling="both"),  # 1,024 rows, as published
    strong(GPT2, 1_024, rows=1_024, at_once=4),
    weak(LLAMA, 256, rows=1),
    weak(LLAMA, 1_024, rows=1),
    weak(GPT2, 4, rows=4),
    strong(GPT2, 64, rows=1_024, at_once=4),
    strong(LLAMA, 64, rows=1_600, at_once=1),
    weak(LLAMA, 4, rows=1),
    weak(GPT2, 1_024, rows=4),
    Point(GPT2_10X, "10x parameters", 256, 1_024, 1, fsdp=256),
    strong(GPT2, 512, rows=1_024, at_once=4),
    strong(GPT2, 4, rows=1_024, at_once=1),
    weak(LLAMA, 16, rows=1),
    weak(LLAMA, 64, rows=1),
]


def estimate(point: Point, planner: Callable = plan) -> dict[str, Any]:
    """Return a point's estimates for JSON, or the resource that is too small and why."""
    result = {
        "key": point.key,
        "family": point.family.name,
        "scaling": point.scaling,
        "topology": TOPOLOGIES[point.chips],
        "chips": point.chips,
        "mesh": {"data": point.chips // point.shards, "fsdp": point.shards, "tensor": 1},
        "rows": point.rows,
        "rows_at_once": point.at_once,
    }
    if point.rows % (point.chips * point.at_once):
        problem = f"{point.rows:,} rows do not divide over {point.chips:,} chips"
        return {**result, "breaks": "batch", "problem": problem}
    get_config = runpy.run_path(str(ROOT / point.family.path))["get_config"]
    config = get_config(point.family.variant) if point.family.variant else get_config()
    with config.unlocked(), config.ignore_type():
        config.update_from_flattened_dict(point.family.change)
        config.mesh.update(result["mesh"])
        config.training.batch_size = point.rows
        config.training.accumulation = point.rows // (point.chips * point.at_once)
    show = functools.partial(print, file=sys.stderr, flush=True)
    made = planner(config, result["topology"], suggest=False, progress=show)
    row = made.rows[0]
    result["state_gib"] = sum(row.state_bytes.values()) / GIB
    if row.problem:
        return {**result, "breaks": "HBM", "problem": row.problem}
    seconds, tokens = row.step_seconds, made.tokens_per_step
    if not seconds:
        raise InputError(f"{point.key}: expected times, got none: {row.figures.unread_reason}")
    waits = seconds - row.seconds["operations"] - row.seconds["kernels"]
    return {
        **result,
        "hbm_gib": row.figures.memory["total"] / GIB,
        "seconds": row.seconds,
        "step_seconds": seconds,
        "exposed_gib": row.figures.collective_bytes(exposed=True) / GIB,
        "sent_between_slices_gib": sum(c.wire for c in row.figures.between_slices) / GIB,
        "collective_share": waits / seconds,
        "tokens_per_second_per_chip": tokens / seconds / point.chips,
        "mfu": made.model_flops / (made.devices * made.chip.device_flops) / seconds,
        "run_days": RUN_TOKENS / tokens * seconds / 86_400,
        "run_chip_hours": RUN_TOKENS / tokens * seconds * point.chips / 3_600,
        "compile_seconds": row.figures.compile_seconds,
    }


def versions() -> dict[str, str]:
    """Return the versions that the estimates depend on."""
    return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}


def collect(path: Path, points: list[Point], *, most: int, planner: Callable = plan) -> list[dict]:
    """Return the estimates of all points in `path`, after compiling at most `most` more.

    Each is written before the next begins. Raises InputError if the file is of other versions.
    """
    figures: dict[str, Any] = {"versions": versions(), "points": []}
    if path.exists():
        figures = read_json(path)
        if figures["versions"] != versions():
            both = f"expected estimates of {versions()}, got {figures['versions']} in {path}"
            raise InputError(f"{both}; fix: another --out")
    known = {one["key"] for one in figures["points"]}
    for point in [point for point in points if point.key not in known][:most]:
        print(point.key, file=sys.stderr, flush=True)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        figures["points"].append({**estimate(point, planner), "date": today})
        write_json(path, figures)
    order = [point.key for point in points]
    return [one for one in figures["points"] if one["key"] in order]


COLUMNS = (
    "| chips | topology | mesh | rows (at once on a chip) | GiB per chip | operations + kernels s "
    "| collectives s | share | step s | tokens/s per chip | MFU | days | chip-hours |"
)


def markdown(figures: list[dict]) -> str:
    """Return a table for each family and kind of scaling, and what does not fit below it."""
    lines: list[str] = []
    for (family, scaling), points in groups(figures).items():
        lines += [f"**{family}, {scaling}**", "", COLUMNS, "|---" * (COLUMNS.count("|") - 1) + "|"]
        lines += [_line(one) for one in points]
        lines += [
            f"\n{one['chips']:,} chips: {one['breaks']} breaks: {one['problem']}"
            for one in points
            if "breaks" in one
        ]
        lines.append("")
    return "\n".join(lines)


def groups(figures: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Return the points by family and kind of scaling, fewest chips first."""
    result: dict[tuple[str, str], list[dict]] = {}
    for one in sorted(figures, key=lambda one: one["chips"]):
        kinds = ("weak", "strong") if one["scaling"] == "both" else (one["scaling"],)
        for kind in kinds:
            kind += "" if kind.startswith("10x") else " scaling"
            result.setdefault((one["family"], kind), []).append(one)
    return result


def _line(one: dict) -> str:
    mesh = " x ".join(f"{axis} {size}" for axis, size in one["mesh"].items() if size > 1)
    cells = [f"{one['chips']:,}", one["topology"], mesh, f"{one['rows']:,} ({one['rows_at_once']})"]
    if "breaks" in one:
        cells += [one["breaks"] + " breaks", *["-"] * 8]
        return f"| {' | '.join(cells)} |"
    work = one["seconds"]["operations"] + one["seconds"]["kernels"]
    cells += [
        f"{one['hbm_gib']:.2f}",
        f"{work:.3f}",
        f"{one['step_seconds'] - work:.3f}",
        f"{one['collective_share']:.1%}",
        f"{one['step_seconds']:.3f}",
        f"{one['tokens_per_second_per_chip']:,.0f}",
        f"{one['mfu']:.1%}",
        f"{one['run_days']:.1f}",
        f"{one['run_chip_hours']:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def plot(figures: list[dict]) -> matplotlib.figure.Figure:
    """Return a figure over chips: tokens/s per chip, share of collectives, HBM, and chip-hours."""
    figure = matplotlib.figure.Figure(figsize=(11, 7.5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True).flat
    names = {
        "tokens_per_second_per_chip": "tokens/s per chip, estimated",
        "collective_share": "share of the step in exposed collectives",
        "hbm_gib": "HBM per chip, GiB",
        "run_chip_hours": "chip-hours of 300 B tokens",
    }
    for axes, (name, label) in zip(panels, names.items(), strict=True):
        for (family, kind), points in groups(figures).items():
            ready = [one for one in points if name in one]
            style = {"marker": "o" if "weak" in kind else "s"}
            style |= {"linestyle": "--" if "strong" in kind else "-"}
            style |= {
                "color": "C0" if family == GPT2.name else "C1" if family == LLAMA.name else "C2"
            }
            if ready:
                values = [one[name] for one in ready]
                axes.plot(
                    [one["chips"] for one in ready], values, label=f"{family}, {kind}", **style
                )
        axes.set(ylabel=label, ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    for axes in figure.axes[2:]:
        axes.set(xlabel="chips (v5e)")
        axes.set_xscale("log", base=2)
        ticks = sorted({one["chips"] for one in figures if "hbm_gib" in one})
        axes.set_xticks(ticks, [f"{chips:,}" for chips in ticks])
    figure.axes[0].legend(fontsize=8)
    return figure


def main() -> None:
    """Compile what is missing and write the reports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=Path, help="directory of the results")
    parser.add_argument(
        "--most", type=int, default=len(POINTS), help="points to compile in this call; 0: none"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        figures = collect(options.out / "scaling.json", POINTS, most=options.most)
    except InputError as error:
        parser.error(str(error))
    if not figures:
        parser.error(f"expected estimates in {options.out}, got none; fix: --most above 0")
    write_text(options.out / "scaling.md", markdown(figures))
    plot(figures).savefig(options.out / "scaling.png", dpi=120)
    print(markdown(figures))


if __name__ == "__main__":
    main()
