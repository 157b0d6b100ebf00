"""The page of a comparison: HTML, Markdown and PNG files of its figures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from biomedlm_jax.benchmarks import speed_plots
from biomedlm_jax.benchmarks.published import PLANNED, PLANNED_WORK, PUBLISHED
from biomedlm_jax.benchmarks.rounds import OURS, cell_text, table_columns
from biomedlm_jax.files import write_text
from biomedlm_jax.html_page import Figure, Link, Listing, Section, Table, render_page

TITLE = f"{OURS} beside transformers and PyTorch"
KINDS = {
    "train": "Training step",
    "score": "Scoring of questions",
    "generate": "Generation",
    "load": "Loading",
    "convert": "Conversion",
}
COMPARED = {
    "train": "losses",
    "score": "log-probabilities",
    "generate": "tokens",
    "load": "logits",
    "convert": "tensors",
}
# Columns that bench.json has and the page leaves out.
LEFT_OUT = ("fastest_seconds", "first_seconds", "seconds", "step_seconds")
UNITS = {"_seconds": ", s", "_gb": ", GB", "_per_second": "/s"}
RATIO = f"time / {OURS}'s"
IMAGES = ("speed.png", "step.png", "utilisation.png", "memory.png")


def write_page(report: Mapping[str, Any], out: Path) -> None:
    """Write index.html, bench.md and the PNG files of a report, finished or not, into `out`."""
    images = dict(plots(report["results"]))
    for name, image in images.items():
        (out / name).write_bytes(image.png)
    facts, parts = page_facts(report), sections(report, images)
    write_text(out / "index.html", render_page(TITLE, parts, facts=facts))
    files = {image.png: name for name, image in images.items()}
    write_text(out / "bench.md", markdown(TITLE, parts, facts=facts, files=files))


def page_facts(report: Mapping[str, Any]) -> dict[str, object]:
    """Return what holds for all benchmarks of a report: time, machine, versions, command."""
    results = report["results"].values()
    versions = {name: v for result in results for name, v in result.get("versions", {}).items()}
    machine = next((result["machine"] for result in results if "machine" in result), "-")
    machine = ", ".join(part for part in machine.split(", ") if not part.startswith("load "))
    return {
        "started": report["started"],
        "state": "complete" if report["complete"] else "interrupted; the finished parts follow",
        "minutes": f"{report['seconds'] / 60:.1f}",
        "machine": machine,
        "load average before and after": _loads(report),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "command": report["command"],
    }


def busy_line(report: Mapping[str, Any]) -> str | None:
    """Return a warning if other processes took part of the machine, else None.

    The sides use all cores: a load average above their number is of others. torch's threads wait
    for each other, and lose tenfold where one of them has no core.
    """
    largest = max((result["load_after"] or 0 for result in report["results"].values()), default=0)
    if largest <= report["cores"] + 0.5:
        return None
    return (
        f"warning: the load average rose to {largest:.1f} on {report['cores']} cores: other "
        "processes took part of this machine, and the ratios may be wrong; measure again without"
    )


def speed_tables(results: Mapping[str, Mapping]) -> dict[str, Mapping[str, Mapping]]:
    """Return the tables with a ratio, by kind and case."""
    return {
        kind if kind in case or len(_cases(result)) == 1 else f"{kind}, {case}": rows
        for kind, result in results.items()
        for case, rows in _cases(result).items()
    }


def _cases(result: Mapping[str, Any]) -> dict[str, Mapping]:
    tables = result.get("tables", {})
    return {case: rows for case, rows in tables.items() if "ratio" in next(iter(rows.values()), ())}


def plots(results: Mapping[str, Mapping]) -> Iterator[tuple[str, Figure]]:
    """Yield the file name and the figure of each plot that the results have numbers for."""
    if cases := speed_tables(results):
        caption = "Speed of each side, medians; lines span the quartiles. Longer is faster."
        yield "speed.png", Figure(speed_plots.speed_plot(cases), caption)
    train = results.get("train", {}).get("tables", {})
    if rows := train.get("parts of a step"):
        caption = "A training step: forward pass, backward pass, and update. Shorter is faster."
        yield "step.png", Figure(speed_plots.step_plot(rows), caption)
    if rows := train.get("utilisation of FLOPs"):
        known = train_has_peak(results["train"])
        peak = "chip's peak (MFU)" if known else "measured peak of a matrix product"
        caption = "Model FLOPs of training as a share of the peak, in three conventions."
        yield "utilisation.png", Figure(speed_plots.utilisation_plot(rows, peak), caption)
    memory = {kind: result.get("tables", {}).get("peak memory") for kind, result in results.items()}
    if memory := {kind: rows for kind, rows in memory.items() if rows}:
        caption = "Peak memory of each side, in a process of its own."
        yield "memory.png", Figure(speed_plots.memory_plot(memory), caption)


def train_has_peak(result: Mapping[str, Any]) -> bool:
    """Return whether the chip's peak is known, so that a share of it is the MFU."""
    return not any(note.startswith("no peak known") for note in result.get("notes", ()))


