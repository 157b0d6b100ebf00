"""How a summary is shown: in Markdown, in one table with others, and as a diagram."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from biomedlm_jax.errors import counted

JSON = "report.json"
SHOWN = 20  # ids in report.md; report.json has all
BLUE, ORANGE, GREY = "#2a6ebb", "#d9822b", "#6b7280"
FEW_GROUPS = 20  # below it a cluster bootstrap's percentile intervals are too narrow


def result_rows(summary: Mapping) -> list[tuple[str, str]]:
    """Return the labels and the values of a summary's figures."""
    questions = f"{_count(summary)} ({summary['truncated']:,} truncated)"
    rows = [("questions", questions)]
    seeds, baseline, score = summary["seeds"], summary["baseline"], summary["accuracy"]
    if score:
        rows += [("accuracy", interval_text(score))]
    if seeds:
        mean, deviation = _percent(seeds["mean"]), _percent(seeds["deviation"])
        rows += [(f"accuracy, mean ± s.d. of {seeds['n']} seeds", f"{mean} ± {deviation}")]
    if summary["macro_f1"]:
        rows += [("macro-F1", interval_text(summary["macro_f1"]))]
    if one := summary["without_excluded"]:
        rows += _without(one)
    rows += [("chance", _percent(summary["chance"]))]
    if score:
        rows += [("always the most common class", _percent(summary["majority_class"]))]
    if summary["ece"] is not None:
        rows += [("calibration error (ECE)", f"{summary['ece']:.3f}")]
        rows += [("Brier score", f"{summary['brier']:.3f}")]
        rows += [("area under the risk-coverage curve", f"{summary['aurc']:.3f}")]
    if one := summary["calibrated"]:
        limit = " (a limit of the search: no fit)" if one["at_limit"] else ""
        rows += [(f"temperature, fitted on {one['name']}", f"{one['temperature']:.3f}{limit}")]
        rows += [("ECE / Brier after it", f"{one['ece']:.3f} / {one['brier']:.3f}")]
        rows += [("abstention", _abstention(one))]
    if one := summary["shuffled"]:
        over = f"{one['orders']} orders of the options{' (all seeds)' if seeds else ''}"
        rows += [(f"accuracy with {over}", _percent(one["accuracy"]))]
        rows += [("the same answer in every order", _percent(one["consistent"]))]
        rows += [("position bias (total variation)", f"{one['bias']:.3f}")]
    if summary["subject_mean"] is not None:
        there, of = len(summary["subjects"]), summary["official_subjects"]
        label = f"mean of {there} of {of} subjects" if of else "mean of the subjects"
        rows += [(label, _percent(summary["subject_mean"]))]
    for noun in ("predicted", "gold"):
        if shares := summary[f"{noun}_positions"]:
            rows += [(f"{noun} positions, in %", " / ".join(f"{100 * one:.0f}" for one in shares))]
    if baseline:
        who, one = baseline["name"], baseline["difference"]
        counts = f"{baseline['only_first']:,} / {baseline['only_second']:,}"
        rows += [(f"accuracy of {who}", _percent(score["value"] - one["value"]))]
        rows += [(f"difference to {who}, in points", points_text(one))]
        rows += [(f"right only here / only in {who}", counts)]
        rows += [(f"{baseline['test']}, two-sided", p_text(baseline["p_value"]))]
    rows += [(f"published: {k}", f"{v:.1f} %") for k, v in summary["published_percent"].items()]
    return rows


def markdown(summary: Mapping) -> str:
    """Return the summary as one table and the conclusions that it allows."""
    lines = [f"# {summary['task']}: {summary['what']}", "", *labelled_rows(result_rows(summary))]
    lines += [*(f"- {line}" for line in conclusions(summary)), ""]
    if summary["subjects"]:
        subjects = [(k, f"{v['n']:,}: {interval_text(v)}") for k, v in summary["subjects"].items()]
        lines += ["## By subject", "", *labelled_rows(subjects)]
    if curve := summary["risk_coverage"]:
        first = " of the first seed" if summary["seeds"] else ""
        points = [
            (
                f"confidence at least {one['threshold']:.3f}",
                f"{100 * one['coverage']:.0f} % answered, {_percent(one['risk'])} of them wrong",
            )
            for one in curve
        ]
        lines += [f"## Risk and coverage{first}", "", *labelled_rows(points)]
    if account := account_rows(summary):
        lines += ["## Left out, cut or indistinct", "", *labelled_rows(account)]
    if provenance := summary["provenance"]:
        lines += ["## What this is of", "", *labelled_rows(flat(provenance))]
    return "\n".join(lines)


