"""Processes that start in a fifth of a second: forked from one that has imported what is slow.

Most of the time of a command on a small input is the import of jax, orbax and others. A server
process, one for each test process, imports them once and forks; in the fork the command has its own
arguments, environment, directory, signals and exit code. Devices exist in the forks only. jax reads
its JAX_ variables when it is imported: a test that changes them needs subprocess, as does one that
looks at what is imported.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SLOW = (
    "jax flax.nnx optax orbax.checkpoint grain transformers tokenizers matplotlib.pyplot "
    "tensorboardX rouge_score.rouge_scorer biomedlm_jax.cli"
)
PROGRAM = """
import atexit, gc, os, runpy, sys

gc.freeze()
gc.set_threshold(50_000, 20, 50)
os.chdir(directory)
os.environ.clear()
os.environ.update(environment)
for number, path in enumerate(files, start=1):
    file = os.open(path, os.O_WRONLY)
    os.dup2(file, number)
    os.close(file)
kind, program, *sys.argv[1:] = arguments
try:
    if kind == "-m":
        sys.modules.pop(program, None)
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.argv[0] = kind
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
finally:
    atexit._run_exitfuncs()
"""
multiprocessing.set_forkserver_preload(SLOW.split())
_context = multiprocessing.get_context("forkserver")


class Process:
    """`python *arguments` (`-m module ...` or `-c program ...`), with what tests use of Popen."""

    stdin = stdout = stderr = None  # no pipes; Jupyter would close them

    def __init__(
        self, arguments: Sequence[object], *, cwd=None, env: Mapping[str, str] | None = None
    ):
        environment = {**os.environ, **(env or {})}
        changed = [
            name
            for name in {*environment, *os.environ}
            if name.startswith("JAX_") and environment.get(name) != os.environ.get(name)
        ]
        assert not changed, f"jax has read {changed} before the fork; use subprocess"
        self._folder = tempfile.TemporaryDirectory()
        self._files = [str(Path(self._folder.name) / name) for name in ("out", "err")]
        for file in self._files:
            Path(file).touch()
        job = {
            "arguments": [str(argument) for argument in arguments],
            "environment": environment,
            "directory": str(cwd or Path.cwd()),
            "files": self._files,
        }
        self._process = _context.Process(target=exec, args=(PROGRAM, job), daemon=True)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code (negative: a signal), None while it runs."""
        return self._process.exitcode

    returncode = property(poll)

    def wait(self) -> int | None:
        """Wait for the end; the exit code."""
        self._process.join()
        return self.poll()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; standard output and error as text."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        out, err = (Path(file).read_text(encoding="utf-8") for file in self._files)
        return out, err

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self._process.exitcode is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self.send_signal(signal.SIGKILL)


def run_process(
    arguments: Sequence[object], *, timeout=240, **options
) -> subprocess.CompletedProcess:
    """Run `python *arguments` to its end: stdout, stderr and the exit code."""
    process = Process(arguments, **options)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess([sys.executable, *arguments], process.returncode, out, err)
