"""Write a plan as a Markdown table, as JSON and as a plot."""

import dataclasses
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from biomedlm_jax.chips import GIB
from biomedlm_jax.files import write_json, write_text
from biomedlm_jax.planning.planner import DCN_BANDWIDTH, KERNEL_EFFICIENCY, Plan, Row

HEADER = (
    "| mesh | fits | GiB per device (state + temporaries) | compile s | matmul TFLOP per device "
    "| op s | recomputed | kernel s | exposed GiB | overlapped GiB | step s | MFU | tokens/s "
    "| days | chip-hours |"
)


def markdown(plan: Plan) -> str:
    """Return the ranked table, the problems, and the assumptions behind the columns."""
    columns = HEADER.count("|") - 1
    lines = [
        f"**{plan.topology}**: {plan.devices} x {plan.device_kind}"
        + (f" in {plan.slices} slices" if plan.slices > 1 else "")
        + f", {plan.step} step of "
        f"{plan.tokens_per_step:,} tokens, {plan.model_flops / 1e12:,.3g} TFLOP (model), "
        f"attention kernel: {plan.kernel}"
        + (f", LoRA trains {plan.trained:,} parameters" if plan.trained else ""),
        "",
        HEADER,
        "|" + "---|" * columns,
    ]
    for row in plan.rows:
        cells = [row.name, "yes" if row.fits else "no", *_cells(plan, row)]
        lines.append(f"| {' | '.join(cells + ['-'] * (columns - len(cells)))} |")
    for row in plan.rows:
        if row.problem:
            lines.append(f"\n{row.name}: {row.problem}")
        if row.figures and row.figures.unread_reason:
            reason = row.figures.unread_reason
            lines.append(f"\n{row.name}: memory and FLOPs only, program not read: {reason}")
        elif row.figures and plan.slices > 1:
            lines.append(f"\n{row.name}: {_between_slices(row)}")
    return "\n".join([*lines, "", _assumptions(plan), ""])


def _cells(plan: Plan, row: Row) -> list[str]:
    """Return the known cells of a row after `fits`."""
    figures, seconds, speed = row.figures, row.seconds, _speed(plan, row)
    if figures is None:
        return []
    memory = " + ".join(f"{size:.2f}" for size in _memory(row).values())
    cells = [
        f"{figures.memory['total'] / GIB:.2f} ({memory})",
        f"{figures.compile_seconds:.0f}",
        f"{(figures.flops + figures.kernel_flops) / 1e12:.3g}",
    ]
    if not speed:
        return cells
    cells += [
        f"{seconds['operations']:.3f}",
        f"{(figures.recomputed_cycles or 0) / (figures.cycles or 1):.1%}",
        f"{seconds['kernels']:.3f}",
        f"{figures.collective_bytes(exposed=True) / GIB:.2f}",
        f"{figures.collective_bytes(exposed=False) / GIB:.2f}",
        f"{speed['step_seconds']:.3f}",
        f"{speed['mfu']:.1%}",
        f"{speed['tokens_per_second']:,.0f}",
    ]
    if plan.step == "train" and plan.chip:
        hours = speed["step_seconds"] * plan.steps / 3600
        cells += [f"{hours / 24:.1f}", f"{hours * plan.devices / plan.chip.devices:,.0f}"]
    return cells


def _between_slices(row: Row) -> str:
    """The collectives of a row that leave a slice, by kind and dtype."""
    sent: dict[str, list[float]] = {}
    for one in row.figures.between_slices if row.figures else ():
        size, number = sent.setdefault(f"{one.kind} {one.dtype}", [0, 0])
        sent[f"{one.kind} {one.dtype}"] = [size + one.total, number + one.times]
    kinds = [f"{name} of {size / GIB:.4f} GiB in {n:,} parts" for name, (size, n) in sent.items()]
    text = f"between slices, per device: {', '.join(kinds) or 'no collectives'}"
    seconds = row.seconds.get("between slices")
    return text if seconds is None else f"{text}, {seconds:.3f} s"


def _memory(row: Row) -> dict[str, float]:
    """GiB of the state and the temporaries on a device."""
    temporaries = row.figures.memory["temporaries"] if row.figures else 0
    return {k: v / GIB for k, v in {**row.state_bytes, "temporaries": temporaries}.items()}


