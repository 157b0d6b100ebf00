"""Batches of requests: one thread decodes those that wait and may share a batch.

A batch is decoded to its end before the next begins, since all its rows share the slots of one
cache. Requests share one if their options differ in seed, samples and limits only: the others are
one value for all rows. Each row has its own key, so no text depends on its neighbours.
"""

import dataclasses
import sys
import threading
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from biomedlm_jax.errors import InputError, one_line
from biomedlm_jax.generation import decoding
from biomedlm_jax.generation.generator import Generator, settled_text
from biomedlm_jax.generation.options import Options
from biomedlm_jax.generation.sampling import row_keys
from biomedlm_jax.generation.stops import state_after

COLLECT = 0.03  # seconds after a request in which the next one joins its batch
PIECE = 0.1  # seconds between two pieces of a text, if a step takes less
MOST_STEPS = 16  # between two pieces, and after which an abandoned request is noticed
STOPPING = RuntimeError("the server is stopping")


@dataclasses.dataclass
class Row:
    """An answer so far: why it ended ("stop", "length"), and how many characters were sent."""

    prompt: list[int]
    limit: int  # tokens
    tokens: list[int] = dataclasses.field(default_factory=list)
    text: str = ""
    finish: str = ""
    sent: int = 0
    state: int = 0  # of the stop strings' automaton


@dataclasses.dataclass(eq=False)
class Job:
    """A request: `options.samples` rows for each prompt.

    `send` is called with (row, new text) if `stream`, and once with None or the error at the end.
    """

    rows: list[Row]
    options: Options
    send: Callable[[tuple[int, str] | Exception | None], None]
    stream: bool = False
    ended: bool = False

    def end(self, error: Exception | None = None) -> None:
        """Send the end, unless it was sent or the job was cancelled."""
        if not self.ended:
            self.ended = True
            self.send(error)


class Batcher:
    """A thread that decodes jobs in batches of up to `rows` rows; `most` jobs may wait."""

    def __init__(self, generator: Generator, *, rows: int, most: int):
        self.generator, self.rows, self.most = generator, rows, most
        self.waiting: list[Job] = []
        self._changed, self._closed = threading.Condition(), False
        self._step_seconds = PIECE
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.start = self._thread.start

    def close(self) -> None:
        """End after the steps that are being decoded; all jobs get an error."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=10)

    def submit(self, job: Job) -> bool:
        """Let a job wait for the next batch; return False if too many do."""
        with self._changed:
            if accepted := len(self.waiting) < self.most:
                self.waiting.append(job)
                self._changed.notify()
        return accepted

    def cancel(self, job: Job) -> None:
        """Free the place of a job; nothing more is sent."""
        with self._changed:
            job.ended = True
            self.waiting = [one for one in self.waiting if one is not job]

    def _work(self) -> None:
        before = 0  # jobs of the last batch
        while not self._closed:
            with self._changed:
                if not (self.waiting or before):
                    self._wait(1)
                # The clients of the last batch may send their next requests now.
                expected = min(len(self.waiting) + before, self.rows) if before else self.rows
                count = -1
                while count < len(self.waiting) < expected:
                    count = len(self.waiting)
                    self._wait(count + 1, COLLECT)
                batch, free = [], self.rows
                for job in self.waiting:  # the oldest, and those that fit into its batch
                    if (not batch or _shared(job) == _shared(batch[0])) and len(job.rows) <= free:
                        batch.append(job)
                        free -= len(job.rows)
                self.waiting = [job for job in self.waiting if job not in batch]
            before = len(batch)
            self._decode_or_fail(batch)
        for job in self.waiting:
            job.end(STOPPING)

    def _wait(self, jobs: int, seconds: float | None = None) -> None:
        self._changed.wait_for(lambda: self._closed or len(self.waiting) >= jobs, seconds)

    def _decode_or_fail(self, batch: list[Job]) -> None:
        batch = [job for job in batch if not job.ended]
        try:
            if batch and not self._closed:
                self._decode(batch)
        except Exception as error:  # NaN, or no memory: the next batch may do better
            if len(batch) > 1:  # one job's NaN is not the others' failure
                for job in batch:
                    self._decode_or_fail([job])
            else:
                name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
                message = one_line(f"{name}{error}")
                print(f"error: {message}", file=sys.stderr, flush=True)
                batch[0].end(RuntimeError(message))
        for job in batch:  # none is left, unless the server is stopping
            job.end(STOPPING)

    def _decode(self, batch: list[Job]) -> None:
        generator, options = self.generator, batch[0].options
        strategy = options.strategy(generator.config, generator.tokenizer)
        stops = generator.stops(options.stop)
        rows = [(job, number, row) for job in batch for number, row in enumerate(job.rows)]
        for _, _, row in rows:  # a batch that failed is decoded again, job by job
            row.tokens, row.finish = [], ""
            row.state = 0 if stops is None else state_after(stops, row.prompt)

        def update(rows_tokens: list[list[int]]) -> list[bool]:
            for (job, number, row), tokens in zip(rows, rows_tokens, strict=True):
                if row.finish or job.ended:
                    continue
                tokens, hit = tokens[: row.limit], 0
                if stops is not None:
                    for token in tokens[len(row.tokens) :]:
                        row.state, hit = divmod(int(stops[row.state, token]), 2)
                row.tokens = tokens
                if hit or (tokens and tokens[-1] in strategy.ends):
                    row.finish = "stop"
                elif len(tokens) == row.limit:
                    row.finish = "length"
                if row.finish or job.stream:
                    cut = None if row.finish else settled_text
                    row.text = generator.text(tokens, strategy.ends, options.stop, cut)
                if job.stream and len(row.text) > row.sent:
                    job.send((number, row.text[row.sent :]))
                    row.sent = len(row.text)
            for job in batch:
                if all(row.finish for row in job.rows):
                    job.end()
            return [bool(row.finish) or job.ended or self._closed for job, _, row in rows]

        decoded = decoding.decode(
            generator.decoder,
            [row.prompt for _, _, row in rows],
            max_new_tokens=max(row.limit for _, _, row in rows),
            strategy=strategy,
            keys=jnp.concatenate([_keys(job) for job in batch]),
            every=max(1, min(MOST_STEPS, int(PIECE / self._step_seconds))),
            watch=update,
            stops=stops,
        )
        update(decoded.rows)
        self._step_seconds = max(decoded.decode_seconds / decoded.steps, 1e-5)


def _shared(job: Job) -> Options:
    """Return the options that a batch has once."""
    own = {"seed": 0, "samples": 1, "max_new_tokens": 2**31 - 1, "max_length": 0}
    return dataclasses.replace(job.options, **own)


def _keys(job: Job):
    """Return the keys of a job's rows: those that `generate` gives the prompts of one call."""
    prompts, options = len(job.rows) // job.options.samples, job.options
    return row_keys(options.seed, np.arange(prompts, dtype=np.uint32), options.samples)
