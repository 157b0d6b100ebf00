"""Disturb a small pre-training with random faults, and compare its end with an undisturbed run.

    python scripts/soak.py --minutes=60 --seed=0 --out=soak

The rows are generated. Every start is `biomedlm pretrain` in a process of its own, forked from one
that has imported the package; in both runs, one batch in 61 has a loss that is not finite. After
each fault the same command continues the run, until it has all its steps. When the time is over it
ends without further faults. The number of steps is chosen for the time.

The table counts, for each fault: how often it was injected; after how many of them the run went
on; the steps that ran again; and bytes lost of finished work, which are those of the newest
checkpoint that was finished and whole, if the run resumed from an older one, and those of the lines
of metrics.jsonl up to its step that are no longer there. The exit code is 1 if any are lost, a
start ends otherwise than it should, or the parameters, the optimizer, the position in the data or
the losses differ from those of the undisturbed run in any bit.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
DAMAGE = ("flipped bit", "truncated file")  # the next start is refused, and needs --fallback
KINDS = (
    "SIGKILL",
    "SIGKILL in the start",
    *(number.name for number in SIGNALS),
    "two signals",
    *DAMAGE,
    "removed checkpoint",
    "torn line of metrics",
    "stale lock",
    "full disk",
)
SPEED = ("step_seconds", "tokens_per_second", "mfu")
POISON = 61  # a batch whose sum of token ids is a multiple has no finite loss
SUMS = "SHA256SUMS"  # a checkpoint with this file is finished
PATIENCE = 600.0  # seconds without a sign of life


class Failure(Exception):
    """The run did not do what it should."""


# ---- In processes of their own, forked from one that has imported the package.


def make_rows(path: Path) -> None:
    """Write token rows of generated text."""
    from biomedlm_jax.corpus.documents import Document
    from biomedlm_jax.corpus.tokenizer import train_tokenizer
    from biomedlm_jax.corpus.tokens import build_tokens

    rng = random.Random(0)
    words = ["cell", "gene", "protein", "patient", "trial", "dose", "liver", "kidney", "tumour"]
    texts = [f"{' '.join(rng.choices(words, k=40))} {rng.random()}." for _ in range(400)]
    tokenizer = train_tokenizer(iter(texts), vocab_size=300)
    documents = (Document(text, f"{i}") for i, text in enumerate(texts))
    build_tokens(documents, tokenizer, path, length=32, validation_fraction=0.05)


def run_command(arguments: Sequence[str], log: Path, xla: str, pause: float) -> None:
    """Run `biomedlm *arguments`, with losses that are not finite, and end with its exit code.

    Every batch comes `pause` seconds late: a short run must not end before it is disturbed.
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    os.environ["XLA_FLAGS"] = xla
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup

    import jax.numpy as jnp

    from biomedlm_jax.cli import main
    from biomedlm_jax.corpus.batches import Batches
    from biomedlm_jax.training import pretrain

    original = pretrain.next_token_loss

    def poisoned(model: Any, tokens: Any, **options: Any) -> Any:
        loss = original(model, tokens, **options)
        return jnp.where(tokens.sum() % POISON == 0, jnp.nan, loss)

    def late(self: Batches, following: Any = Batches.__next__) -> Any:
        time.sleep(pause)
        return following(self)

    pretrain.next_token_loss = poisoned  # ty: ignore[invalid-assignment]
    Batches.__next__ = late
    sys.exit(main(list(arguments)))


