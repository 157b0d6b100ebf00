"""The pages of reports: what report.json has, with its plot, for a browser."""

from collections.abc import Mapping, Sequence
from typing import Any

from biomedlm_jax.html_page import Figure, Listing, Section, Table, render_page
from biomedlm_jax.qa.presentation import (
    account_rows,
    conclusions,
    flat,
    interval_text,
    result_rows,
    table_cells,
)
from biomedlm_jax.qa.versus_table import (
    NOT_CHOSEN,
    accuracy_cells,
    scored_split,
    settings_cells,
    versus_conclusions,
    versus_sources,
)

DIAGRAM = "Reliability: the accuracy of answers by their probability, and the questions of each bin"


def report_page(summary: Mapping, png: bytes | None) -> str:
    """Return the page of one summary, as report.json has it; `png` is its reliability diagram."""
    first = " of the first seed" if summary["seeds"] else ""
    sections = [
        Section("Result", [Table(["figure", "value"], result_rows(summary)), *conclusions(summary)])
    ]
    if png:
        sections += [Section(f"Calibration{first}", [Figure(png, DIAGRAM), *_coverage(summary)])]
    if summary["subjects"]:
        rows = [[k, one["n"], interval_text(one)] for k, one in summary["subjects"].items()]
        head = ["subject", "questions", "accuracy [95 %]"]
        sections += [Section("By subject", [Table(head, rows)])]
    if one := summary["confusion"]:
        head = ["gold class", *one["classes"], "right"]
        rows = [
            [name, *counts, _percent(counts[place], sum(counts))]
            for place, (name, counts) in enumerate(zip(one["classes"], one["counts"], strict=True))
        ]
        caption = "Questions by gold class (rows) and answer (columns)"
        sections += [Section(f"Confusion{first}", [Table(head, rows, caption)])]
    if summary["worst"]:
        sections += [Section(f"Most confident wrong answers{first}", _worst(summary["worst"]))]
    if account := account_rows(summary):
        rows = [*account]
        sections += [Section("Left out, cut or indistinct", [Table(["reason", "questions"], rows)])]
    if provenance := summary["provenance"]:
        rows = [[*row] for row in flat(provenance)]
        sections += [Section("What this is of", [Table(["name", "value"], rows)])]
    score = summary["accuracy"]
    facts = {"accuracy": interval_text(score) if score else None, "questions": summary["n"]}
    facts |= {"groups": summary["groups"]} if summary["groups"] else {}
    title = f"{summary['task']}: {summary['what']}"
    return render_page(title, sections, facts={**facts, **_origin(summary["provenance"])})


def overview_page(summaries: Mapping[str, Mapping]) -> str:
    """Return the page that lists the summaries, by folder, of one evaluation."""
    head, *rows = table_cells([*summaries.values()])
    rows = [[*row, folder] for row, folder in zip(rows, summaries, strict=True)]
    one = next(iter(summaries.values()))
    parts = [Table([*head, "folder"], rows), *conclusions(one)[:1]]
    parts += ["Each folder has a report.html."]
    facts = _origin(one["provenance"])
    return render_page(one["task"], [Section("Ways of scoring", parts)], facts=facts)


def versus_page(result: Mapping) -> str:
    """Return the page of a model and its base, as report.json has them."""
    models, on, split = result["models"], result["chosen_on"], scored_split(result)
    parts = [_table(accuracy_cells(result)), *versus_conclusions(result)]
    parts += ["The folders base and model have the report.html of each."]
    sections = [Section("Result", parts)]
    if on:
        cells = settings_cells(models, "dev", chosen=True)
        heading = f"All settings on {on['split']}"
        sections += [Section(heading, [_table(cells, f"{on['n']:,} questions")])]
    if any(one["not_chosen"] for one in models.values()):
        parts = [NOT_CHOSEN.format(split), _table(settings_cells(models, "not_chosen"))]
        sections += [Section(f"The other settings on {split}", parts)]
    if rows := account_rows({"truncated_ids": [], "indistinct_ids": [], **result}):
        sections += [Section("Left out or noted", [Table(["reason", "questions"], rows)])]
    sections += [Section("What this is of", [Table(["name", "value"], versus_sources(result))])]
    title = f"{result['task']}: a model against its base"
    facts = {"questions": result["n"], **_origin(result["provenance"])}
    return render_page(title, sections, facts=facts)


def _table(cells: Sequence[Sequence[str]], caption: str = "") -> Table:
    return Table(cells[0], cells[1:], caption)


def _coverage(summary: Mapping) -> list[Table]:
    rows = [
        [f"{one['threshold']:.3f}", _percent(one["coverage"]), _percent(one["risk"])]
        for one in summary["risk_coverage"] or ()
    ]
    return [Table(["confidence at least", "answered", "of them wrong"], rows)] if rows else []


def _worst(answers: Sequence[Mapping]) -> list[str | Listing]:
    """Return a listing for each answer; its line has the confidence, the id and both options."""
    stated = answers[0]["probabilities"] is not None
    what = "the probability of the answer" if stated else "its score minus the gold option's"
    parts: list[str | Listing] = [f"In brackets is {what}. A click shows the question."]
    for one in answers:
        options = [*map(str, one["options"])]
        given, gold = options[one["prediction"]], options[one["gold"]]
        lines = [text for text in (one.get("context"), one.get("question")) if text]
        lines += [""] if lines else []
        for number, option in enumerate(options):
            marks = ["answer"] * (number == one["prediction"]) + ["gold"] * (number == one["gold"])
            shown = f"score {one['scores'][number]:.4g}"
            shown += f", probability {one['probabilities'][number]:.3f}" if stated else ""
            mark = f" <- {', '.join(marks)}" if marks else ""
            lines += [f"{chr(65 + number)}. {option} ({shown}){mark}"]
        subject = f", {one['subject']}" if one.get("subject") else ""
        line = (
            f"[{one['confidence']:.3f}] {one['id']}{subject}: {_brief(given)}, not {_brief(gold)}"
        )
        parts.append(Listing(line, "\n".join(lines)))
    return parts


def _brief(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def _percent(part: float, whole: float = 1) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _origin(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts below a page's title: model, data, command and versions."""
    questions, models = provenance.get("questions", {}), provenance.get("models", [])
    facts = {"model": models[0]["path"], "weights": models[0]["weights"]} if models else {}
    facts |= {"seeds": len(models)} if len(models) > 1 else {}
    facts |= {"data": f"{questions['path']}: {questions['hash']}"} if questions else {}
    shown = ("version", "date", "command")
    return facts | {name: provenance[name] for name in shown if name in provenance}
