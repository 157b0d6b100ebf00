"""BucketPath: a path of Google Cloud Storage, with the methods of `pathlib.Path` used here.

It is no `os.PathLike`: where a library would take gs://bucket/run for the local path gs:/bucket/run
it raises TypeError. Each object is written in one step, so no reader gets half of one. Every error
of the storage is an OSError.
"""

import contextlib
import errno
import fnmatch
import functools
import io
import logging
import os
from collections.abc import Callable, Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from biomedlm_jax.errors import InputError

SCHEME = "gs://"
BLOCK_BYTES = 2**24  # of a request that reads a large object


def is_bucket(path: Any) -> bool:
    """Return whether `path`, a string or an object, is one of Google Cloud Storage."""
    return str(path)[: len(SCHEME)].lower() == SCHEME


@functools.cache
def _storage() -> Any:
    if find_spec("gcsfs") is None:
        fix = "pip install 'biomedlm-jax[gcs]'"
        raise InputError(f"paths of {SCHEME} need gcsfs, which is not installed; {fix}")
    import fsspec
    from fsspec.config import conf

    # Of every client in this process, those of Orbax and TFDS too: a listing that is kept does not
    # show what another process wrote since.
    conf.setdefault("gcs", {})["use_listings_cache"] = False
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the errors that it raises
    return fsspec.filesystem("gcs")


