"""Batches of requests: one thread decodes those that wait and may share a batch.

A batch is decoded to its end before the next begins, since all its rows share the slots of one
cache. Requests share one if their options differ in seed, samples and limits only: the other
options are one value for all rows. Each row has its own key, so no text depends on its neighbours.
"""

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from biomedlm_jax.errors import InputError, one_line
from biomedlm_jax.generation import decoding
from biomedlm_jax.generation.generator import Generator, settled_text
from biomedlm_jax.generation.options import Options
from biomedlm_jax.generation.sampling import row_keys
from biomedlm_jax.generation.stops import state_after

COLLECT = 0.01  # seconds in which requests that arrive together become one batch
AGAIN = 0.03  # seconds in which the clients of a batch may send their next requests
STOPPING = RuntimeError("the server is stopping")
PIECE = 0.03  # seconds between two pieces of a text, if a step takes less
MOST_STEPS = 8  # between two pieces, and after which an abandoned request is noticed


@dataclasses.dataclass
class Row:
    """One answer: its prompt, its tokens so far, and how many characters were sent."""

    prompt: Sequence[int]
    limit: int  # tokens of the answer at most
    tokens: list[int] = dataclasses.field(default_factory=list)
    text: str = ""
    finish: str = ""  # "stop" or "length" once it has ended
    sent: int = 0
    state: int = 0  # of the stop strings' automaton

    def extend(self, tokens: list[int], ends: Sequence[int], stops: np.ndarray | None) -> None:
        """Set the tokens so far, and why they end if they do."""
        completed = False
        for token in tokens[len(self.tokens) :] if stops is not None else ():
            entry = int(stops[self.state, token])
            self.state, completed = entry >> 1, entry & 1 == 1
        self.tokens = tokens
        if completed or (tokens and tokens[-1] in ends):
            self.finish = "stop"
        elif len(tokens) >= self.limit:
            self.finish = "length"


@dataclasses.dataclass(eq=False)
class Job:
    """A request: `options.samples` rows for each prompt, and where its results go.

    `send` is called from the batcher's thread: with (row, new text) if `stream`, and at the end
    with None or an exception.
    """

    rows: list[Row]
    options: Options
    send: Callable[[tuple[int, str] | Exception | None], None]
    stream: bool = False
    ended: bool = False

    def progress(self) -> None:
        """Send the new text, and the end once all rows have ended."""
        if self.ended:
            return
        for number, row in enumerate(self.rows if self.stream else ()):
            if len(row.text) > row.sent:
                self.send((number, row.text[row.sent :]))
                row.sent = len(row.text)
        if all(row.finish for row in self.rows):
            self.end()

    def end(self, error: Exception | None = None) -> None:
        """Send the end, once."""
        if not self.ended:
            self.ended = True
            self.send(error)


class BusyError(Exception):
    """Too many requests wait."""


class Batcher:
    """A thread that decodes jobs in batches of up to `rows` rows; `most` jobs may wait."""

    def __init__(self, generator: Generator, *, rows: int, most: int):
        self.generator, self.rows, self.most = generator, rows, most
        self.batches: list[int] = []  # rows of the last batches
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._step_seconds = PIECE
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End after the steps that are being decoded; all jobs get an error."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=10)

    @property
    def waiting(self) -> int:
        """The number of jobs that wait."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Let a job wait for the next batch; raise BusyError if too many do."""
        with self._changed:
            if len(self._waiting) >= self.most:
                raise BusyError
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Free the place of a job; nothing more is sent."""
        with self._changed:
            job.ended = True
            if job in self._waiting:
                self._waiting.remove(job)

    def _work(self) -> None:
        before = 0  # jobs of the last batch, whose clients may ask again at once
        while not self._closed:
            with self._changed:
                expected = min(len(self._waiting) + before, self.rows)
                self._wait(lambda: len(self._waiting) >= expected, AGAIN)  # noqa: B023
                if not self._waiting:
                    self._wait(lambda: bool(self._waiting))
                    self._wait(lambda: len(self._waiting) >= self.rows, COLLECT)
                batch = self._take()
            before = len(batch)
            if batch:
                self._decode_or_fail(batch)
        for job in self._waiting:
            job.end(STOPPING)

    def _wait(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        self._changed.wait_for(lambda: self._closed or condition(), seconds)

    def _take(self) -> list[Job]:
        """Take the job that has waited longest, and those that fit into its batch."""
        batch, free = [], self.rows
        for job in list(self._waiting):
            if (not batch or _shared(job) == _shared(batch[0])) and len(job.rows) <= free:
                batch.append(job)
                free -= len(job.rows)
                self._waiting.remove(job)
        return batch

    def _decode_or_fail(self, batch: list[Job]) -> None:
        try:
            self._decode(batch)
        except Exception as error:  # of this batch; the thread lives
            if len(batch) > 1 and not self._closed:  # one job's NaN is not the others' failure
                for job in batch:
                    if not job.ended:
                        self._decode_or_fail([job])
                return
            if not isinstance(error, InputError):
                error = RuntimeError(one_line(f"{type(error).__name__}: {error}"))
            print(f"error: {error}", file=sys.stderr, flush=True)
            batch[0].end(error)

    def _decode(self, batch: list[Job]) -> None:
        generator, options = self.generator, batch[0].options
        strategy = options.strategy(generator.config, generator.tokenizer)
        stops = generator.stops(options.stop)
        rows = [(job, row) for job in batch for row in job.rows]
        for _, row in rows:  # a batch that failed is decoded again, job by job
            row.tokens, row.finish = [], ""
            row.state = 0 if stops is None else state_after(stops, row.prompt)
        self.batches = [*self.batches[-99:], len(rows)]

        def update(rows_tokens: list[list[int]]) -> list[bool]:
            for (job, row), tokens in zip(rows, rows_tokens, strict=True):
                if not (row.finish or job.ended):
                    row.extend(tokens[: row.limit], strategy.ends, stops)
                    if row.finish or job.stream:
                        cut = None if row.finish else settled_text
                        row.text = generator.text(row.tokens, strategy.ends, options.stop, cut)
            for job in batch:
                job.progress()
            return [bool(row.finish) or job.ended or self._closed for job, row in rows]

        decoded = decoding.decode(
            generator.decoder,
            [row.prompt for _, row in rows],
            max_new_tokens=max(row.limit for _, row in rows),
            strategy=strategy,
            keys=jnp.concatenate([_keys(job) for job in batch]),
            every=max(1, min(MOST_STEPS, int(PIECE / self._step_seconds))),
            watch=update,
            stops=stops,
        )
        update(decoded.rows)
        self._step_seconds = max(decoded.decode_seconds / decoded.steps, 1e-5)
        for job in batch:  # none is left, unless the server is stopping
            job.end(STOPPING)


def _shared(job: Job) -> Options:
    """Return the options that a batch has once."""
    return dataclasses.replace(
        job.options, seed=0, samples=1, max_new_tokens=2**31 - 1, max_length=0
    )


def _keys(job: Job):
    """Return the keys of a job's rows: those that `generate` gives the prompts of one call."""
    samples = job.options.samples
    return row_keys(job.options.seed, np.arange(len(job.rows) // samples, dtype=np.uint32), samples)
