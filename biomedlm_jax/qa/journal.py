"""Batches that were scored already, so that an evaluation resumes, and the time that is left."""

import contextlib
import os
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
import numpy as np

from biomedlm_jax.files import content_hash

EVERY_SECONDS = 10.0  # between lines of progress
# What numpy and zipfile raise for a damaged file.
DAMAGED = (zipfile.BadZipFile, zlib.error, ValueError, LookupError, OSError, EOFError, RuntimeError)


def print_progress(line: str) -> None:
    """Print a line to stderr at once."""
    print(line, file=sys.stderr, flush=True)


class Journal:
    """The results of batches, in files of `folder`; without one, only the progress is printed.

    `start` is what the results depend on beside the prompts, as JSON: weights and dtype.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        start: Any = None,
        notify: Callable[[str], None] = print_progress,
    ):
        self._root = Path(folder) if folder else None
        self._start, self._notify = start, notify
        self._folder: Path | None = None
        self._own: set[Path] = set()  # files of this run: two ways of scoring may share batches

    def begin(self, content: Any, *, total: int) -> None:
        """Start on batches of this content (JSON), which have `total` positions altogether."""
        self._total, self._done, self._computed = total, 0, 0
        self._began = self._printed = time.monotonic()
        self._resumed = False
        if self._root:
            self._folder = self._root / content_hash([self._start, content])[:32]

    def read(self, number: int) -> Any:
        """Return the result of a batch, as numpy arrays, or None if it is not there."""
        file = self._file(number)
        if file is None or not file.exists():
            return None
        try:  # the checksums of a zip file show any damage
            with np.load(file, allow_pickle=False) as saved:
                arrays = [saved[f"arr_{n}"] for n in range(len(saved.files))]
        except DAMAGED as error:
            self._notify(f"{file} is damaged ({error}); its questions are scored again")
            return None
        if not self._resumed and file not in self._own:
            self._resumed = True
            self._notify("resuming an interrupted evaluation")
        return tuple(arrays) if len(arrays) > 1 else arrays[0]

    def write(self, number: int, result: Any, *, size: int, new: bool) -> None:
        """Keep the result of a batch of `size` positions, and print how far it is at times."""
        if new and (file := self._file(number)):
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(f".{os.getpid()}.new")
            with unfinished.open("wb") as opened:
                np.savez(opened, *jax.tree.leaves(result))
            unfinished.replace(file)
            self._own.add(file)
        self._done += size
        self._computed += size if new else 0
        now = time.monotonic()
        if self._computed and now - self._printed >= EVERY_SECONDS:
            self._printed = now
            left = (now - self._began) / self._computed * (self._total - self._done)
            share = f"{self._done / self._total:.0%} scored"
            self._notify(f"{share}, {timedelta(seconds=round(left))} left")

    def remove(self) -> None:
        """Delete the files, as the evaluation is finished; other files are left alone."""
        if self._root:
            for file in (*self._root.glob("*/*.npz"), *self._root.glob("*/*.new")):
                file.unlink()
            with contextlib.suppress(OSError):
                for folder in self._root.iterdir():
                    folder.rmdir()
                self._root.rmdir()

    def _file(self, number: int) -> Path | None:
        return self._folder / f"{number:06}.npz" if self._folder else None
