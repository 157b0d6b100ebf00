"""The report on a set of answered questions. Scores are shares of 1, published ones percentages."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from biomedlm_jax.files import atomic_directory, read_jsonl, write_json, write_text
from biomedlm_jax.qa import statistics
from biomedlm_jax.qa.questions import counted
from biomedlm_jax.qa.statistics import Item

ITEMS, JSON, MARKDOWN, PLOT = FILES = ("items.jsonl", "report.json", "report.md", "reliability.png")
BLUE, ORANGE, GREY = "#2a6ebb", "#d9822b", "#6b7280"
FEW_GROUPS = 20  # below it a cluster bootstrap's percentile intervals are too narrow


def read_items(path: str | Path, *, way: str = "") -> list[dict]:
    """Return the checked items of a JSONL file or report directory (`way`: of several reports)."""
    file = path = Path(path)
    if path.is_dir():
        ways = sorted(one.parent for one in path.glob(f"*/{ITEMS}"))
        chosen = path / way.replace(" ", "_")
        file = chosen / ITEMS if chosen in ways else path / ITEMS
        if not file.is_file() and ways:
            names = " or ".join(map(str, ways))
            raise ValueError(f"{path} holds {counted(len(ways), 'report')}; fix: name {names}")
    items = []
    for where, item in read_jsonl(file):
        try:
            statistics.check_item(item)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        items.append(item)
    if not items:
        raise ValueError(f"{file} holds no questions")
    return items


def write_items(path: str | Path, items: Sequence[Item]) -> None:
    """Write one JSON object per line, in ASCII, so that any string survives."""
    # The default is for numpy's numbers and arrays.
    options = {"default": lambda value: value.tolist(), "allow_nan": False}
    write_text(path, "".join(json.dumps(item, **options) + "\n" for item in items))


def summarise(
    items: Sequence[Item],
    *,
    name: str,
    what: str = "this model",
    official: int | None = None,
    published: Mapping[str, float] | None = None,
    published_split: str = "",
    with_macro_f1: bool = False,
    baseline: Sequence[Item] | None = None,
    baseline_name: str = "baseline",
    seeds: Sequence[Sequence[Item]] | None = None,
    seed: int = 0,
) -> dict:
    """Return everything that the report prints, as one dict that JSON can hold.

    `name` is the task, `what` the model and mode, `official` the number of questions of the split
    as published; `published` are percentages on `published_split`; `seeds` the results of every
    seed, `items` among them; `seed` is the bootstrap's.
    """
    answers = statistics.columns(items)
    bins = statistics.reliability(answers)
    versus = None
    if baseline is not None:
        versus = statistics.compare(items, baseline, seed=seed)._asdict()
        versus |= {"name": baseline_name, "difference": versus["difference"]._asdict()}
    return {
        "task": name,
        "what": what,
        "n": len(items),
        "official_n": official,
        "groups": None if answers.group_N is None else int(answers.group_N.max()) + 1,
        "truncated": sum(bool(item["truncated"]) for item in items),
        "accuracy": statistics.accuracy(answers, seed=seed)._asdict(),
        "chance": float(np.mean([1 / len(item["options"]) for item in items])),
        "majority_class": float(np.bincount(answers.gold_N).max() / len(items)),
        "macro_f1": statistics.macro_f1(answers, seed=seed)._asdict() if with_macro_f1 else None,
        "ece": statistics.calibration_error(bins),
        "brier": statistics.brier_score(answers),
        "reliability": bins,
        "published_percent": dict(published or {}),
        "published_split": published_split,
        "baseline": versus,
        "seeds": None if seeds is None else _over_seeds(answers, seeds),
        "bootstrap": {"level": statistics.LEVEL, "resamples": statistics.RESAMPLES, "seed": seed},
    }


def markdown(summary: Mapping) -> str:
    """Return the summary as one table and the conclusions that it allows."""
    questions = f"{_count(summary)} ({summary['truncated']:,} truncated)"
    rows = [("questions", questions), ("accuracy", _score(summary["accuracy"]))]
    seeds, baseline = summary["seeds"], summary["baseline"]
    if seeds:
        spread = f" ± {_percent(seeds['deviation'])}" if seeds["deviation"] is not None else ""
        rows += [(f"accuracy, mean ± s.d. of {seeds['n']} seeds", _percent(seeds["mean"]) + spread)]
    if summary["macro_f1"]:
        rows += [("macro-F1", _score(summary["macro_f1"]))]
    rows += [
        ("chance", _percent(summary["chance"])),
        ("always the most common class", _percent(summary["majority_class"])),
        ("calibration error (ECE)", f"{summary['ece']:.3f}"),
        ("Brier score", f"{summary['brier']:.3f}"),
    ]
    if baseline:
        who, one = baseline["name"], baseline["difference"]
        ends = f"[{100 * one['low']:+.1f}, {100 * one['high']:+.1f}]"
        counts = f"{baseline['only_first']:,} / {baseline['only_second']:,}"
        rows += [(f"accuracy of {who}", _percent(summary["accuracy"]["value"] - one["value"]))]
        rows += [(f"difference to {who}, in points", f"{100 * one['value']:+.1f} {ends}")]
        rows += [(f"right only here / only in {who}", counts)]
        rows += [(f"{baseline['test']}, two-sided", p_text(baseline["p_value"]))]
    rows += [(f"published: {k}", f"{v:.1f} %") for k, v in summary["published_percent"].items()]
    lines = [f"# {summary['task']}: {summary['what']}", "", "| | |", "|:--|--:|"]
    lines += [f"| {_cell(label)} | {_cell(value)} |" for label, value in rows]
    return "\n".join([*lines, "", *_conclusions(summary), ""])


def table(summaries: Sequence[Mapping]) -> str:
    """Return several results side by side, one per row, in Markdown."""
    tasks = {summary["task"] for summary in summaries}
    head = ["what", "n", "accuracy [95 %]", "macro-F1 [95 %]", "ECE", "Brier"]
    lines = [head, [":--", *["--:"] * 5]]
    for one in summaries:
        what = one["what"] if len(tasks) == 1 else f"{one['task']}: {one['what']}"
        f1 = _score(one["macro_f1"]) if one["macro_f1"] else "-"
        row = [_cell(what), _count(one), _score(one["accuracy"]), f1]
        lines.append([*row, f"{one['ece']:.3f}", f"{one['brier']:.3f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def plot(summary: Mapping, path: str | Path) -> None:
    """Draw the reliability diagram, its bin counts and the accuracy with its interval; a PNG."""
    from matplotlib.figure import Figure  # slow to import; without pyplot it needs no display

    figure = Figure(figsize=(6, 6.4), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[4, 1])
    bins, score = [one for one in summary["reliability"] if one["n"]], summary["accuracy"]
    middles = [(one["low"] + one["high"]) / 2 for one in bins]
    *points, counts = ([one[name] for one in bins] for name in ("confidence", "accuracy", "n"))
    width = 0.94 / len(summary["reliability"])
    upper.bar(middles, points[1], width, color=BLUE, alpha=0.25)
    upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="perfectly calibrated")
    areas = 12 + 100 * np.array(counts) / max(counts)  # a bin of two questions shows little
    upper.scatter(*points, areas, color=BLUE, label="mean of a bin", clip_on=False)
    ends = [[score["value"] - score["low"]], [score["high"] - score["value"]]]
    overall = np.average(points[0], weights=counts), score["value"]
    label = f"all: accuracy {_score(score)}"
    upper.errorbar(*overall, ends, fmt="D", color=ORANGE, capsize=5, linewidth=2, label=label)
    chance = summary["chance"]
    upper.axhline(chance, color=GREY, linestyle=":", label=f"chance {_percent(chance)}")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    upper.legend(loc="upper left", fontsize=9, framealpha=0.9, edgecolor="none")
    figures = f"n = {_count(summary)}, ECE {summary['ece']:.3f}, Brier {summary['brier']:.3f}"
    upper.set_title(figures, fontsize=10)
    figure.suptitle(f"{summary['task']}: {summary['what']}", parse_math=False, wrap=True, size=11)
    bars = lower.bar(middles, counts, width, color=GREY, alpha=0.5)
    lower.bar_label(bars, fmt="{:,.0f}", fontsize=8, padding=1)
    lower.set(xlabel="probability of the answer", ylabel="questions", yticks=[], ymargin=0.3)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150, format="png")


def p_text(p_value: float) -> str:
    """Return "p = 0.123", or "p < 0.001"."""
    return f"p = {p_value:.3f}" if p_value >= 0.001 else "p < 0.001"


def write_reports(
    directory: str | Path,
    reports: Mapping[str, tuple[Mapping, Sequence[Item]]],
    *,
    overwrite: bool = False,
) -> None:
    """Write reports, each (summary, items) into a folder of its name ("": `directory`), or none."""
    with atomic_directory(directory, replaceable=is_report, overwrite=overwrite) as new:
        for name, (summary, items) in reports.items():
            folder = new / name.replace(" ", "_")
            folder.mkdir(exist_ok=True)
            write_items(folder / ITEMS, items)
            write_json(folder / JSON, summary)
            write_text(folder / MARKDOWN, markdown(summary))
            plot(summary, folder / PLOT)


def is_report(path: Path) -> bool:
    """Return whether a directory is a report, or has one for each way, and nothing else."""
    folders = [one for one in path.iterdir() if one.name not in FILES]
    return all(one.is_dir() and {f.name for f in one.iterdir()} == {*FILES} for one in folders)


def _over_seeds(answers: statistics.Columns, seeds: Sequence[Sequence[Item]]) -> dict:
    """Mean and sample standard deviation (None for one seed) of the accuracy."""
    values = []
    for one in map(statistics.columns, seeds):
        statistics.same_questions(answers, one)
        values.append(float(np.mean(one.right_N)))
    return {**statistics.mean_and_deviation(values), "n": len(values), "values": values}


def _conclusions(summary: Mapping) -> list[str]:
    score, bootstrap, groups = summary["accuracy"], summary["bootstrap"], summary["groups"]
    units = f"{groups:,} groups of questions" if groups else "questions"
    lines = [
        f"Brackets are {100 * bootstrap['level']:.0f} % bootstrap intervals: "
        f"{bootstrap['resamples']:,} resamples of the {units}, seed {bootstrap['seed']}."
    ]
    if groups and groups < FEW_GROUPS:
        lines.append(f"With fewer than {FEW_GROUPS} groups these intervals are too narrow.")
    if summary["official_n"] not in (None, summary["n"]):
        lines.append(f"The official split has {summary['official_n']:,} questions.")
    if score["low"] == score["high"]:
        lines.append("The bootstrap has no uncertainty where all or no answers are right.")
    elif score["low"] <= summary["chance"] <= score["high"]:
        lines.append("The interval includes chance: the accuracy does not differ from guessing.")
    elif score["low"] <= summary["majority_class"]:
        lines.append("The accuracy is not reliably above always giving the most common class.")
    if summary["published_percent"]:
        split = summary["published_split"] and f" on the {summary['published_split']} split"
        lines.append(f"Published scores are as reported{split}; other questions, other scores.")
    return [f"- {line}" for line in lines]


def _count(summary: Mapping) -> str:
    groups = summary["groups"] and f" in {counted(summary['groups'], 'group')}"
    return f"{summary['n']:,}{groups or ''}"


def _score(interval: Mapping) -> str:
    low, high = (100 * interval[end] for end in ("low", "high"))
    return f"{_percent(interval['value'])} [{low:.1f}, {high:.1f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
