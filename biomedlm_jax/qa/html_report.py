"""The pages of reports: what report.json has, with its plot, for a browser."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from biomedlm_jax.errors import counted
from biomedlm_jax.html_page import Figure, Link, Listing, Section, Table, render_page
from biomedlm_jax.qa.disagreements import KINDS
from biomedlm_jax.qa.presentation import (
    account_rows,
    conclusions,
    flat,
    interval_text,
    p_text,
    points_text,
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

PAGE = "report.html"
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
    rows = [[*row, _page_of(name, name)] for row, name in zip(rows, summaries, strict=True)]
    one = next(iter(summaries.values()))
    parts = [Table([*head, "report"], rows), *conclusions(one)[:1]]
    facts = _origin(one["provenance"])
    return render_page(one["task"], [Section("Ways of scoring", parts)], facts=facts)


def versus_page(result: Mapping) -> str:
    """Return the page of a model and its base, as report.json has them."""
    models, on, split = result["models"], result["chosen_on"], scored_split(result)
    parts: list[Any] = [_table(accuracy_cells(result))]
    parts += [
        _page_of(role, f"Report of the {role}: {one['path']}") for role, one in models.items()
    ]
    sections = [Section("Result", [*parts, *versus_conclusions(result)])]
    if on:
        cells = settings_cells(models, "dev", chosen=True)
        heading = f"All settings on {on['split']}"
        sections += [Section(heading, [_table(cells, f"{on['n']:,} questions")])]
    if any(one["not_chosen"] for one in models.values()):
        parts = [NOT_CHOSEN.format(split), _table(settings_cells(models, "not_chosen"))]
        sections += [Section(f"The other settings on {split}", parts)]
    if parts := _different(result["disagreements"]):
        sections += [Section("Questions with different answers", parts)]
    if rows := account_rows({"truncated_ids": [], "indistinct_ids": [], **result}):
        sections += [Section("Left out or noted", [Table(["reason", "questions"], rows)])]
    sections += [Section("What this is of", [Table(["name", "value"], versus_sources(result))])]
    title = f"{result['task']}: a model against its base"
    versus = result["versus"]
    difference = f"{points_text(versus['difference'])}, {p_text(versus['p_value'])}"
    facts = {"model minus base, in points": difference}
    facts |= {f"accuracy of the {role}": interval_text(models[role]["accuracy"]) for role in models}
    facts |= {"questions": result["n"], **_origin(result["provenance"])}
    return render_page(title, sections, facts=facts)


def _page_of(folder: str, text: str) -> Link:
    return Link(text, f"{quote(folder)}/{PAGE}")


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
        chances = [f", probability {x:.3f}" for x in one["probabilities"] or ()]
        pairs = zip(one["scores"], chances or [""] * len(options), strict=True)
        figures = [f" (score {score:.4g}{chance})" for score, chance in pairs]
        text = _question(one, {"answer": one["prediction"], "gold": one["gold"]}, figures)
        line = f"[{one['confidence']:.3f}] {_name(one)}: {_brief(given)}, not {_brief(gold)}"
        parts.append(Listing(line, text))
    return parts


def _different(disagreements: Mapping[str, Mapping]) -> list[str | Listing]:
    """Return a paragraph for each kind of disagreement, and a listing for each listed question."""
    parts: list[str | Listing] = []
    for kind, title in KINDS.items():
        of_kind = disagreements[kind]
        more = f", the first {len(of_kind['listed'])} of them listed"
        more = more if len(of_kind["listed"]) < of_kind["n"] else ""
        parts.append(f"{title}: {counted(of_kind['n'], 'question')}{more}.")
        for one in of_kind["listed"]:
            marks = {role: one[role] for role in ("gold", "model", "base")}
            answers = (f"{role}: {_brief(str(one['options'][n]))}" for role, n in marks.items())
            text = f" {_brief(one['question'])}" if one.get("question") else ""
            line = f"{_name(one)}:{text} [{'; '.join(answers)}]"
            parts.append(Listing(line, _question(one, marks)))
    return parts if any(one["n"] for one in disagreements.values()) else []


def _question(one: Mapping, marks: Mapping[str, int], figures: Sequence[str] = ()) -> str:
    """Return the lines of a question: its texts, and its options with figures and marks."""
    lines = [text for text in (one.get("context"), one.get("question")) if text]
    lines += [""] if lines else []
    for number, option in enumerate(one["options"]):
        of_option = [mark for mark, place in marks.items() if place == number]
        mark = f" <- {', '.join(of_option)}" if of_option else ""
        lines += [f"{chr(65 + number)}. {option}{figures[number] if figures else ''}{mark}"]
    return "\n".join(lines)


def _name(one: Mapping) -> str:
    return f"{one['id']}, {one['subject']}" if one.get("subject") else one["id"]


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
