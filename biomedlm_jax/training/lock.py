"""The lock of a run directory: one group of processes writes into it.

`lock.json` names host, process and start of the writer, and holds a heartbeat that it increases
every few seconds. A lock is stale if its process has ended on this host, or if the heartbeat of
another host stays the same for `STALE_SECONDS`; clocks of two hosts are never compared. Where
another process could remove a lock at that moment (in a bucket, which has no conditional deletion
here) or replace it (a file system without links), it counts only if it is still there after
`SETTLE_SECONDS`.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from biomedlm_jax.agreement import all_gather, from_first_process
from biomedlm_jax.buckets import BucketPath
from biomedlm_jax.errors import FAILED, InputError
from biomedlm_jax.files import read_json, write_text
from biomedlm_jax.outputs import process_is_alive

LOCK = "lock.json"
PIDS = "/proc/self/ns/pid"
HEARTBEAT_SECONDS, STALE_SECONDS, SETTLE_SECONDS = 5.0, 30.0, 2.0
SEEN_SECONDS = 30.0  # until a shared directory must show what process 0 wrote


class LockError(OSError):
    """Another group of processes writes into the run directory."""


@contextlib.contextmanager
def lock_run(workdir: Path) -> Generator[None]:
    """Hold the lock of a run directory, which process 0 makes if it is absent, in the block.

    Raises LockError if a living writer holds it, and InputError, in every process, if one of them
    does not see the file: the directory is not shared.
    """
    lock = _Lock(workdir / LOCK)
    try:
        key = from_first_process(lock.acquire)
        unseen = [i for i, seen in enumerate(all_gather(_sees(lock.path, key))) if not seen]
        if unseen:
            raise InputError(
                f"process {unseen[0]} does not find {lock.path}, which process 0 wrote "
                f"{SEEN_SECONDS:g} s ago; --workdir must be storage that all processes share"
            )
        yield
    finally:
        lock.release()


def _sees(path: Path, key: str) -> bool:
    limit = time.monotonic() + SEEN_SECONDS
    while _read(path).get("key") != key:
        if time.monotonic() > limit:
            return False
        time.sleep(0.5)
    return True


class _Lock:
    """The lock file of process 0, with a thread that increases its heartbeat."""

    def __init__(self, path: Path):
        self.path, self._key = path, secrets.token_hex(8)
        self._held, self._ended = False, threading.Event()
        self._heartbeat = 0
        self._facts: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid()}
        self._facts |= {"started": time.time(), "pid_started": _start_of(os.getpid())}
        self._facts["machine"] = _machine()
        self._thread = threading.Thread(target=self._keep, name="lock of the run", daemon=True)

    def acquire(self) -> str:
        """Write the lock and return its key; raises LockError if a living writer holds one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stale = self.path.exists()
        if stale:
            self._take_over(_read(self.path))
        if isinstance(self.path, BucketPath):
            with contextlib.suppress(FileExistsError):  # perhaps this one: requests are repeated
                self.path.create(self._text().encode())
            self._settle(SETTLE_SECONDS if stale else 0)
        else:
            self._create()
        self._held = True
        self._thread.start()
        return self._key

    def _take_over(self, lock: dict[str, Any]) -> None:
        """Remove a lock once it is stale; raises LockError if its writer, or another, lives."""
        _wait_until_stale(self.path, lock)
        if isinstance(self.path, BucketPath):
            self.path.unlink(missing_ok=True)
            return
        aside = self.path.with_name(f".{LOCK}.{self._key}.old")
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(aside)
            moved = _read(aside)
            if moved != lock:  # of another process that took the stale one over just now
                with contextlib.suppress(OSError):
                    os.link(aside, self.path)
            aside.unlink()
            if moved != lock:
                raise _held_by(self.path, moved)

    def _create(self) -> None:
        new = self.path.with_name(f".{LOCK}.{self._key}")
        new.write_text(self._text(), encoding="utf-8")
        try:
            os.link(new, self.path)  # fails if there is one, and is never seen half written
        except FileExistsError:
            raise _held_by(self.path, _read(self.path)) from None
        except OSError:  # a file system without links
            new.replace(self.path)
            self._settle(SETTLE_SECONDS)
        finally:
            new.unlink(missing_ok=True)

    def _settle(self, seconds: float) -> None:
        time.sleep(seconds)
        if (lock := _read(self.path)).get("key") != self._key:
            raise _held_by(self.path, lock) from None

    def release(self) -> None:
        """Remove the lock, if it is this one's."""
        self._ended.set()
        if self._held:
            self._held = False
            self._thread.join(2 * HEARTBEAT_SECONDS)  # a heartbeat that is being written would stay
            with contextlib.suppress(OSError):
                if _read(self.path).get("key") == self._key:
                    self.path.unlink(missing_ok=True)

    def _text(self) -> str:
        return json.dumps({**self._facts, "key": self._key, "heartbeat": self._heartbeat})

    def _keep(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            if (other := _read(self.path).get("key", self._key)) != self._key:
                # This process was suspended for so long that its lock was stale.
                print(f"{self.path} has become {other}'s: this run ends", file=sys.stderr)
                os._exit(FAILED)
            self._heartbeat += 1
            with contextlib.suppress(OSError):  # a full disk
                write_text(self.path, self._text())


def _wait_until_stale(path: Path, lock: dict[str, Any]) -> None:
    """Return when the writer of a lock has ended; raises LockError if it lives."""
    if lock.get("machine") == _machine() and isinstance(lock.get("pid"), int):
        if lock.get("pid_started") == _start_of(lock["pid"]) is not None:
            raise _held_by(path, lock)
        return
    line = f"{path} of {lock.get('host')} is watched for {STALE_SECONDS:g} s: is it in use?"
    print(line, file=sys.stderr, flush=True)
    limit = time.monotonic() + STALE_SECONDS
    while time.monotonic() < limit and path.exists():
        time.sleep(1)
        if (now := _read(path)) != lock and now:
            raise _held_by(path, now)


def holder_of(workdir: Path) -> dict[str, Any] | None:
    """Return a run directory's lock, with its `state` in words; None if there is none."""
    lock = _read(workdir / LOCK)
    if not lock:
        return None
    here = lock.get("machine") == _machine() and isinstance(lock.get("pid"), int)
    ended = here and lock.get("pid_started") != _start_of(lock["pid"])
    return {**lock, "state": ", which has ended: the next start takes it over" if ended else ""}


def _held_by(path: Path, lock: dict[str, Any]) -> LockError:
    who = f"process {lock.get('pid')} on {lock.get('host')}"
    return LockError(
        f"{path.parent} is being written by {who}; wait for its end or choose another --workdir"
    )


def _machine() -> str:
    """Identify the host since its boot, and the set of processes that are seen from here.

    Containers may share a host's name and not see each other's processes.
    """
    parts = [socket.gethostname()]
    for read in (Path("/proc/sys/kernel/random/boot_id").read_text, lambda: os.readlink(PIDS)):
        with contextlib.suppress(OSError):
            parts.append(read().strip())
    return " ".join(parts)


def _start_of(pid: int) -> str | None:
    """Return when a process of this host started, in clock ticks after boot; None if it ended.

    A number is used again after its process has ended.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "unknown" if sys.platform != "linux" and process_is_alive(pid) else None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else fields[18]


def _read(path: Path) -> dict[str, Any]:
    """Return a lock's content; {} if there is none, or it is not complete."""
    try:
        return read_json(path)
    except (InputError, OSError):
        return {}
