"""Goodput: how much of a run's time were steps that its result has."""

import contextlib
import time
from collections.abc import Generator, Iterable, Mapping
from typing import Any

PARTS: tuple[str, ...] = ("start", "step", "data", "save", "evaluate")


class Stopwatch:
    """Seconds of one start of a run by part: `PARTS`; `start` has the first step."""

    def __init__(self):
        self._began = self._last = time.monotonic()
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.stepped = False  # whether a step has ended

    def lap(self, part: str) -> None:
        """Count the time since the last call as this part."""
        now = time.monotonic()
        self.seconds[part if part != "step" or self.stepped else "start"] += now - self._last
        self._last = now

    @contextlib.contextmanager
    def count(self, part: str, before: str = "step") -> Generator[None]:
        """Count the time until the block as `before`, and the block as `part`."""
        self.lap(before)
        try:
            yield
        finally:
            self.lap(part)

    def rounded(self) -> dict[str, float]:
        """Return the seconds, for JSON."""
        return {part: round(seconds, 3) for part, seconds in self.seconds.items()}


def goodput(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a run's events say of its time.

    Returns:
      starts: how often it was started. wall_seconds: from the first start to the last event; the
      time between two starts counts, unless the run was finished. seconds: of each part, as far as
      it was recorded before a process was killed. steps_repeated: steps that ran again after a
      kill, as far as they were logged. goodput: the share of the wall time that were steps of the
      result.
    """
    seconds, starts, repeated = dict.fromkeys(PARTS, 0.0), 0, 0
    timed = 0  # steps whose seconds were recorded, those that ran again twice
    latest: Mapping[str, float] = {}
    done, wall = 0, 0.0
    last: tuple[float, str] | None = None  # time and name of the event before
    for event in events:
        now, name = event["time"], event["event"]
        if name == "start":
            starts, step = starts + 1, event.get("step", 0)
            repeated += max(0, done - step, event.get("reached", 0) - step)
            timed += max(0, done - step)
            seconds = {part: seconds[part] + latest.get(part, 0.0) for part in PARTS}
            latest = {}
            if last is None or last[1] == "finish":
                wall += event.get("seconds", {}).get("start", 0.0)
                last = now, name
        if last is not None:
            wall += now - last[0]
        last, latest = (now, name), event.get("seconds", latest)
        done = event.get("step", done)
    seconds = {part: seconds[part] + latest.get(part, 0.0) for part in PARTS}
    per_step = seconds["step"] / max(1, done + timed)
    return {
        "starts": starts,
        "wall_seconds": wall,
        "seconds": seconds,
        "steps_repeated": repeated,
        "goodput": min(1.0, per_step * done / wall) if wall else None,
    }
