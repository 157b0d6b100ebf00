"""Compare the speed of two checkouts of this package: decoding and the training step, on the CPU.

    git worktree add ../old REVISION
    python scripts/compare_revisions.py --old=../old --new=.

Each round starts `biomedlm bench` of both checkouts, each in its own process, in an order that
alternates. A process times `--calls` calls of ours, without peers, after one that compiles. Prints
per case the median over rounds of both sides' median seconds and the median ratio within a round,
new over old: below 1, the new checkout is faster. Run it on an otherwise idle machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

OURS = "biomedlm_jax"
WITHOUT_PEERS = {"generate": "--hf=", "train": "--peers="}
EARLIER = "decode"  # the name of `generate` in older revisions, which have no --details


def medians(figures: Mapping) -> Iterator[tuple[str, float]]:
    """Yield each case and the median seconds of our side, from the JSON output of `bench`.

    The level of nesting at which the cases are differs between revisions.
    """
    for case, value in figures.items():
        if isinstance(value, dict) and OURS in value:
            if "median_seconds" in value[OURS]:
                yield case, value[OURS]["median_seconds"]
        elif isinstance(value, dict):
            yield from medians(value)


def measure(checkout: Path, what: str, flags: list[str]) -> dict[str, float]:
    """Run `biomedlm bench WHAT` of a checkout; return the median seconds of each case.

    Raises ValueError if the process fails or its output has no figures.
    """
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory, "figures.json")
        earlier = not (checkout / "biomedlm_jax" / "benchmarks" / "bench_generate.py").exists()
        name = EARLIER if earlier and what == "generate" else what
        program = [sys.executable, "-m", "biomedlm_jax.cli", "bench", name, WITHOUT_PEERS[what]]
        program += [] if earlier else ["--nodetails"]
        environment = {**os.environ, "PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [*program, *flags, f"--json={output}"],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise ValueError(f"bench {what} of {checkout} failed:\n{done.stderr[-2000:]}")
        cases = dict(medians(json.loads(output.read_text(encoding="utf-8"))))
    if not cases:
        raise ValueError(f"bench {what} of {checkout} wrote no figures of {OURS}")
    if what == "train":  # one case, whose name differs between revisions
        (seconds,) = cases.values()
        return {"training step": seconds}
    return cases


def compare(sides: Mapping[str, Path], what: str, flags: list[str], rounds: int) -> None:
    """Measure both sides in alternating rounds; print a line per case."""
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            print(f"{what}, round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            seconds[name].append(measure(sides[name], what, flags))
    for case in seconds["new"][0]:
        old, new = ([one[case] for one in seconds[name]] for name in ("old", "new"))
        ratio = statistics.median(n / o for o, n in zip(old, new, strict=True))
        middle = (f"{statistics.median(values):10.4f}" for values in (old, new))
        print(f"{case:26}", *middle, f"{ratio:10.3f}", flush=True)


def main() -> None:
    """Read the flags, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", required=True, type=Path, help="directory of the older checkout")
    parser.add_argument("--new", required=True, type=Path, help="directory of the newer checkout")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each side")
    parser.add_argument("--calls", type=int, default=5, help="timed calls of each process")
    parser.add_argument("--layers", type=int, default=8, help="layers of the model")
    parser.add_argument("--width", type=int, default=384, help="width of the model")
    parser.add_argument("--heads", type=int, default=6, help="attention heads")
    parser.add_argument(
        "--what", choices=WITHOUT_PEERS, nargs="+", default=list(WITHOUT_PEERS), help="what to time"
    )
    options = parser.parse_args()

    sides = {"old": options.old.resolve(), "new": options.new.resolve()}
    for path in sides.values():
        if not (path / "biomedlm_jax" / "cli.py").exists():
            parser.error(f"expected a checkout with biomedlm_jax/cli.py, got {path}")
    flags = [f"--{name}={getattr(options, name)}" for name in ("layers", "width", "heads")]
    flags.append(f"--rounds={options.calls}")
    print(f"{'seconds':26} {'old':>10} {'new':>10} {'new / old':>10}")
    try:
        for what in options.what:
            compare(sides, what, flags, options.rounds)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
