"""A plan as a table for people, as JSON for machines and as a plot."""

import dataclasses
import json
from pathlib import Path

from biomedlm_jax.chips import GIB
from biomedlm_jax.planning.planner import KERNEL_EFFICIENCY, Plan, Row, row_name

COLUMNS = (
    "mesh",
    "fits",
    "GiB a device (parameters + optimizer + temporaries)",
    "compile s",
    "matmul TFLOP a device",
    "op s",
    "recomputed",
    "kernel s",
    "exposed GiB",
    "overlapped GiB",
    "step s",
    "MFU",
    "tokens/s",
    "days",
    "chip-hours",
)


def markdown(plan: Plan) -> str:
    """The ranked table and what its columns rest on."""
    lines = [
        f"**{plan.topology}**: {plan.devices} x {plan.device_kind}, {plan.step} step of "
        f"{plan.tokens_per_step:,} tokens, {plan.model_flops / 1e12:,.3g} TFLOP (model), attention "
        f"by {plan.kernel}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    lines += ["| " + " | ".join(_cells(plan, row)) + " |" for row in plan.rows]
    lines += [f"\n{_mesh(row)}: {row.trouble}" for row in plan.rows if row.trouble]
    unread = [row for row in plan.rows if row.figures and row.figures.why_not]
    lines += [
        f"\n{_mesh(row)}: memory and FLOPs only, the program cannot be read: {row.figures.why_not}"
        for row in unread
    ]
    return "\n".join([*lines, "", _assumptions(plan), ""])


def _cells(plan: Plan, row: Row) -> list[str]:
    figures = row.figures
    if figures is None:
        return [_mesh(row), "no", *["-"] * (len(COLUMNS) - 2)]
    state = row.state_bytes
    temporaries = figures.memory.get("temporaries", 0)
    parts = " + ".join(f"{size / GIB:.2f}" for size in (*state.values(), temporaries))
    cells = [
        _mesh(row),
        "yes" if row.fits else "no",
        f"{figures.memory.get('total', 0) / GIB:.2f} ({parts})",
        f"{figures.compile_seconds:.0f}",
        f"{(figures.flops + figures.kernel_flops) / 1e12:.3g}",
    ]
    if row.step_seconds is None:
        return [*cells, *["-"] * (len(COLUMNS) - len(cells))]
    overlapped = sum(c.total for c in figures.collectives if not c.exposed)
    seconds = row.step_seconds * plan.steps
    trains = plan.step == "train"
    return [
        *cells,
        f"{row.op_seconds:.3f}",
        f"{figures.recomputed_cycles / figures.cycles:.1%}",
        f"{row.kernel_seconds:.3f}",
        f"{figures.exposed() / GIB:.2f}",
        f"{overlapped / GIB:.2f}",
        f"{row.step_seconds:.3f}",
        f"{row.mfu:.1%}",
        f"{row.tokens_per_second:,.0f}",
        f"{seconds / 86400:.1f}" if trains else "-",
        f"{seconds / 3600 * plan.chips:,.0f}" if trains else "-",
    ]


def _mesh(row: Row) -> str:
    return row_name(row.mesh, row.change)


def _assumptions(plan: Plan) -> str:
    if plan.chip is None or plan.chip.clock is None:
        return "Memory and FLOPs only: the chip or its clock is not in the table of chips."
    return (
        f"op s: the compiler's `estimated_cycles` of all scheduled operations, loop bodies times "
        f"their turns, at {plan.chip.clock / 1e9:.2f} GHz; kernel s: their FLOPs, every block "
        f"counted, at {KERNEL_EFFICIENCY:.0%} of the peak (assumed); exposed: exchanges that "
        "compute waits for. step s adds both and the exposed exchanges as rings along one "
        f"dimension of the links ({plan.chip.link_bandwidth / 1e9:.0f} GB/s a chip both ways, "
        f"{plan.chip.link_dimensions} dimensions), nothing overlapping: an upper bound under these "
        "assumptions, and no measurement. The latency of exchanges is not counted, which many "
        "small ones would feel, nor the input pipeline, evaluation and checkpoints."
    )


def as_dict(plan: Plan) -> dict:
    """Everything in the plan, for JSON."""
    made = dataclasses.asdict(plan)
    made["kernel_efficiency"] = KERNEL_EFFICIENCY
    for row, cells in zip(plan.rows, made["rows"], strict=True):
        cells["step_seconds"] = row.step_seconds
        if row.figures and row.figures.collectives is not None:
            cells["figures"]["exposed_bytes"] = row.figures.exposed()
    return made


def write_report(plan: Plan, folder: str | Path) -> list[Path]:
    """Write `plan.json`, `plan.md` and, with matplotlib (extra `tpu`), `plan.png` into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "plan.json", folder / "plan.md"]
    written[0].write_text(json.dumps(as_dict(plan), indent=2) + "\n", encoding="utf-8")
    written[1].write_text(markdown(plan), encoding="utf-8")
    if _plot(plan, folder / "plan.png"):
        written.append(folder / "plan.png")
    return written


def _plot(plan: Plan, path: Path) -> bool:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    rows = [row for row in plan.rows if row.figures][::-1]
    if not rows:
        return False
    figure = Figure(figsize=(10, 1.6 + 0.45 * len(rows)), layout="constrained")
    names = [_mesh(row) + ("" if row.fits else " (does not fit)") for row in rows]
    timed = all(row.step_seconds for row in rows)
    left, right = figure.subplots(1, 2, sharey=True) if timed else (None, figure.subplots())
    if timed:
        parts = {"operations": "op_seconds", "kernels": "kernel_seconds"}
        parts["exposed exchanges"] = "exchange_seconds"
        _bars(left, names, {k: [getattr(r, v) for r in rows] for k, v in parts.items()})
        left.set_xlabel("seconds a step, estimated")
    memory = {
        "parameters": [r.state_bytes["parameters"] / GIB for r in rows],
        "optimizer": [r.state_bytes.get("optimizer", 0) / GIB for r in rows],
        "temporaries": [r.figures.memory.get("temporaries", 0) / GIB for r in rows],
    }
    _bars(right, names, memory)
    right.set_xlabel("GiB a device")
    if plan.chip:
        room = plan.chip.device_memory / GIB
        right.axvline(room, color="black", linewidth=0.8, linestyle="--")
    figure.suptitle(f"{plan.topology}, {plan.step} step of {plan.tokens_per_step:,} tokens")
    figure.savefig(path, dpi=150)
    return True


def _bars(axes, names: list[str], parts: dict[str, list[float]]) -> None:
    begin = [0.0] * len(names)
    for label, values in parts.items():
        axes.barh(names, values, left=begin, label=label, height=0.7)
        begin = [a + b for a, b in zip(begin, values, strict=True)]
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.0), ncols=len(parts), fontsize=8)
    axes.set_ylim(-0.6, len(names) + 0.2)
    axes.spines[["top", "right"]].set_visible(False)