def sections(report: Mapping[str, Any], images: Mapping[str, Figure]) -> list[Section]:
    """Return the page's sections: summary, one for each benchmark, and other projects' figures."""
    results = report["results"]
    errors = [
        f"error: {KINDS[kind]}: {line}"
        for kind, result in results.items()
        for line in result.get("errors", ())
    ]
    lead = (
        "Equal weights, data, dtype and threads on all sides, in rounds that alternate in one run. "
        "First calls, which compile, are kept apart. A ratio above 1: this library is faster."
    )
    cases = speed_tables(results)
    summary: list[Any] = [lead, *errors]
    if line := busy_line(report):
        summary.append(line)
    if not errors and any(not name.startswith(OURS) for side in cases.values() for name in side):
        compared = ", ".join(COMPARED[kind] for kind in results)
        summary.append(f"All sides agree in what was compared: {compared}.")
    if cases:
        summary.append(_summary(cases))
    summary += [images[name] for name in ("speed.png", "memory.png") if name in images]
    return [
        Section("Summary", summary),
        *(_section(kind, result, images) for kind, result in results.items()),
        Section("Published speeds, not measured here", [_published()]),
        Section("Planned step beside MaxText", [PLANNED_WORK, _planned()]),
        Section("Command", [Listing("Command and all figures", _command(report))]),
    ]


def _loads(result: Mapping[str, Any]) -> str:
    loads = (result.get("load_before"), result.get("load_after"))
    return " and ".join("-" if load is None else f"{load:.1f}" for load in loads)


def _command(report: Mapping[str, Any]) -> str:
    return f"{report['command']}\n\nbench.json has all figures, rounds.jsonl each round."


def _summary(cases: Mapping[str, Mapping[str, Mapping]]) -> Table:
    rows = []
    for case, sides in cases.items():
        ours, *others = sides.items()
        column = next(name for name in ours[1] if name.endswith("_per_second"))
        peers = [(name, side) for name, side in others if not name.startswith(OURS)]
        name, best = min(peers, key=lambda peer: peer[1]["ratio"], default=("none", None))
        unit = column.removesuffix("_per_second").replace("mb", "MB")
        ratio = f"{best['ratio']:.2f}" if best else None
        rows.append([case, unit, ours[1][column], name, best and best[column], ratio])
    columns = ("case", "unit", f"{OURS}, per s", "fastest peer", "its speed, per s", RATIO)
    return Table(columns, rows, "Medians. The ratio is the time of the fastest peer over ours.")


def _section(kind: str, result: Mapping[str, Any], images: Mapping[str, Figure]) -> Section:
    parts: list[Any] = [result.get("work", "")]
    parts += [f"error: {line}" for line in result.get("errors", ())]
    share = "MFU" if kind != "train" or train_has_peak(result) else "share"
    for title, rows in result.get("tables", {}).items():
        if not rows:
            continue
        parts.append(_table(title, rows, share))
        name = {"parts of a step": "step.png", "utilisation of FLOPs": "utilisation.png"}.get(title)
        if name is not None and name in images:
            parts.append(images[name])
    notes = [f"load average before and after: {_loads(result)}"]
    parts.append(Listing("Notes", "\n".join([*notes, *result.get("notes", ())])))
    return Section(KINDS[kind], [part for part in parts if part != ""])


def _table(title: str, rows: Mapping[str, Mapping[str, Any]], share: str) -> Table:
    columns = [name for name in table_columns(rows) if name not in LEFT_OUT]
    cells = [[name, *(_cell(row.get(c), c) for c in columns)] for name, row in rows.items()]
    return Table(["side", *(_heading(column, share) for column in columns)], cells, title)


def _heading(column: str, share: str) -> str:
    if column == "ratio":
        return RATIO
    column = column.replace("share_", f"{share}, ").replace("gflops", "GFLOP")
    for ending, unit in UNITS.items():
        if column.endswith(ending):
            column = column.removesuffix(ending) + unit
            break
    return column.replace("_", " ").replace("quartile,", "quartiles,").replace("mb/s", "MB/s")


def _cell(value: Any, column: str) -> Any:
    if column.startswith("share_"):
        return f"{value:.1%}".replace("%", " %")
    return cell_text(value) if isinstance(value, list | tuple) else value


def _published() -> Table:
    columns = ("training", "chip", "tokens/s and chip", "MFU", "convention", "source")
    rows = [[*row[:3], f"{row.mfu} %", row.convention, row.source] for row in PUBLISHED]
    return Table(columns, rows, "Other projects' figures on other machines. Nothing here was run.")


def _planned() -> Table:
    columns = ("step", "gradient sums", "libtpu", "op estimate, s", "exposed collectives, GiB")
    return Table(columns, PLANNED, "Compiler estimates of programs, not runs.")


def markdown(
    title: str,
    parts: Sequence[Section],
    *,
    facts: Mapping[str, object],
    files: Mapping[bytes, str],
) -> str:
    """Return a page as Markdown; `files` has the file name of each image."""
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts.items())]
    for section in parts:
        lines += ["", f"## {section.title}"]
        for part in section.parts:
            lines.append("")
            if isinstance(part, str):
                lines.append(part)
            elif isinstance(part, Figure):
                lines.append(f"![{part.caption}]({files[part.png]})")
            elif isinstance(part, Link):
                lines.append(f"[{part.text}]({part.url})")
            elif isinstance(part, Listing):
                lines += [f"{part.summary}:", "", "```", part.text, "```"]
            else:
                lines += [*_rows(part), "", part.caption]
    return "\n".join(lines) + "\n"


def _rows(table: Table) -> list[str]:
    cells = [[_plain(cell) for cell in row] for row in table.rows]
    rule = ["--:" if isinstance(c, int | float) else "---" for c in table.rows[0]]
    return [f"| {' | '.join(row)} |" for row in (list(table.columns), rule, *cells)]


def _plain(cell: Any) -> str:
    return cell_text(cell).replace("|", "\\|")
