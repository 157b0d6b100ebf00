"""The report on a model and its base, in Markdown: one table, and what it is based on."""

from collections.abc import Mapping

from biomedlm_jax.errors import counted
from biomedlm_jax.qa.presentation import (
    FEW_GROUPS,
    cell_text,
    interval_text,
    joined,
    labelled_rows,
    p_text,
    points_text,
)

NOT_CHOSEN = "Not chosen, and no result: whoever picks the best of these has chosen on {}."


def versus_markdown(result: Mapping) -> str:
    """Return the summary that `versus` returns as Markdown."""
    models, on = result["models"], result["chosen_on"]
    split = scored_split(result)
    head, *rows = accuracy_cells(result, bold="**")
    rows = [[cell_text(first), *others] for first, *others in rows]
    text = [f"# {result['task']}: a model against its base", ""]
    text += [joined([head, [":--", ":--", *["--:"] * (len(head) - 2)], *rows]), ""]
    text += [f"- {line}" for line in versus_conclusions(result)]
    if on:
        heading = f"All settings on {on['split']} ({counted(on['n'], 'question')})"
        text += ["", f"## {heading}", "", _settings(models, "dev", chosen=True)]
    if any(one["not_chosen"] for one in models.values()):
        heading = f"The other settings on {split}: not chosen"
        text += ["", f"## {heading}", "", NOT_CHOSEN.format(split), ""]
        text += [_settings(models, "not_chosen")]
    return "\n".join([*text, "", "## What this is of", "", *labelled_rows(versus_sources(result))])


def scored_split(result: Mapping) -> str:
    """Return the name of the split that a comparison scored."""
    return result["task"].rpartition(", ")[2]


def accuracy_cells(result: Mapping, *, bold: str = "") -> list[list[str]]:
    """Return the head and the rows of the table of both models; `bold` surrounds the difference."""
    models, difference = result["models"], result["versus"]
    split, on = scored_split(result), result["chosen_on"]
    f1 = any(one["macro_f1"] for one in models.values())
    head = ["", "setting" + (f", chosen on {on['split']}" if on else ", not chosen")]
    head += [f"accuracy on {on['split']} [95 %]"] if on else []
    head += [f"accuracy on {split} [95 %]"] + ["macro-F1 [95 %]"] * f1
    lines = [head]
    for role, one in models.items():
        cells = [f"{role}: {one['path']}", one["setting"]]
        cells += [interval_text(one["dev"][one["setting"]])] if on else []
        cells += [interval_text(one["accuracy"])]
        lines.append(cells + ([interval_text(one["macro_f1"])] if f1 else []))
    points = f"{bold}{points_text(difference['difference'])}{bold}"
    outcome = f"{points}, {p_text(difference['p_value'])}"
    blank = [""] * (1 + bool(on))
    return [*lines, ["model minus base, in points", *blank, outcome, *[""] * f1]]


def versus_sources(result: Mapping) -> list[tuple[str, str]]:
    """Return what a comparison is of: names and hashes."""
    models, on = result["models"], result["chosen_on"]
    questions, shots = (result["provenance"][name] for name in ("questions", "shots"))
    rows = [(f"weights of the {role}", one["weights"]) for role, one in models.items()]
    rows += [(f"tokenizer of the {role}", one["tokenizer"]) for role, one in models.items()]
    rows += [(f"questions of {scored_split(result)}", f"{questions['path']}: {questions['hash']}")]
    rows += [(f"questions of {on['split']}", f"{on['path']}: {on['hash']}")] if on else []
    rows += [("shots of letter prompts", str(shots["count"]))]
    return rows + [(name, result["provenance"][name]) for name in ("version", "date", "command")]


def _settings(models: Mapping[str, Mapping], of: str, *, chosen: bool = False) -> str:
    head, *rows = settings_cells(models, of, chosen=chosen, bold="**")
    return joined([head, [":--", *["--:"] * len(models)], *rows])


def settings_cells(
    models: Mapping[str, Mapping], of: str, *, chosen: bool = False, bold: str = ""
) -> list[list[str]]:
    """Return the accuracies of all settings, with a head; `bold` surrounds those `chosen`."""
    names = dict.fromkeys(name for one in models.values() for name in one[of] or ())
    lines = [["setting", *models]]
    for name in names:
        cells = []
        for one in models.values():
            accuracy = (one[of] or {}).get(name)
            text = interval_text(accuracy) if accuracy else "-"
            is_chosen = chosen and name == one["setting"]
            cells.append(f"{bold}{text}, chosen{bold}" if is_chosen else text)
        lines.append([name, *cells])
    return lines


def versus_conclusions(result: Mapping) -> list[str]:
    """Return what a comparison allows to conclude, and what limits it."""
    split = scored_split(result)
    models, versus, on = result["models"], result["versus"], result["chosen_on"]
    n, groups, bootstrap = result["n"], result["groups"], result["bootstrap"]
    lines = []
    if on:
        line = (
            f"Each model has the setting of its highest accuracy on {on['split']} (of equals the "
        )
        line += f"first listed), and its result is the one answer to {split} with that."
        if any(one["not_chosen"] for one in models.values()):
            line += f" The other settings were scored on {split} after the choice."
        lines += [line]
        for role, one in models.items():
            if one["tied"]:
                lines += [f"As accurate for the {role} on {on['split']}: {'; '.join(one['tied'])}."]
            if one["trained_on_dev"]:
                lines += [f"The {role} was trained on {on['split']}, which chose its setting."]
        if on["left_out"]:
            left = counted(len(on["left_out"]), "question")
            lines += [f"{left} of {on['split']} also scored, or shots, did not choose."]
    else:
        why = result["not_chosen_because"]
        lines += [f"The settings were not chosen: {why}. The first of the list was used."]
    lacking = [role for role, one in models.items() if not one["chat_template"]]
    if len(lacking) == 1:
        lines += [f"The {lacking[0]} has no chat template, so it has fewer settings."]
    wins, losses = f"{versus['only_first']:,}", f"{versus['only_second']:,}"
    lines += [
        f"{n:,} questions of {split}: {wins} only the model answers right, {losses} only the base. "
        f"{versus['test']}, two-sided: {p_text(versus['p_value'])}. Chance: "
        f"{100 * result['chance']:.1f} %."
    ]
    units = f"{groups:,} groups of questions" if groups else "questions"
    lines += [
        f"Brackets are {100 * bootstrap['level']:.0f} % bootstrap intervals: "
        f"{bootstrap['resamples']:,} resamples of the {units}, seed {bootstrap['seed']}."
    ]
    if groups and groups < FEW_GROUPS:
        lines += [f"With fewer than {FEW_GROUPS} groups these intervals are too narrow."]
    if (questions := result["provenance"]["questions"])["limit"] is not None:
        lines += [f"Only the first {n:,} of {questions['in_split']:,} were scored."]
    for role, one in models.items():
        if one["truncated"]:
            lines += [f"Cut to fit the {role}: {counted(one['truncated'], 'question')}."]
        if one["trained_on"]:
            lines += [f"The {role} was trained on {split}: its accuracy is none of new questions."]
        if one["chose_checkpoint"]:
            lines += [f"{split} chose the checkpoint of the {role}: it is biased upwards."]
    if result["base_in_record"] is not None:
        stated = "has" if result["base_in_record"] else "does not have"
        lines += [f"The model's training record {stated} the weights of the base."]
    else:
        lines += ["The model has no training record that states what it was trained from."]
    return lines
