"""List the kernels of a step from a profile, longest first."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from biomedlm_jax.errors import InputError

# Names of cuDNN's kernels of fused attention, forward and backward.
CUDNN_ATTENTION = re.compile(r"cudnn.*(sdpa|fmha|mha|flash)|(sdpa|fmha|mha|flash).*cudnn", re.I)


def profile_steps(step: Callable[[], Any], folder: str | Path, *, steps: int = 3) -> dict:
    """Trace `steps` steps into `folder`, which TensorBoard reads, and list the longest kernels.

    `cudnn_attention` are the names of cuDNN's attention kernels among all that ran on a GPU; None
    elsewhere. Raises InputError if the profiler wrote no trace.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    earlier = set(Path(folder).rglob("*.xplane.pb"))
    with jax.profiler.trace(str(folder), profiler_options=options):
        for _ in range(steps):
            step()
    traces = sorted(set(Path(folder).rglob("*.xplane.pb")) - earlier)
    if not traces:
        raise InputError(f"the profiler wrote no trace into {folder}; is it writable?")
    kernels = top_kernels(jax.profiler.ProfileData.from_file(str(traces[-1])).planes)
    names = [kernel["name"] for kernel in kernels if CUDNN_ATTENTION.search(kernel["name"])]
    on_gpu = any(kernel["on"] == "gpu" for kernel in kernels)
    return {
        "trace": str(traces[-1]),
        "steps": steps,
        "kernels": kernels[:20],
        "cudnn_attention": names if on_gpu else None,
    }


def top_kernels(planes) -> list[dict]:
    """Return every kernel of a GPU's streams, or without a GPU every CPU operation, longest first.

    Each has `name`, `on` (gpu or cpu), `calls`, `seconds` and `share` of the total
    time. A loop's time excludes that of the operations in its body.
    """
    lines = [(plane.name, line) for plane in planes for line in plane.lines]
    streams = [
        line for p, line in lines if p.startswith("/device:GPU") and line.name.startswith("Stream")
    ]
    totals: dict[str, list[float]] = {}  # name -> seconds of each call
    for line in streams or [line for _, line in lines]:
        events = [e for e in line.events if streams or "hlo_op" in dict(e.stats)]
        for name, nanoseconds in _own_time(events):
            # XLA numbers operations of a kind: fusion, fusion.1, fusion.2
            totals.setdefault(re.sub(r"\.\d+$", "", name), []).append(nanoseconds / 1e9)
    everything = sum(map(sum, totals.values())) or 1.0
    on = "gpu" if streams else "cpu"
    kernels = [
        {"name": name, "on": on, "calls": len(t), "seconds": sum(t), "share": sum(t) / everything}
        for name, t in totals.items()
    ]
    return sorted(kernels, key=lambda kernel: -kernel["seconds"])


def _own_time(events: list) -> Iterator[tuple[str, float]]:
    """Yield names and durations of a line's events, less those of the events inside them."""
    open_events: list[list] = []  # [name, end, own duration], each inside the one before it
    for event in sorted(events, key=lambda event: (event.start_ns, -event.duration_ns)):
        while open_events and open_events[-1][1] <= event.start_ns:
            name, _, own = open_events.pop()
            yield name, own
        if open_events:
            open_events[-1][2] -= event.duration_ns
        open_events.append([event.name, event.start_ns + event.duration_ns, event.duration_ns])
    yield from ((name, own) for name, _, own in reversed(open_events))


def profile_lines(profile: dict, *, most: int = 12) -> list[str]:
    """Format the longest kernels that `profile_steps` measured, one per line."""
    lines = [f"the longest of {profile['steps']} steps of biomedlm_jax ({profile['trace']}):"]
    for kernel in profile["kernels"][:most]:
        figures = f"{kernel['share']:6.1%} {kernel['seconds']:9.4f} s {kernel['calls']:7,} calls"
        lines.append(f"  {figures}  {kernel['name'][:100]}")
    if profile["cudnn_attention"] is not None:
        names = ", ".join(profile["cudnn_attention"]) or "none"
        lines.append(f"cuDNN attention kernels among all that ran: {names}")
    return lines
