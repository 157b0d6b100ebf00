"""Read and write files: JSON, JSON lines, and directories that are written atomically.

The package has no other implementation of these. A directory may be one of a bucket, gs://...
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from biomedlm_jax.buckets import BucketPath, as_path, is_bucket
from biomedlm_jax.errors import InputError
from biomedlm_jax.integrity import SUMS, has_sums, write_sums
from biomedlm_jax.streams import open_binary, read_lines

REWRITE_SECONDS = 5.0  # at least, between two writes of an object that grows


def remove_tree(path: Path) -> None:
    """Delete a directory with all that is in it; what cannot be deleted stays."""
    if isinstance(path, BucketPath):
        path.rmtree()
    else:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def local_copy(
    path: str | Path, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[Path]:
    """Yield `path`, or a temporary copy of a bucket's, for libraries that read local files only.

    `wanted` chooses the files to copy by their names in the directory.
    """
    source = as_path(path)
    if not isinstance(source, BucketPath):
        yield source
        return
    with _exit_on_sigterm(), tempfile.TemporaryDirectory() as folder:
        source.download(Path(folder), wanted)
        try:
            yield Path(folder)
        except InputError as error:
            raise InputError(str(error).replace(folder, str(source))) from error


@contextlib.contextmanager
def written_locally(path: Path) -> Iterator[Path]:
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


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises InputError naming the file and the place in it.
    """
    if is_bucket(path):
        try:
            return parse_object(as_path(path).read_bytes(), str(path))
        except FileNotFoundError:
            raise InputError(f"no such file: {path}") from None
    with open_binary(Path(path)) as file:
        return parse_object(file.read(), str(path))


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object in UTF-8, with or without a byte order mark.

    Raises InputError, one line that begins with `where`, for invalid UTF-8 or JSON, for a value
    that is not an object, and for a duplicate key (Python would keep the last value silently).
    """
    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        near = error.doc[max(0, error.pos - 20) : error.pos + 20]
        place = f" in line {error.lineno}" if error.lineno > 1 else ""
        message = f"{where}: expected a JSON object, got {near!r}{place} ({error.msg})"
        raise InputError(message) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: {error}") from None
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: expected a JSON object, got JSON of type {type(value).__name__}"
        )
    return value


def content_hash(value: Any) -> str:
    """Return the SHA-256 (hexadecimal) of a JSON value, such as token ids."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("ascii")).hexdigest()


def read_jsonl(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", object) for every line that is not blank, in constant memory.

    Raises what `read_lines` and `parse_object` raise.
    """
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}:{number}"
            yield where, parse_object(line.strip(), where)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON in UTF-8, as `write_text` does.

    Raises InputError for NaN and infinity, which are not JSON; the file is unchanged then.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # Half of a surrogate pair (in a file name, for example) is not UTF-8, but JSON can escape it.
    text = re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)
    write_text(path, text + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Any], **options: Any) -> None:
    """Write one JSON value per line, as `write_text` does; `options` are those of `json.dumps`.

    Raises InputError for NaN and infinity, which are not JSON; the file is unchanged then.
    """
    lines = [json.dumps(row, allow_nan=False, **options) + "\n" for row in rows]
    write_text(path, "".join(lines))


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8 in one step: a crash leaves the old content or the new one.

    Missing parent directories are created. A symbolic link stays; its target is replaced.
    """
    if is_bucket(path):
        as_path(path).write_text(text)
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    special = path.exists() and not path.is_file()  # such as /dev/stdout, which is not replaced
    new = path if special else path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.write_text(text, encoding="utf-8", newline="\n")
        if new != path:
            new.replace(path)
    except BaseException as error:
        if new != path:
            new.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:  # of a write
            error.filename = str(path)
        raise


class AppendedText:
    """Lines at the end of a file that only grows. What cannot be written now is written later.

    An object of a bucket is written again as a whole, so lines wait for REWRITE_SECONDS or more: a
    hundredth of the time goes into writing at most.
    """

    def __init__(self, path: str | Path):
        self.path, self._unwritten = as_path(path), b""
        self._file: int | None = None
        self._due = 0.0
        self._object: bytes | None = None
        if isinstance(self.path, BucketPath):
            self._object = self.path.read_bytes() if self.path.exists() else b""

    def append(self, line: str) -> None:
        """Write a line at once; raises OSError if it must wait for the next call or `close`."""
        self._unwritten += line.encode() + b"\n"
        if self._object is not None:
            if time.monotonic() >= self._due:
                self.flush()
            return
        if self._file is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            self._file = os.open(self.path, flags, 0o666)
            if self.path.is_file():  # drop a last line that a crash cut off
                content = self.path.read_bytes()
                os.ftruncate(self._file, content.rfind(b"\n") + 1)
        while self._unwritten:
            self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]

    def flush(self) -> None:
        """Write a bucket's lines now."""
        if self._object is not None and self._unwritten:
            start = time.monotonic()
            try:
                self.path.write_bytes(self._object + self._unwritten)
                self._object, self._unwritten = self._object + self._unwritten, b""
            finally:
                now = time.monotonic()
                self._due = now + max(REWRITE_SECONDS, min(60.0, 100 * (now - start)))

    def close(self) -> None:
        """Write what is left and close; raises OSError if that is not possible."""
        self.flush()
        try:
            if self._unwritten and self._file is not None:
                os.write(self._file, self._unwritten)
        finally:
            if self._file is not None:
                os.close(self._file)


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
) -> Iterator[Path]:
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
        with _exit_on_sigterm():
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
    with _exit_on_sigterm(), _scratch_directory(new):
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
def _scratch_directory(path: Path) -> Iterator[None]:
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
def _exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit(143) in the block, unless the program handles it otherwise."""
    default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
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


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise InputError(f"got the key {key!r} twice in one object; keep one of them")
    return value
