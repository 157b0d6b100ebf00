"""inspect_run(): what a run directory says of its training, its checkpoints and its faults."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biomedlm_jax.buckets import as_path
from biomedlm_jax.corpus.mixtures import describe_source, read_sources
from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.files import read_json
from biomedlm_jax.integrity import SUMS, has_sums
from biomedlm_jax.interop.health import check_directory
from biomedlm_jax.training.goodput import PARTS, goodput
from biomedlm_jax.training.lock import holder_of
from biomedlm_jax.training.metrics import plot_losses, read_events, read_metrics
from biomedlm_jax.training.provenance import RUN_FILE
from biomedlm_jax.training.saved_steps import is_committed, step_folders


def inspect_run(run: str | Path, *, verify: bool = False) -> dict[str, Any]:
    """Return the facts of a run, for `describe`; with `verify`, all files are read and compared.

    Raises InputError if `run` is no run directory. Writes nothing.
    """
    run = as_path(run)
    if not (run / RUN_FILE).exists():
        raise InputError(f"{run} holds no run ({RUN_FILE}); name a --workdir of pretrain, finetune")
    record, metrics, events = read_json(run / RUN_FILE), read_metrics(run), read_events(run)
    losses = [line for line in metrics if "loss" in line]
    evaluations = [line for line in metrics if "train_loss" in line or "dev_loss" in line]
    folders = step_folders(run)
    saved = [step for step, path in folders if is_committed(path)]
    states = {step: "finished" if has_sums(path) else f"without {SUMS}" for step, path in folders}
    training = record.get("training", {})
    steps = training.get("steps")
    facts: dict[str, Any] = {
        "run": str(run),
        "recipe": record.get("recipe"),
        "steps": steps,
        "epochs": training.get("epochs"),
        "last_step": losses[-1]["step"] if losses else None,
        "last": _for_json(losses[-1]) if losses else {},
        "last_evaluation": evaluations[-1] if evaluations else {},
        "checkpoints": {str(step): states[step] for step in saved},
        "lock": holder_of(run),
        "starts": [event for event in events if event["event"] == "start"],
        "skipped": [event for event in events if event["event"] in ("skip", "spike")],
        "history": record.get("history", []),
        "goodput": goodput(events),
    }
    batch, rows = training.get("batch_size"), _rows_of(run)
    if record.get("recipe") == "pretrain" and saved and rows:
        tokens = saved[-1] * batch * rows["length"]
        there = rows["splits"]["train"]
        facts["position"] = {
            "step": saved[-1],
            "tokens": tokens,
            "rows": saved[-1] * batch,
            "passes": saved[-1] * batch / max(1, there["rows"]),
        }
        if sources := read_sources(run, record, rows=saved[-1] * batch):
            del facts["position"]["passes"]  # over the first source alone
            facts["position"]["sources"] = sources
    left = [step for step, path in folders if not is_committed(path)]
    facts["checkpoints"] |= dict.fromkeys(map(str, left), "never finished")
    aside = sorted(path.name for path in folders[0][1].parent.iterdir()) if folders else []
    facts["set_aside"] = [name for name in aside if name.endswith((".damaged", ".unfinished"))]
    if verify:
        facts["health"] = {part.name: part.line() for part in check_directory(run)}
    return facts


def _for_json(line: dict[str, Any]) -> dict[str, Any]:
    return {name: x if math.isfinite(x) else str(x) for name, x in line.items()}


def _rows_of(run: Path) -> dict[str, Any]:
    file = run / "manifest.json"
    return read_json(file) if file.exists() else {}


def describe(facts: Mapping[str, Any]) -> list[str]:
    """Return the lines that a person reads."""
    lines = [f"{name}: {value}" for name, value in (*fact_rows(facts), *health_rows(facts))]
    for event in facts["starts"]:
        nouns = (("process", "processes"), ("device", "devices"))
        where = ", ".join(counted(event[plural], noun, plural) for noun, plural in nouns)
        line = f"start {start_time(event)} UTC after step {event['step']:,}, {where}"
        changed = changed_settings(event)
        lines.append(line + (f"; changed: {changed}" if changed else ""))
    lines += [f"{e['event']} at step {e['step']:,}: {e.get('reason')}" for e in facts["skipped"]]
    return lines + ([goodput_line(facts)] if facts["goodput"]["goodput"] is not None else [])


def fact_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names and values of the facts that are one line each, as terminal and page do."""
    of = f" of {facts['steps']:,}" if facts["steps"] else ""
    last, figures, lock = facts["last"], facts["last_evaluation"], facts["lock"]
    rows = [("directory", facts["run"]), ("recipe", str(facts["recipe"]))]
    rows.append(("step", f"{last['step']:,}{of}" if last else f"none{of} is recorded"))
    rows += [("loss", f"{float(last['loss']):.4g}")] if last else []
    if figures:
        values = (f"{k} {v:.4g}" for k, v in figures.items() if k != "step")
        rows.append((f"evaluation after step {figures['step']:,}", ", ".join(values)))
    if position := facts.get("position"):
        value = f"{position['tokens']:,} tokens, {position['rows']:,} rows"
        if "passes" in position:
            value += f", {position['passes']:.2f} passes over the data"
        rows.append((f"saved at step {position['step']:,}", value))
        for source in position.get("sources", ()):
            name, line = source["name"], describe_source(source)
            rows.append((f"source {name}", line.removeprefix(f"{name}: ")))
    states = (f"{step} ({state})" for step, state in facts["checkpoints"].items())
    rows.append(("checkpoints", ", ".join(states) or "none"))
    aside = ", ".join(f"checkpoints/{name}" for name in facts["set_aside"])
    rows += [("set aside", aside)] if aside else []
    writer = f"process {lock.get('pid')} on {lock.get('host')}{lock['state']}" if lock else "none"
    rows.append(("locked by", writer))
    versions = [event["versions"] for event in facts["starts"] if event.get("versions")]
    if versions:
        rows.append(("versions", ", ".join(f"{k} {v}" for k, v in versions[-1].items())))
    return rows


def health_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the parts of a verified run, with what is damaged; [] if it was not verified."""
    return [(k, v.removeprefix(f"{k}: ")) for k, v in facts.get("health", {}).items()]


def start_time(event: Mapping[str, Any]) -> str:
    """Return the date and time (UTC) of an event."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event["time"]))


def changed_settings(event: Mapping[str, Any]) -> str:
    """Return the settings that a start changed, before and after; "" if it changed none."""
    return ", ".join(f"{k}: {a!r} -> {b!r}" for k, (a, b) in event.get("changed", {}).items())


def goodput_line(facts: Mapping[str, Any]) -> str:
    """Return the line about a run's time; its goodput is not None."""
    use = facts["goodput"]
    parts = (f"{part} {use['seconds'][part]:,.0f} s" for part in PARTS)
    return (
        f"goodput {use['goodput']:.1%} of {use['wall_seconds']:,.0f} s in "
        f"{counted(use['starts'], 'start')} ({', '.join(parts)}); "
        f"{counted(use['steps_repeated'], 'step was repeated', 'steps were repeated')}"
    )


def draw(run: str | Path) -> Path:
    """Draw the losses of a run, with its restarts, and return the file."""
    return plot_losses(as_path(run))
