"""The report on a set of answered questions: items.jsonl, report.json, report.md, reliability.png.

In the JSON every score is a share from 0 to 1; only published scores are percentages, as printed.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from biomedlm_jax.qa import statistics
from biomedlm_jax.qa.statistics import Item

ITEMS, JSON, MARKDOWN, PLOT = FILES = ("items.jsonl", "report.json", "report.md", "reliability.png")
BLUE, ORANGE, GREY = "#2a6ebb", "#d9822b", "#6b7280"


def read_items(path: str | Path) -> list[dict]:
    """The items of a JSONL file, or of the report directory that holds it, all checked."""
    file = Path(path) / ITEMS if Path(path).is_dir() else Path(path)
    items = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                items.append(json.loads(line))
                statistics.check_item(items[-1])
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from None
    if not items:
        raise ValueError(f"{file} holds no questions")
    return items


def write_items(path: str | Path, items: Sequence[Item]) -> None:
    """One JSON object per line, in ASCII, so that any string survives."""
    with Path(path).open("w", encoding="ascii") as file:
        for item in items:
            # The default is for numpy's numbers and arrays.
            json.dump(item, file, default=lambda value: value.tolist(), allow_nan=False)
            file.write("\n")


def summarise(
    items: Sequence[Item],
    *,
    name: str,
    what: str = "this model",
    published: Mapping[str, float] | None = None,
    published_split: str = "",
    with_macro_f1: bool = False,
    baseline: Sequence[Item] | None = None,
    baseline_name: str = "baseline",
    seeds: Sequence[Sequence[Item]] | None = None,
    seed: int = 0,
) -> dict:
    """Everything that the report says, as one dict that JSON holds.

    `name` is the task, `what` the model and mode, `published` percentages that were reported on
    `published_split`; `seeds` are the results of every seed, `items` among them; `seed` is the
    bootstrap's. Raises ValueError for items without gold labels or of different questions.
    """
    found = statistics.columns(items)
    gold_N, prediction_N = found.gold_N, found.prediction_N
    bins = statistics.reliability(gold_N, prediction_N, found.probabilities)
    f1 = statistics.macro_f1(gold_N, prediction_N, seed=seed)._asdict() if with_macro_f1 else None
    return {
        "task": name,
        "what": what,
        "n": len(items),
        "truncated": sum(bool(item["truncated"]) for item in items),
        "accuracy": statistics.accuracy(gold_N, prediction_N, seed=seed)._asdict(),
        "chance": float(np.mean([1 / len(item["options"]) for item in items])),
        "majority_class": float(np.bincount(gold_N).max() / len(items)),
        "macro_f1": f1,
        "ece": statistics.calibration_error(bins),
        "brier": statistics.brier_score(gold_N, found.probabilities),
        "reliability": [one._asdict() for one in bins],
        "published_percent": dict(published or {}),
        "published_split": published_split,
        "baseline": _versus(items, baseline, baseline_name, seed) if baseline is not None else None,
        "seeds": _over_seeds(found, seeds) if seeds is not None else None,
        "bootstrap": {"level": statistics.LEVEL, "resamples": statistics.RESAMPLES, "seed": seed},
    }


def markdown(summary: Mapping) -> str:
    """The summary as one table and what may be concluded from it."""
    questions = f"{summary['n']:,} ({summary['truncated']:,} truncated)"
    rows = [("questions", questions), ("accuracy", _score(summary["accuracy"]))]
    seeds, baseline = summary["seeds"], summary["baseline"]
    if seeds:
        spread = f" ± {_percent(seeds['deviation'])}" if seeds["deviation"] is not None else ""
        rows += [(f"accuracy, mean ± s.d. of {seeds['n']} seeds", _percent(seeds["mean"]) + spread)]
    if summary["macro_f1"]:
        rows += [("macro-F1", _score(summary["macro_f1"]))]
    rows += [("chance", _percent(summary["chance"]))]
    rows += [("always the most common class", _percent(summary["majority_class"]))]
    rows += [("calibration error (ECE)", f"{summary['ece']:.3f}")]
    rows += [("Brier score", f"{summary['brier']:.3f}")]
    if baseline:
        who, one = baseline["name"], baseline["difference"]
        ends = f"[{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
        p = f"p = {baseline['p_value']:.3f}" if baseline["p_value"] >= 0.001 else "p < 0.001"
        counts = f"{baseline['only_first']:,} / {baseline['only_second']:,}"
        rows += [(f"accuracy of {who}", _percent(summary["accuracy"]["value"] - one["value"]))]
        rows += [(f"difference to {who}, in points", f"{100 * one['value']:+.1f} {ends}")]
        rows += [(f"right only here / only in {who}", counts)]
        rows += [("McNemar's exact test, two-sided", p)]
    rows += [(f"published: {k}", f"{v:.1f} %") for k, v in summary["published_percent"].items()]
    lines = [f"# {summary['task']}: {summary['what']}", "", "| | |", "|:--|--:|"]
    lines += [f"| {_cell(label)} | {_cell(value)} |" for label, value in rows]
    return "\n".join([*lines, "", *_conclusions(summary), ""])


def table(summaries: Sequence[Mapping]) -> str:
    """Several results side by side, one per row, in Markdown."""
    tasks = {summary["task"] for summary in summaries}
    head = ["what", "n", "accuracy [95 %]", "macro-F1 [95 %]", "ECE", "Brier"]
    lines = [head, [":--", *["--:"] * 5]]
    for one in summaries:
        what = one["what"] if len(tasks) == 1 else f"{one['task']}: {one['what']}"
        f1 = _score(one["macro_f1"]) if one["macro_f1"] else "-"
        row = [_cell(what), f"{one['n']:,}", _score(one["accuracy"]), f1]
        lines.append([*row, f"{one['ece']:.3f}", f"{one['brier']:.3f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def plot(summary: Mapping, path: str | Path) -> None:
    """Draw the reliability diagram, its bin counts and the accuracy with its interval; a PNG."""
    figure = _matplotlib().figure.Figure(figsize=(6, 6.4), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[4, 1])
    bins, score = [one for one in summary["reliability"] if one["n"]], summary["accuracy"]
    middles = [(one["low"] + one["high"]) / 2 for one in bins]
    *points, counts = ([one[name] for one in bins] for name in ("confidence", "accuracy", "n"))
    width = 0.94 / len(summary["reliability"])
    upper.bar(middles, points[1], width, color=BLUE, alpha=0.25)
    upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="perfectly calibrated")
    areas = 12 + 100 * np.array(counts) / max(counts)  # a bin of two questions says little
    upper.scatter(*points, areas, color=BLUE, label="mean of a bin", clip_on=False)
    ends = [[score["value"] - score["low"]], [score["high"] - score["value"]]]
    overall = np.average(points[0], weights=counts), score["value"]
    label = f"all: accuracy {_score(score)}"
    upper.errorbar(*overall, ends, fmt="D", color=ORANGE, capsize=5, linewidth=2, label=label)
    chance = summary["chance"]
    upper.axhline(chance, color=GREY, linestyle=":", label=f"chance {_percent(chance)}")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    upper.legend(loc="upper left", fontsize=9, framealpha=0.9, edgecolor="none")
    figures = f"n = {summary['n']:,}, ECE {summary['ece']:.3f}, Brier {summary['brier']:.3f}"
    upper.set_title(figures, fontsize=10)
    figure.suptitle(f"{summary['task']}: {summary['what']}", parse_math=False, wrap=True, size=11)
    bars = lower.bar(middles, counts, width, color=GREY, alpha=0.5)
    lower.bar_label(bars, fmt="{:,.0f}", fontsize=8, padding=1)
    lower.set(xlabel="probability of the answer", ylabel="questions", yticks=[], ymargin=0.3)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, format="png")


def check_directory(directory: str | Path, *, overwrite: bool) -> None:
    """Raise at once, before any work, if `write_report` would refuse."""
    _matplotlib()
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; name a directory")
    held = sorted(one.name for one in path.iterdir()) if path.exists() else []
    others = [one for one in held if one not in FILES and not _is_report(path / one)]
    if held and (others or not overwrite):
        advice = "name another directory" + ("" if others else ", or pass --overwrite")
        what = f"holds {others[0]}, which is no part of a report" if others else "exists"
        raise FileExistsError(f"{path} {what}; {advice}")


def write_report(
    directory: str | Path, summary: Mapping, items: Sequence[Item], *, overwrite: bool = False
) -> None:
    """Write the four files, all or none; what was there before stays there after an error."""
    write_reports(directory, {"": (summary, items)}, overwrite=overwrite)


def write_reports(
    directory: str | Path,
    reports: Mapping[str, tuple[Mapping, Sequence[Item]]],
    *,
    overwrite: bool = False,
) -> None:
    """Write several reports, each into a folder of its name, all or none."""
    check_directory(directory, overwrite=overwrite)
    path = Path(os.path.realpath(directory))
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    new.mkdir(parents=True, exist_ok=True)
    try:
        for name, (summary, items) in reports.items():
            _write_files(new / name.replace(" ", "_"), summary, items)
        check_directory(path, overwrite=overwrite)  # somebody may have been faster
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def _write_files(folder: Path, summary: Mapping, items: Sequence[Item]) -> None:
    folder.mkdir(exist_ok=True)
    write_items(folder / ITEMS, items)
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / JSON).write_text(text + "\n", encoding="utf-8")
    (folder / MARKDOWN).write_text(markdown(summary), encoding="utf-8")
    plot(summary, folder / PLOT)


def _is_report(path: Path) -> bool:
    return path.is_dir() and {one.name for one in path.iterdir()} == set(FILES)


def _versus(items: Sequence[Item], baseline: Sequence[Item], name: str, seed: int) -> dict:
    result = statistics.compare(items, baseline, seed=seed)._asdict()
    return {"name": name, **result, "difference": result["difference"]._asdict()}


def _over_seeds(found: statistics.Columns, seeds: Sequence[Sequence[Item]]) -> dict:
    values = []
    for one in map(statistics.columns, seeds):
        statistics.same_questions(found, one)
        values.append(float(np.mean(one.gold_N == one.prediction_N)))
    return {**statistics.over_seeds(values)._asdict(), "values": values}


def _conclusions(summary: Mapping) -> list[str]:
    score, bootstrap = summary["accuracy"], summary["bootstrap"]
    how = f"{bootstrap['resamples']:,} resamples of the questions, seed {bootstrap['seed']}"
    lines = [f"Brackets are {100 * bootstrap['level']:.0f} % bootstrap intervals: {how}."]
    if score["low"] == score["high"]:
        lines.append("All or no answers are right: the bootstrap shows no uncertainty then.")
    elif score["low"] <= summary["chance"] <= score["high"]:
        lines.append("The interval includes chance: these answers cannot be told from guesses.")
    elif score["low"] <= summary["majority_class"]:
        lines.append("This is not reliably better than always giving the most common class.")
    if summary["published_percent"]:
        split = summary["published_split"] and f", on the {summary['published_split']} split"
        lines.append(f"Published scores are as reported{split}; other questions, other scores.")
    return [f"- {line}" for line in lines]


def _matplotlib():
    # Figures without pyplot: no window system, no state that outlives the call.
    try:
        import matplotlib.figure
    except ModuleNotFoundError as error:
        advice = "pip install 'biomedlm-jax[plots]'"
        raise ValueError(f"the plot needs {error.name}, not installed; {advice}") from None
    return matplotlib


def _score(interval: Mapping) -> str:
    low, high = (100 * interval[end] for end in ("low", "high"))
    return f"{_percent(interval['value'])} [{low:.1f}, {high:.1f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