def table(summaries: Sequence[Mapping]) -> str:
    """Return several results side by side, one per row, in Markdown."""
    head, *rows = table_cells(summaries)
    cells = [[cell_text(what), *figures] for what, *figures in rows]
    return joined([head, [":--", *["--:"] * (len(head) - 1)], *cells]) + "\n"


def table_cells(summaries: Sequence[Mapping]) -> list[list[str]]:
    """Return the head and the rows of a table of several results.

    With a baseline there are the difference to it, in points, and its p-value.
    """
    tasks = {summary["task"] for summary in summaries}
    head = ["what", "n", "accuracy [95 %]", "macro-F1 [95 %]", "ECE", "Brier"]
    compared = any(summary["baseline"] for summary in summaries)
    excluding = any(summary["without_excluded"] for summary in summaries)
    head += ["without the excluded [95 %]", "their n"] if excluding else []
    head += ["to the baseline [95 %]", "p"] if compared else []
    lines = [head]
    for one in summaries:
        what = one["what"] if len(tasks) == 1 else f"{one['task']}: {one['what']}"
        f1 = interval_text(one["macro_f1"]) if one["macro_f1"] else "-"
        score = interval_text(one["accuracy"]) if one["accuracy"] else "-"
        figures = ["-" if one[name] is None else f"{one[name]:.3f}" for name in ("ece", "brier")]
        if excluding:
            rest = one["without_excluded"]
            shown = interval_text(rest["accuracy"]) if rest and rest["accuracy"] else "-"
            figures += [shown, f"{rest['kept']:,}" if rest else "-"]
        if compared:
            versus = one["baseline"]
            figures += (
                [points_text(versus["difference"]), p_text(versus["p_value"])]
                if versus
                else ["-", "-"]
            )
        lines.append([what, _count(one), score, f1, *figures])
    return lines