class BucketPath:
    """The object, or the prefix of objects, gs://bucket/name."""

    def __init__(self, url: str):
        parts = [part for part in url[len(SCHEME) :].split("/") if part not in ("", ".")]
        if not parts or ".." in parts:
            raise InputError(f"got {url}; expected {SCHEME}BUCKET/NAME")
        self._key = "/".join(parts)

    @property
    def _fs(self) -> Any:
        return _storage()

    def __str__(self) -> str:
        return SCHEME + self._key

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __lt__(self, other: "BucketPath") -> bool:
        return self._key < other._key

    def __truediv__(self, name: object) -> "BucketPath":
        return BucketPath(f"{self}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self._key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of the name, such as ".json"."""
        return os.path.splitext(self.name)[1]

    @property
    def parent(self) -> "BucketPath":
        """The path without its last part; a bucket is its own parent."""
        return BucketPath(SCHEME + (self._key.rpartition("/")[0] or self._key))

    def with_name(self, name: str) -> "BucketPath":
        """Return the path with another last part."""
        return self.parent / name

    def relative_to(self, other: "BucketPath") -> str:
        """Return the name below `other`."""
        return self._key.removeprefix(f"{other._key}/")

    def absolute(self) -> "BucketPath":
        """Return the path: all are absolute."""
        return self

    resolve = absolute

    # ---- Reading.

    def _info(self) -> dict[str, Any] | None:
        with _storage_errors(self), contextlib.suppress(FileNotFoundError):
            return self._fs.info(self._key)
        return None

    def exists(self) -> bool:
        """Return whether there is an object, or one below this path."""
        return self._info() is not None

    def is_file(self) -> bool:
        """Return whether there is an object."""
        return (self._info() or {}).get("type") == "file"

    def is_dir(self) -> bool:
        """Return whether there are objects below this path."""
        return (self._info() or {}).get("type") == "directory"

    def stat(self) -> Any:
        """Return `st_size`, the bytes of the object."""
        with _storage_errors(self):
            return SimpleNamespace(st_size=self._fs.info(self._key)["size"])

    def iterdir(self) -> Iterator["BucketPath"]:
        """Yield what lies directly below; raises FileNotFoundError if nothing does."""
        with _storage_errors(self):
            names = self._fs.ls(self._key, detail=False)
        yield from (BucketPath(SCHEME + name) for name in names if name.rstrip("/") != self._key)

    def glob(self, pattern: str) -> list["BucketPath"]:
        """Return what lies directly below and matches; nothing if nothing does."""
        with contextlib.suppress(FileNotFoundError):
            return [path for path in self.iterdir() if fnmatch.fnmatch(path.name, pattern)]
        return []

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every object below, by its name relative to this path."""
        with _storage_errors(self):
            listed = self._fs.find(self._key, detail=True)
        named = {name.removeprefix(f"{self._key}/"): info["size"] for name, info in listed.items()}
        # Others are the path itself, if it is an object, and marks of empty folders.
        others = {self._key, ""}
        return {n: size for n, size in named.items() if n not in others and not n.endswith("/")}

    def open(self, mode: str = "rb", buffering: int = BLOCK_BYTES) -> io.BufferedReader:
        """Open the object for reading in blocks; writing is `write_bytes`."""
        assert mode == "rb", mode
        return io.BufferedReader(_Object(self, self.stat().st_size), buffering)

    def read_bytes(self, start: int | None = None, end: int | None = None) -> bytes:
        """Return the object, or a part of it."""
        with _storage_errors(self):
            return self._fs.cat_file(self._key, start=start, end=end)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the object as text."""
        return self.read_bytes().decode(encoding)

    def download(self, folder: Path, wanted: Callable[[str], bool]) -> None:
        """Copy the objects below into a local directory, those whose names are `wanted`."""
        for name in filter(wanted, self.sizes()):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with _storage_errors(self / name):
                self._fs.get_file(f"{self._key}/{name}", str(file))

    # ---- Writing.

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Do nothing: prefixes need not be made."""

    def write_bytes(self, data: bytes) -> None:
        """Write the object in one step."""
        with _storage_errors(self, writing=True):
            self._fs.pipe_file(self._key, data)

    def create(self, data: bytes) -> None:
        """Write the object in one step; raises FileExistsError if there is one already."""
        with _storage_errors(self, writing=True):
            self._fs.pipe_file(self._key, data, mode="create")

    def write_text(self, text: str, encoding: str = "utf-8", newline: str = "\n") -> None:
        """Write the object in one step."""
        self.write_bytes(text.encode(encoding))

    def upload(self, folder: Path) -> None:
        """Copy the files below a local directory to below this path."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder).as_posix()
            with _storage_errors(self / name, writing=True):
                self._fs.put_file(str(file), f"{self._key}/{name}")

    def copy_to(self, target: "BucketPath") -> None:
        """Copy the object within the storage."""
        with _storage_errors(self):
            self._fs.cp_file(self._key, target._key)

    def rename(self, target: "BucketPath") -> None:
        """Move the objects below this path to below another."""
        for name in self.sizes():
            (self / name).copy_to(target / name)
        self.rmtree()

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        with _storage_errors(self):
            try:
                self._fs.rm_file(self._key)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def rmtree(self) -> None:
        """Delete all objects below."""
        if names := [f"{self._key}/{name}" for name in self.sizes()]:
            with _storage_errors(self), contextlib.suppress(FileNotFoundError):
                self._fs.rm(names)


def as_path(path: Any) -> Path:
    """Return a Path, or for gs://bucket/name a BucketPath, which has the methods of one.

    Raises InputError if gcsfs is not installed.
    """
    if is_bucket(path):
        return cast(Path, path if isinstance(path, BucketPath) else BucketPath(str(path)))
    if str(path).lower().startswith(SCHEME[:-1]):  # Path("gs://b") is the local path gs:/b
        raise InputError(f"got {path}, a pathlib.Path; pass paths of {SCHEME} as strings")
    return Path(path)


class _Object(io.RawIOBase):
    """An object that is read by ranges."""

    def __init__(self, path: BucketPath, size: int):
        self._path, self._size, self._place = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {0: 0, 1: self._place, 2: self._size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        end = min(self._place + len(buffer), self._size)
        data = self._path.read_bytes(self._place, end) if self._place < end else b""
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def readall(self) -> bytes:
        data = self._path.read_bytes(self._place, self._size) if self._place < self._size else b""
        self._place += len(data)
        return data


@contextlib.contextmanager
def _storage_errors(path: BucketPath, *, writing: bool = False) -> Generator[None]:
    """Raise every error of the storage as an OSError that names the path."""
    try:
        yield
    except FileNotFoundError as error:
        if writing:
            bucket = str(path).split("/")[2]
            fix = f"create it first: gcloud storage buckets create {SCHEME}{bucket}"
            raise InputError(
                f"there is no bucket {bucket}, or not for this account; {fix}"
            ) from None
        raise OSError(errno.ENOENT, "no such object", str(path)) from error
    except FileExistsError as error:
        raise OSError(errno.EEXIST, "the object exists", str(path)) from error
    except InputError:
        raise
    except Exception as error:  # of gcsfs, aiohttp, requests and google.auth
        text = " ".join(str(error).split())[:300]
        raise OSError(errno.EIO, f"{type(error).__name__}: {text}", str(path)) from error