def _speed(plan: Plan, row: Row) -> dict[str, float]:
    """Estimates of the step; empty where the compiler or the chip table has no figures."""
    seconds = row.step_seconds
    if plan.chip is None or seconds is None:
        return {}
    flops = plan.model_flops / (plan.devices * plan.chip.device_flops)
    tokens = plan.tokens_per_step / seconds
    return {"step_seconds": seconds, "tokens_per_second": tokens, "mfu": flops / seconds}


def _assumptions(plan: Plan) -> str:
    if plan.chip is None or plan.chip.clock is None:
        return "Memory and FLOPs only: the chip table has no entry or no clock for this device."
    if plan.slices > 1 and plan.chip.name not in DCN_BANDWIDTH:
        return f"No times: the bandwidth between slices of {plan.chip.name} is not published."
    dcn = ""
    if plan.slices > 1:
        dcn = (
            " + the collectives between slices as rings over the data-centre network, at the "
            f"published {DCN_BANDWIDTH[plan.chip.name] * 8 / 1e9:.0f} Gbit/s per chip. The program "
            "runs those beside computation, which step s does not count"
        )
    return (
        "All times are estimates, not measurements. op s: the compiler's `estimated_cycles`, times "
        f"trip counts, at {plan.chip.clock / 1e9:.2f} GHz. kernel s: the kernels' FLOPs, every "
        f"block counted, at an assumed {KERNEL_EFFICIENCY:.0%} of the peak. exposed: collectives "
        "that computation waits for; overlapped: the others. step s, an upper bound: op s + kernel "
        "s + the exposed collectives as rings along one dimension of the links "
        f"({plan.chip.link_bandwidth / 1e9:.0f} GB/s per chip in both directions, "
        f"{plan.chip.link_dimensions} dimensions){dcn}. Not counted: the latency of collectives, "
        "the input pipeline, evaluation and checkpoints."
    )


def as_dict(plan: Plan) -> dict[str, Any]:
    """Return everything in the plan, for JSON."""
    result: dict[str, Any] = {**dataclasses.asdict(plan), "kernel_efficiency": KERNEL_EFFICIENCY}
    for row, fields in zip(plan.rows, result["rows"], strict=True):
        fields |= {"fits": row.fits, **_speed(plan, row)}
        if row.figures and row.figures.collectives is not None:
            fields["figures"]["exposed_bytes"] = row.figures.collective_bytes(exposed=True)
    return result


def write_report(plan: Plan, folder: str | Path) -> list[Path]:
    """Write `plan.json`, `plan.md` and, if anything was compiled, `plan.png` into a folder."""
    written = [Path(folder) / "plan.json", Path(folder) / "plan.md"]
    write_json(written[0], as_dict(plan))
    write_text(written[1], markdown(plan))
    if figure := plot(plan):
        written.append(Path(folder) / "plan.png")
        figure.savefig(written[-1], dpi=150)
    return written


def plot(plan: Plan) -> Figure | None:
    """Return a figure of the compiled meshes' time and memory; None if there are none."""
    rows = [row for row in plan.rows if row.figures][::-1]
    if not rows:
        return None
    figure = Figure(figsize=(10, 1.6 + 0.45 * len(rows)), layout="constrained")
    names = [row.name + ("" if row.fits else " (does not fit)") for row in rows]
    timed = all(row.seconds for row in rows)
    panels = figure.subplots(1, 1 + timed, sharey=True, squeeze=False)[0]
    if timed:
        times = [row.seconds for row in rows]
        _draw_bars(panels[0], names, times, "seconds per step, estimated")
    if plan.chip:
        room = plan.chip.device_memory / GIB
        label = f"HBM, {room:.0f} GiB"
        panels[-1].axvline(room, color="black", linewidth=0.8, linestyle="--", label=label)
    _draw_bars(panels[-1], names, [_memory(row) for row in rows], "GiB per device")
    figure.suptitle(f"{plan.topology}, {plan.step} step of {plan.tokens_per_step:,} tokens")
    return figure


def _draw_bars(axes, names: list[str], parts: list[dict[str, float]], xlabel: str) -> None:
    """Draw a horizontal bar of stacked parts for each name, and the legend."""
    begin = [0.0] * len(names)
    for label in parts[0]:
        values = [one[label] for one in parts]
        axes.barh(names, values, left=begin, label=label, height=0.7)
        begin = [a + b for a, b in zip(begin, values, strict=True)]
    axes.legend(loc="upper center", ncols=2, fontsize=8)
    axes.set(xlabel=xlabel, ylim=(-0.6, len(names) + 0.4))
    axes.spines[["top", "right"]].set_visible(False)
