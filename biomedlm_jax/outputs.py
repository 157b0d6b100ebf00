"""Directories that are written in one step, on a file system or in a bucket, and copies of them."""

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from biomedlm_jax.buckets import BucketPath, as_path, is_bucket
from biomedlm_jax.errors import InputError
from biomedlm_jax.integrity import SUMS, has_sums, write_sums

# What raises these exceptions.
SIGNALS = {SystemExit: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}


def remove_tree(path: Path) -> None:
    """Delete a directory with all that is in it; what cannot be deleted stays."""
    if isinstance(path, BucketPath):
        path.rmtree()
    else:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def local_copy(
    path: str | Path, wanted: Callable[[str], bool] = lambda name: True
) -> Generator[Path]:
    """Yield `path`, or a temporary copy of a bucket's, for libraries that read local files only.

    `wanted` chooses the files to copy by their names in the directory.
    """
    source = as_path(path)
    if not isinstance(source, BucketPath):
        yield source
        return
    with exit_on_sigterm(), tempfile.TemporaryDirectory() as folder:
        source.download(Path(folder), wanted)
        try:
            yield Path(folder)
        except InputError as error:
            raise InputError(str(error).replace(folder, str(source))) from error


@contextlib.contextmanager
def written_locally(path: Path) -> Generator[Path]:
    """Yield `path`, or a temporary directory that is copied to a bucket's after the block."""
    if not is_bucket(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        upload(Path(folder), path)


def upload(folder: Path, path: Any) -> None:
    """Copy the files of a local directory to that of a bucket."""
    path.upload(folder)


def check_output(path: str | Path, *, replaceable: Callable[[Path], bool], overwrite: bool) -> None:
    """Raise if `atomic_directory` would refuse to write `path`; call it before any work.

    Args:
      replaceable: returns whether `overwrite` may replace the non-empty directory that it is
        given, because that is of the kind to be written.

    Raises:
      InputError: `path` is a file, or holds files that are not replaceable, or `overwrite` is
        false.
    """
    path = as_path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; name a directory")
    if not path.exists() or not any(path.iterdir()):
        return
    if not replaceable(path):
        raise InputError(
            f"{path} holds something else, which is never overwritten; name another directory"
        )
    if not overwrite:
        raise InputError(f"{path} exists; name another directory, or pass --overwrite")


@contextlib.contextmanager
def atomic_directory(
    path: str | Path, *, replaceable: Callable[[Path], bool], overwrite: bool
) -> Generator[Path]:
    """Yield a new, empty directory that replaces `path` when the block succeeds.

    After an error in the block, Ctrl-C or SIGTERM, `path` is as it was before. A symbolic link
    stays; the directory it points to is replaced. The leftovers of killed processes are removed.
    SHA256SUMS in the directory has the hashes of its files. A bucket's directory is replaced file
    by file, and has no SHA256SUMS meanwhile; if that is interrupted, `recover_directory` ends it.

    Raises what `check_output` raises, before the block and again after it: another process may
    have written `path` in the meantime.
    """
    if is_bucket(path):
        recover_directory(path)
        check_output(path, replaceable=replaceable, overwrite=overwrite)
        target = as_path(path)
        made = target.with_name(f".{target.name}.{secrets.token_hex(8)}.new")
        with exit_on_sigterm():
            try:
                yield made
                write_sums(made)
                check_output(path, replaceable=replaceable, overwrite=overwrite)
            except BaseException:
                remove_tree(made)
                raise
            _roll_forward(made, target)
        return
    _remove_leftovers(Path(os.path.realpath(path)))
    check_output(path, replaceable=replaceable, overwrite=overwrite)
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{state}") for state in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    with exit_on_sigterm(), _scratch_directory(new):
        yield new
        write_sums(new)
        check_output(path, replaceable=replaceable, overwrite=overwrite)
        try:
            if path.exists():
                path.rename(old)
            new.rename(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(path: str | Path, *, overwrite: bool) -> Generator[Path]:
    """Yield a new path beside the file `path`; what the block writes there replaces it at the end.

    After an error in the block, Ctrl-C or SIGTERM, `path` is as it was before. What killed
    processes left beside it is removed. Raises what `check_file` raises.
    """
    check_file(path, overwrite=overwrite)
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.new"):
        process = left.name.split(".")[-2]
        if process.isdecimal() and left.is_file() and not process_is_alive(int(process)):
            left.unlink(missing_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    with exit_on_sigterm():
        try:
            yield new
            check_file(path, overwrite=overwrite)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def check_file(path: str | Path, *, overwrite: bool) -> None:
    """Raise InputError if `path` is a directory, or exists and there is no `overwrite`."""
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory; name a file")
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{path} exists; name another file, or pass --overwrite")


@contextlib.contextmanager
def _scratch_directory(path: Path) -> Generator[None]:
    """Make a directory, and remove it after the block; its lock marks it as in use."""
    path.mkdir()
    lock = _lock(path)
    try:
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def exit_on_sigterm() -> Generator[None]:
    """Let SIGTERM raise SystemExit(143) in the block, unless the program handles it otherwise."""
    default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    report = sys.unraisablehook

    def resend(ignored) -> None:
        """Send the signal again if Python ignored it, as in jax's callback of the collector."""
        number = SIGNALS.get(ignored.exc_type)
        if number is None:
            report(ignored)
        else:
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()

    sys.unraisablehook = resend
    try:
        yield
    finally:
        sys.unraisablehook = report
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _remove_leftovers(path: Path) -> None:
    """Remove what killed calls of `atomic_directory` left beside `path`, and restore `path`.

    A leftover belongs to no living process of this machine, and its lock is free: on a shared file
    system, a process of another machine may hold it.
    """
    for left in sorted(path.parent.glob(f".{glob.escape(path.name)}.*.*")):
        process, _, state = left.name.removeprefix(f".{path.name}.").partition(".")
        if not (process.isdecimal() and state in ("new", "old") and left.is_dir()):
            continue
        if left.is_symlink() or process_is_alive(int(process)) or (lock := _lock(left)) is None:
            continue
        if state == "old" and not path.exists():
            left.rename(path)
        else:
            shutil.rmtree(left, ignore_errors=True)
        os.close(lock)


def process_is_alive(process: int) -> bool:
    """Return whether a process of this host runs."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def _lock(directory: Path) -> int | None:
    """Lock a directory until the descriptor is closed; None if it is locked or cannot be."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:  # of another user, or removed
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def recover_directory(path: str | Path) -> None:
    """Restore `path` if a process was killed between the two renames of `atomic_directory`.

    What it left in a bucket is complete, and then moved to `path`, or removed.
    """
    if is_bucket(path):
        target = as_path(path)
        for left in target.parent.glob(f".{glob.escape(target.name)}.*.new"):
            if has_sums(left):
                _roll_forward(left, target)
            else:
                remove_tree(left)
        return
    path = Path(os.path.realpath(path))
    if not path.exists():
        for old in path.parent.glob(f".{glob.escape(path.name)}.*.old"):
            old.rename(path)
            return


def _roll_forward(new: Any, target: Any) -> None:
    """Move a complete directory of a bucket to `target`, weights first, SHA256SUMS last."""
    before, names = target.sizes(), new.sizes()
    (target / SUMS).unlink(missing_ok=True)
    # Within a checkpoint, marks come after what they stand for.
    for name in sorted(names, key=lambda n: (n == SUMS, "/" not in n, n.endswith(".txt"))):
        (new / name).copy_to(target / name)
    for name in before.keys() - names.keys():
        (target / name).unlink(missing_ok=True)
    (new / SUMS).unlink(missing_ok=True)  # from here it is a leftover
    new.rmtree()