def joined(lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown of the cells of its lines; the second line has the alignment."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    label = f"all: accuracy {interval_text(score)}"
    upper.errorbar(*overall, ends, fmt="D", color=ORANGE, capsize=5, linewidth=2, label=label)
    chance = summary["chance"]
    upper.axhline(chance, color=GREY, linestyle=":", label=f"chance {_percent(chance)}")
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    upper.legend(loc="upper left", fontsize=9, framealpha=0.9, edgecolor="none")
    figures = f"n = {_count(summary)}, ECE {summary['ece']:.3f}, Brier {summary['brier']:.3f}"
    seeds = summary["seeds"]
    figures += f" (means of {seeds['n']} seeds); bins of the first seed" if seeds else ""
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


def conclusions(summary: Mapping) -> list[str]:
    """Return what the figures of a summary allow to conclude, and what limits them."""
    score, bootstrap, groups = summary["accuracy"], summary["bootstrap"], summary["groups"]
    if not score:
        return ["The questions have no gold labels: these are predictions, without a score."]
    units = f"{groups:,} groups of questions" if groups else "questions"
    units += f" and {summary['seeds']['n']} seeds" if summary["seeds"] else ""
    lines = [
        f"Brackets are {100 * bootstrap['level']:.0f} % bootstrap intervals: "
        f"{bootstrap['resamples']:,} resamples of the {units}, seed {bootstrap['seed']}."
    ]
    if groups and groups < FEW_GROUPS:
        lines.append(f"With fewer than {FEW_GROUPS} groups these intervals are too narrow.")
    scored = summary["provenance"].get("questions", {})
    if scored.get("limit") is not None:
        lines.append(f"Only the first {summary['n']:,} of {scored['in_split']:,} were scored.")
    if summary["chose_checkpoint"]:
        lines.append("This split chose the checkpoint: the accuracy is biased upwards.")
    if summary["trained_on"]:
        lines.append("The model was trained on this split: the accuracy is none of new questions.")
    if one := summary["without_excluded"]:
        lines.append(f"Excluded: {one['rule']}.")
        if not one["kept"]:
            lines.append("Every question is excluded: there is no score without them.")
    if summary["seeds"]:
        lines.append("All scores are means of the seeds; diagram and curve are the first seed's.")
    if not summary["reliability"]:
        lines.append("These scores are no log-probabilities: there is no ECE and no Brier score.")
    if summary["baseline"]:
        lines.append(f"Compared with the baseline: {summary['baseline']['compared']} are equal.")
    if summary["official_n"] not in (None, summary["n"]):
        lines.append(f"The official split has {summary['official_n']:,} questions.")
    if score["low"] == score["high"]:
        lines.append("The bootstrap has no uncertainty where all or no answers are right.")
    elif score["low"] <= summary["chance"] <= score["high"]:
        lines.append(
            "The interval includes chance: the accuracy is not shown to differ from guessing."
        )
    elif score["low"] <= summary["majority_class"]:
        lines.append("The accuracy is not reliably above always giving the most common class.")
    if summary["published_percent"]:
        split = summary["published_split"] and f" on the {summary['published_split']} split"
        lines.append(f"Published scores are as reported{split}; other questions, other scores.")
    return lines


def account_rows(summary: Mapping) -> list[tuple[str, str]]:
    """Return a row for each reason why questions were left out, cut, or hard to tell apart."""
    listed = {
        "truncated to fit": summary["truncated_ids"],
        "with options cut to equal tokens": summary["indistinct_ids"],
    }
    for table, reasons in summary["skipped"].items():
        kind = {"places": "bad row", "left_out": "left out"}.get(table, table)
        listed |= {f"{kind}: {reason}": of_reason for reason, of_reason in reasons.items()}
    rows = []
    for reason, of_reason in listed.items():
        if isinstance(of_reason, int):
            rows.append((reason, f"{of_reason:,}"))
        elif of_reason:
            more = f", ... (all in {JSON})" if len(of_reason) > SHOWN else ""
            names = ", ".join(map(str, of_reason[:SHOWN]))
            rows.append((reason, f"{len(of_reason):,}: {names}{more}"))
    return rows


def _without(one: Mapping) -> list[tuple[str, str]]:
    """Return the rows of the scores without the questions of a list."""
    rows = [("excluded questions", f"{one['excluded']:,}, by {one['name']}")]
    kept = f"{one['kept']:,} other questions"
    for name, label in (("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
        if one[name]:
            rows += [(f"{label} of the {kept}", interval_text(one[name]))]
    if one["accuracy_of_excluded"]:
        rows += [("accuracy of the excluded ones", interval_text(one["accuracy_of_excluded"]))]
    return rows


def _abstention(chosen: Mapping) -> str:
    if chosen["threshold"] is None:
        return f"no threshold has at most {_percent(chosen['risk'])} wrong on dev"
    given = chosen["accuracy_of_given"]
    right = "none" if given is None else f"{_percent(given)} of them right"
    kept = f"{100 * chosen['coverage']:.1f} % answered, {right}"
    return f"below {chosen['threshold']:.3f} (at most {_percent(chosen['risk'])} wrong): {kept}"


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Return the leaves of nested dicts and lists with their dotted names."""
    if isinstance(value, Mapping | list | tuple) and value:
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value, 1)
        return [row for key, one in pairs for row in flat(one, f"{name}.{key}".strip("."))]
    return [(name, str(value))]


def labelled_rows(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return the lines of a table of labels and values, in Markdown."""
    body = [f"| {cell_text(label)} | {cell_text(value)} |" for label, value in rows]
    return ["| | |", "|:--|--:|", *body, ""]


def _count(summary: Mapping) -> str:
    groups = summary["groups"] and f" in {counted(summary['groups'], 'group')}"
    return f"{summary['n']:,}{groups or ''}"


def interval_text(interval: Mapping) -> str:
    """Return "50.0 % [40.0, 60.0]" for a share with its interval."""
    low, high = (100 * interval[end] for end in ("low", "high"))
    return f"{_percent(interval['value'])} [{low:.1f}, {high:.1f}]"


def points_text(interval: Mapping) -> str:
    """Return "+5.0 [-1.0, +11.0]" for a difference of two shares, in points."""
    value, low, high = (100 * interval[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def cell_text(text: str) -> str:
    """Return a text for one cell of a table in Markdown."""
    return " ".join(text.replace("|", "\\|").split())