def compare_runs(run: Path, expected: Path, result: Path) -> None:
    """Write how two finished runs differ, as a JSON list of lines."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp
    from etils import epath

    def arrays(of: Path, item: str) -> dict[str, Any]:
        folder = of / "checkpoints" / str(finished_steps(of)[-1]) / item
        tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder)).tree
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        read = ocp.PyTreeCheckpointer().restore(folder, restore_args=how)
        leaves = jax.tree_util.tree_leaves_with_path(read)
        return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}

    differing = []
    if finished_steps(run) != finished_steps(expected):
        differing.append(f"checkpoints: {finished_steps(run)}, not {finished_steps(expected)}")
    for item in ("model", "optimizer"):
        got, wanted = arrays(run, item), arrays(expected, item)
        differing += [
            f"{item}{name}"
            for name in sorted({*got, *wanted})
            if name not in got
            or name not in wanted
            or got[name].dtype != wanted[name].dtype
            or got[name].tobytes() != wanted[name].tobytes()
        ]
    positions = [
        of / "checkpoints" / str(finished_steps(of)[-1]) / "data" / "metadata"
        for of in (run, expected)
    ]
    if positions[0].read_bytes() != positions[1].read_bytes():
        differing.append("the position in the data")
    lines = [
        [json.dumps({k: v for k, v in line.items() if k not in SPEED}) for line in metrics(of)]
        for of in (run, expected)
    ]
    if lines[0] != lines[1]:
        pairs = enumerate(zip(*lines, strict=False), start=1)
        first = next((number for number, (a, b) in pairs if a != b), min(map(len, lines)) + 1)
        differing.append(f"metrics.jsonl from line {first} of {len(lines[0])}, {len(lines[1])}")
    result.write_text(json.dumps(differing))


# ---- What a run directory holds, read without the package.


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]


def finished_steps(run: Path) -> list[int]:
    """Return the steps of finished checkpoints, ascending."""
    folder = run / "checkpoints"
    paths = folder.iterdir() if folder.exists() else ()
    return sorted(int(p.name) for p in paths if p.name.isdecimal() and (p / SUMS).exists())


def last_lines(path: Path) -> list[dict[str, Any]]:
    """Return some of the last complete lines of a JSON lines file."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().rpartition(b"\n")[0].split(b"\n")
    values = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the first one may be cut off
            values.append(json.loads(line))
    return [value for value in values if isinstance(value, dict)]


def last_step(run: Path) -> int:
    """Return the last step of a run's metrics, 0 without one."""
    return max((line["step"] for line in last_lines(run / "metrics.jsonl")), default=0)


def lines_up_to(content: bytes, step: int) -> bytes:
    """Return the beginning of metrics.jsonl: the complete lines of steps up to `step`."""
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    while lines and json.loads(lines[-1])["step"] > step:
        lines.pop()
    return b"".join(lines)


# ---- Faults.


@dataclasses.dataclass
class Count:
    """A row of the table."""

    injected: int = 0
    recovered: int = 0
    repeated: int = 0
    lost: int = 0


@dataclasses.dataclass
class Finished:
    """What must be there after the next start: the newest whole step, its bytes, the metrics."""

    last: int  # step that had run
    step: int
    size: int
    lines: bytes


