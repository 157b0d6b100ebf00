"""Run several benchmarks, store their figures as they end, and write the comparison page."""

import datetime
import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from biomedlm_jax.benchmarks.rounds import cores, progress, recorded
from biomedlm_jax.benchmarks.speed_page import IMAGES, busy_line, write_page
from biomedlm_jax.errors import InputError, one_line
from biomedlm_jax.files import read_json, write_json
from biomedlm_jax.outputs import check_output

FIGURES, ROUNDS = "bench.json", "rounds.jsonl"
PAGE = ("index.html", "bench.md", FIGURES, ROUNDS)


def measure_all(
    benchmarks: Mapping[str, Callable[[], dict]],
    out: str | Path,
    *,
    command: str = "",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run the benchmarks in turn; write figures and page into the directory `out`; return them.

    `benchmarks` maps a name of `speed_page.KINDS` to a call that returns its figures, `command` is
    shown on the page. bench.json is written after each, rounds.jsonl after each round. Ctrl-C and
    SIGTERM keep both and write the page of what has ended. A benchmark that fails has an error line
    instead of figures.
    """
    out = Path(out)
    check_output(out, replaceable=is_comparison, overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    for name in (*PAGE, *IMAGES):
        (out / name).unlink(missing_ok=True)
    start = time.monotonic()
    report: dict[str, Any] = {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "complete": False,
        "cores": cores(),
        "load_before": load(),
        "results": {},
    }

    def save() -> None:
        report.update(seconds=time.monotonic() - start, load_after=load())
        write_json(out / FIGURES, report)

    try:
        for kind, measure in benchmarks.items():
            progress(f"bench {kind}")
            before = load()
            try:
                with recorded(out / ROUNDS, kind=kind):
                    result = measure()
            except InputError as error:
                result = {"errors": [str(error)]}
            except Exception as error:
                # Of a peer or of its compiler; the others are still measured.
                traceback.print_exc()
                result = {"errors": [f"{type(error).__name__}: {one_line(str(error))[:200]}"]}
            report["results"][kind] = {**result, "load_before": before, "load_after": load()}
            save()
        report["complete"] = True
    except (KeyboardInterrupt, SystemExit) as interrupt:  # Ctrl-C, SIGTERM
        save()
        write_page(report, out)
        done = ", ".join(report["results"]) or "no benchmark"
        kept = ", ".join(name for name in PAGE if (out / name).exists())
        progress(f"interrupted after {done}; {out} keeps {kept}; --overwrite starts anew")
        interrupt.saved = True  # ty: ignore[invalid-assignment]  # it was printed
        raise
    save()
    write_page(report, out)
    if line := busy_line(report):
        progress(line)
    return report


def is_comparison(path: Path) -> bool:
    """Return whether a directory is one that `measure_all` writes."""
    if (path / FIGURES).exists():
        return "results" in read_json(path / FIGURES)
    return {file.name for file in path.iterdir()} <= {*PAGE}


def load() -> float | None:
    """Return the load average of one minute, None where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