class Soak:
    """A run that is started, disturbed and started again."""

    def __init__(self, out: Path, run: Path, settings: dict[str, Any], *, seed: int):
        self.out, self.run, self.settings = out, run, settings
        self.counts = {kind: Count() for kind in KINDS}
        self.starts, self.pause = 0, 0.0
        self._rng = random.Random(seed)
        self._waiting: list[str] = []
        self._context = multiprocessing.get_context("forkserver")
        self._offset = 0  # of the events of the newest start
        self._newest_run = run  # of the newest start

    @property
    def log(self) -> Path:
        """The output of the newest start."""
        return self.out / "last.log"

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run a function in a process."""
        self.ended(self._fork(function, *arguments), [0])

    def start(self, *, run: Path | None = None, fallback: bool = False) -> Any:
        """Start the command in a process."""
        self.starts += 1
        self._newest_run = run or self.run
        events = self._newest_run / "events.jsonl"
        # A torn last line, which a full disk leaves, is replaced: its place is not the end.
        self._offset = events.read_bytes().rfind(b"\n") + 1 if events.exists() else 0
        flags = [f"--config.{name}={value}" for name, value in self.settings.items()]
        flags += [f"--workdir={run or self.run}", *(["--fallback"] if fallback else [])]
        config = f"--config={ROOT / 'configs' / 'pretrain.py'}:tiny"
        xla, pause = os.environ.get("XLA_FLAGS", ""), 0 if run else self.pause
        return self._fork(run_command, ["pretrain", config, *flags], self.log, xla, pause)

    def _fork(self, function: Callable[..., None], *arguments: Any) -> Any:
        process = self._context.Process(target=function, args=arguments, daemon=True)
        process.start()
        return process

    def disturb(
        self,
        kinds: Sequence[str],
        *,
        over: Callable[[int], bool],
        start_seconds: float,
        most_steps: int,
    ) -> None:
        """Run to the last step, with faults until `over(how many there were)`."""
        injected, before = 0, None
        pending: list[str] = []  # faults that the run has not recovered from
        fallback = False
        while True:
            kind = None if over(injected) else self._next(kinds)
            process = self.start(fallback=fallback)
            if kind is None:
                disturbed = False
                self.ended(process, [0])
            else:
                disturbed = self._inject(kind, process, start_seconds, most_steps)
            if before is not None and self._started():
                self._check(before, self.counts[pending[0]])
                for one in pending:
                    self.counts[one].recovered += 1
                before, pending, fallback = None, [], False
                for aside in (self.run / "checkpoints").glob("*.*"):
                    shutil.rmtree(aside, ignore_errors=True)
            if kind is None or not disturbed:
                return
            damaged = None
            if before is None:
                kind, damaged = self._damage(kind)
                before = self._finished_work(but=damaged)
            injected += 1
            self.counts[kind].injected += 1
            pending.append(kind)
            print(f"step {last_step(self.run)}: {kind}", file=sys.stderr, flush=True)
            if damaged is not None:
                fallback = True
                self.ended(self.start(), [2])
                line = self.log.read_text(errors="replace").splitlines()[-1]
                if "error: the checkpoint " not in line:
                    raise self._failure("does not name the damage")

    def _next(self, kinds: Sequence[str]) -> str:
        """Return a fault: all come equally often, in random order."""
        if not self._waiting:
            self._waiting = self._rng.sample(kinds, len(kinds))
        return self._waiting.pop()

    def _inject(self, kind: str, process: Any, start_seconds: float, most_steps: int) -> bool:
        """End a run by a fault; return False if it had finished before."""
        rng = self._rng
        if kind == KINDS[1]:
            time.sleep(rng.random() * start_seconds)
            return self._signal(process, [signal.SIGKILL], [-signal.SIGKILL])
        self.wait(self._started, process)
        goal = self._begin() + rng.randint(1, most_steps)
        self.wait(lambda: last_step(self.run) >= goal or not process.is_alive(), process)
        if kind in (*DAMAGE, "removed checkpoint"):  # one before it must be whole
            run = self.run
            self.wait(lambda: len(finished_steps(run)) > 1 or not process.is_alive(), process)
        time.sleep(rng.random() * 0.1)  # in a step, a save or an evaluation
        if kind == "full disk":
            return self._fill_disk(process)
        numbers = [number for number in SIGNALS if number.name == kind]
        if kind == "two signals":
            numbers = rng.sample(SIGNALS, 2)
        numbers, codes = (
            (numbers, [128 + number for number in numbers])
            if numbers
            else ([signal.SIGKILL], [-signal.SIGKILL])
        )
        return self._signal(process, numbers, codes)

    def _signal(self, process: Any, numbers: Sequence[int], codes: Sequence[int]) -> bool:
        for number in numbers:
            if process.is_alive():
                os.kill(process.pid, number)
        return self.ended(process, codes)

    def _fill_disk(self, process: Any) -> bool:
        filler = self.run.parent / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                while process.is_alive():  # steps that are deleted make room again
                    for size in (2**20, 2**12, 1):
                        with contextlib.suppress(OSError):
                            while process.is_alive():
                                file.write(b"\0" * size)
                    time.sleep(0.01)
        finally:
            filler.unlink(missing_ok=True)
        return self.ended(process, [1])

    def _damage(self, kind: str) -> tuple[str, int | None]:
        """Change what a killed run left; return the fault, and the step that is damaged."""
        rng, steps = self._rng, finished_steps(self.run)
        # The only checkpoint is not passed over: the run would be lost, and is refused.
        if kind in (*DAMAGE, "removed checkpoint") and len(steps) < 2:
            return KINDS[0], None
        newest = self.run / "checkpoints" / str(steps[-1] if steps else 0)
        if kind in DAMAGE:
            names = [line.split("  ", 1)[1] for line in (newest / SUMS).read_text().splitlines()]
            path = rng.choice([newest / n for n in names if (newest / n).stat().st_size])
            content = bytearray(path.read_bytes())
            if kind == DAMAGE[0]:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            else:
                del content[rng.randrange(len(content)) :]
            path.write_bytes(content)
            return kind, steps[-1]
        if kind == "removed checkpoint":
            shutil.rmtree(newest)
        elif kind == "torn line of metrics":
            line = json.dumps({"step": last_step(self.run) + 1, "loss": rng.random()})
            with (self.run / "metrics.jsonl").open("a") as file:
                file.write(line[: rng.randint(1, len(line) - 1)])
        elif kind == "stale lock":
            lock = {"host": "another.host", "pid": 1, "pid_started": "1", "key": "a"}
            (self.run / "lock.json").write_text(json.dumps({**lock, "heartbeat": 3}))
        return kind, None

    def _finished_work(self, *, but: int | None) -> Finished:
        """Return what the next start must continue from; `but` is a step that is damaged."""
        step = max((s for s in finished_steps(self.run) if s != but), default=0)
        files = (self.run / "checkpoints" / str(step)).rglob("*") if step else ()
        size = sum(file.stat().st_size for file in files if file.is_file())
        path = self.run / "metrics.jsonl"
        lines = lines_up_to(path.read_bytes() if path.exists() else b"", step)
        return Finished(last=last_step(self.run), step=step, size=size, lines=lines)

    def _check(self, before: Finished, count: Count) -> None:
        """Count what the newest start has lost and repeats."""
        begin = self._begin()
        count.repeated += max(0, before.last - begin)
        if begin < before.step:
            count.lost += before.size
        now = (self.run / "metrics.jsonl").read_bytes()
        if not now.startswith(before.lines):
            there = {*now.splitlines()}
            count.lost += sum(len(x) for x in before.lines.splitlines() if x not in there) or 1

    def _new_events(self) -> list[dict[str, Any]]:
        """Return the events of the newest start."""
        path = self.run / "events.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().rpartition(b"\n")[0].split(b"\n")
        # After a full disk, the first line may follow a part of an older one.
        return [json.loads(x[max(0, x.rfind(b'{"time"')) :]) for x in lines if b'{"time"' in x]

    def _started(self) -> bool:
        """Return whether the newest start has restored the run."""
        return any(event["event"] == "start" for event in self._new_events())

    def _begin(self) -> int:
        """Return the step after which the newest start began."""
        return next(event["step"] for event in self._new_events() if event["event"] == "start")

    def wait(self, condition: Callable[[], bool], process: Any) -> None:
        """Wait for a condition, which the end of the process must not prevent."""
        limit = time.monotonic() + PATIENCE
        while not condition():
            if not process.is_alive() and not condition():
                raise self._failure(f"ended with {process.exitcode}")
            if time.monotonic() > limit:
                process.kill()
                raise self._failure(f"shows no progress for {PATIENCE:g} s")
            time.sleep(0.01)

    def ended(self, process: Any, codes: Sequence[int]) -> bool:
        """Wait for the end with one of the codes; return False if it has finished instead."""
        limit = time.monotonic() + PATIENCE
        sign = None
        while process.is_alive():  # to the last step it may take long
            if (now := last_step(self._newest_run)) != sign:
                limit, sign = time.monotonic() + PATIENCE, now
            process.join(0.5)
            if time.monotonic() > limit:
                process.kill()
                raise self._failure(f"shows no progress for {PATIENCE:g} s")
        if process.exitcode == 0 and 0 not in codes:
            return False
        if process.exitcode not in codes:
            raise self._failure(
                f"ended with {process.exitcode}, not {' or '.join(map(str, codes))}"
            )
        return True

    def _failure(self, what: str) -> Failure:
        text = self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
        return Failure(f"start {self.starts} {what}; its output ends with:\n{text}")

    def table(self) -> list[str]:
        """Return the table of faults."""
        rows: list[tuple[str, ...]]
        rows = [("fault", "injected", "recovered", "steps repeated", "bytes lost")]
        counts = [dataclasses.astuple(count) for count in self.counts.values()]
        rows += [(kind, *map(str, row)) for kind, row in zip(self.counts, counts, strict=True)]
        total = [sum(column) for column in zip(*counts, strict=True)]
        rows.append(("all", *map(str, total)))
        rows.insert(1, ("---", *["---:"] * 4))
        return [f"| {' | '.join(row)} |" for row in rows]


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Generator[str]:
    """Mount a small file system on `path` for the block; yield why not, or an empty text."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    reason = "needs root to mount a small file system" if os.geteuid() else ""
    if not reason:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            reason = " ".join(done.stderr.split()) if done.returncode else ""
        except OSError as error:
            reason = str(error)
    try:
        yield reason
    finally:
        if not reason:
            subprocess.run(["umount", "--lazy", str(path)], check=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the flags, run both runs and print the table; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="time of all of it")
    parser.add_argument("--faults", type=int, help="so many faults instead")
    parser.add_argument("--kinds", help="faults to choose from, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="of the faults and their moments")
    parser.add_argument("--out", type=Path, help="a new directory that stays; default: none stays")
    options = parser.parse_args(argv)
    kinds = options.kinds.split(",") if options.kinds else list(KINDS)
    if unknown := {*kinds} - {*KINDS}:
        parser.error(f"expected kinds of {', '.join(KINDS)}; got {', '.join(sorted(unknown))}")
    if options.out:
        options.out.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        out = options.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return soak(out.absolute(), options, kinds)


def soak(out: Path, options: argparse.Namespace, kinds: list[str]) -> int:
    """Run both runs in `out`, print the table and return the exit code."""
    began = time.monotonic()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    slow = ["jax", "optax", "orbax.checkpoint", "grain", "tokenizers", "matplotlib.pyplot"]
    multiprocessing.set_forkserver_preload([*slow, "biomedlm_jax.cli"])
    settings: dict[str, Any] = {
        "data.path": out / "tokens",
        "model.layers": 1,
        "optimizer.schedule": "constant",
        "optimizer.final_lr_fraction": 1.0,
        "checkpoint.keep": 3,
        "logging.every": 1,
        "logging.trackers": (),
    }
    run, expected = out / "disk" / "run", out / "undisturbed"
    soak = Soak(out, run, settings, seed=options.seed)
    soak.call(make_rows, out / "tokens")
    if options.faults is None:
        start_seconds, step_seconds = measure(soak, out / "probe")
        most_steps = max(16, round(3 * start_seconds / step_seconds))
        # The undisturbed run, and the disturbed one: a fault every 2.5 starts' time, of which 1.5
        # are steps, some of them repeated.
        budget = 60 * options.minutes - (time.monotonic() - began)
        steps = max(most_steps, round(budget / step_seconds / 2.9))
        every = max(5, most_steps // 8)
    else:
        start_seconds, most_steps, every, soak.pause = 2.0, 10, 5, 0.05
        steps = 25 * (options.faults + 1)
    settings |= {"training.steps": steps, "checkpoint.every": every}
    settings |= {"training.evaluate_every": 4 * every}
    print(f"{steps:,} steps, saved every {every}", file=sys.stderr, flush=True)

    def over(injected: int) -> bool:
        if options.faults is not None:
            return injected >= options.faults
        return time.monotonic() > began + 60 * options.minutes - start_seconds

    failed = ""
    with small_disk(out / "disk", 64 + steps // 1500) as reason:
        if reason and "full disk" in kinds:
            kinds.remove("full disk")
            print(f"full disk: skipped: {reason}", file=sys.stderr)
        try:
            soak.ended(soak.start(run=expected), [0])
            soak.disturb(kinds, over=over, start_seconds=start_seconds, most_steps=most_steps)
            soak.call(compare_runs, run, expected, out / "differing.json")
            differing = json.loads((out / "differing.json").read_text())
        except Failure as failure:
            failed, differing = str(failure), []
        skipped = expected / "skipped"
        nonfinite = len([*skipped.iterdir()]) if skipped.exists() else 0
        if options.out and run.exists():
            shutil.copytree(run, out / "run")
    print("\n".join(soak.table()))
    print(
        f"{soak.starts} starts for {steps:,} steps in {(time.monotonic() - began) / 60:.1f} "
        f"minutes; {nonfinite} updates that were not finite were skipped"
    )
    if failed:
        print(f"failed: {failed}")
        return 1
    lost = sum(count.lost for count in soak.counts.values())
    repeated = sum(soak.counts[k].repeated for k in (*(s.name for s in SIGNALS), "two signals"))
    if repeated:
        print(f"failed: {repeated} steps ran again after signals")
    if differing:
        print(f"failed: the end differs from the undisturbed run's: {'; '.join(differing)}")
    else:
        print(
            "parameters, optimizer and losses are bit-identical with those of the undisturbed run"
        )
    return 1 if differing or lost or repeated else 0


def measure(soak: Soak, probe: Path) -> tuple[float, float]:
    """Return the seconds of a start and of a step, from a short run."""
    start_seconds = 0.0
    for begin, steps in ((0, 5), (5, 60)):  # the second start finds the compiled programs
        began = time.monotonic()
        soak.settings |= {"training.steps": steps, "checkpoint.every": 10}
        process = soak.start(run=probe)
        soak.wait(lambda begin=begin: last_step(probe) > begin, process)
        start_seconds = time.monotonic() - began
        soak.ended(process, [0])
    seconds = sorted(x["step_seconds"] for x in metrics(probe) if "step_seconds" in x)
    return start_seconds, seconds[len(seconds) // 2]


if __name__ == "__main__":
    sys.exit(main())
