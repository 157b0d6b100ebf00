"""Archives: the members of a tar file, one at a time, in bounded memory.

Nothing is written to disk. Python's own reader, as a stream, takes a damaged header for the end;
this one yields a Rejection unless the archive has its end mark.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from biomedlm_jax.corpus.articles import Rejection
from biomedlm_jax.streams import BrokenStreamError, read_blocks

NAMES = (".tar", ".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz")
_BLOCK, _LONGEST_HEADER = 512, 1 << 16
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_HEADERS = (*_EXTENDED, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def is_archive(path: str | Path) -> bool:
    """Return whether the name of a file is that of an archive."""
    return str(path).lower().endswith(NAMES)


def read_members(
    path: str | Path, suffixes: tuple[str, ...], *, limit: int
) -> Iterator[tuple[str, bytes] | Rejection]:
    """Yield (name, bytes) of the files of a tar archive that end in one of `suffixes`.

    The archive may be compressed. A member is a Rejection `unsafe` with an absolute name, `..` in
    it, or of another type than a file, and `long` with more than `limit` bytes; hidden files, as
    macOS adds them, are omitted. What cannot be read to its end is a Rejection `truncated`.

    Raises InputError if the file cannot be opened.
    """
    source = _Source(read_blocks(path))
    last = "the first member"
    try:
        extended: dict[str, bytes] = {}  # what headers before the member's own say of it
        while True:
            header = source.take(_BLOCK)
            try:
                member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.EOFHeaderError:  # ty: ignore[missing-attribute]
                source.drain()
                return
            except tarfile.HeaderError as error:
                raise EOFError(f"no header of a tar archive ({error})") from None
            if member.type in _HEADERS:
                if member.size > _LONGEST_HEADER:
                    raise EOFError(f"an extended header of {member.size:,} bytes")
                data = source.take(_padded(member.size))[: member.size]
                if member.type == tarfile.GNUTYPE_LONGNAME:
                    extended["path"] = data.rstrip(b"\0")
                elif member.type in _EXTENDED:
                    extended |= _fields(data)
                continue
            if extended.get("size", b"").isdigit():
                member.size = int(extended["size"])
            name = extended.get("path", b"").decode("utf-8", "surrogateescape") or member.name
            extended, last = {}, name
            place, wanted = f"{path}:{name}", name.lower().endswith(suffixes)
            hidden = PurePosixPath(name).name.startswith(".")
            size = 0 if member.islnk() or member.issym() else _padded(member.size)
            fault = _fault(name, member)
            if not wanted or hidden or member.isdir():
                source.skip(size)
            elif fault or member.size > limit:
                source.skip(size)
                long = f"{member.size:,} bytes; at most {limit:,} are read"
                yield Rejection(place, "unsafe" if fault else "long", fault or long)
            else:
                yield name, source.take(size)[: member.size]
    except (BrokenStreamError, EOFError) as error:
        yield Rejection(f"{path}", "truncated", f"after {last}: {error}")


def _fault(name: str, member: tarfile.TarInfo) -> str:
    if not member.isreg() or member.issparse():
        return f"the member is no plain file (type {member.type!r})"
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        return "the name of the member leads out of the archive"
    return ""


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _fields(data: bytes) -> dict[str, bytes]:
    """Return the fields of an extended header: "LENGTH key=value\\n", the length of all that."""
    fields = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(data):
            raise EOFError("an extended header is damaged")
        record, data = data[len(length) + 1 : int(length)], data[int(length) :]
        key, _, value = record.removesuffix(b"\n").partition(b"=")
        fields[key.decode("utf-8", "replace")] = value
    return fields


class _Source:
    """A stream of blocks, read by number of bytes."""

    def __init__(self, blocks: Iterator[bytes]):
        self.blocks, self.rest = blocks, b""

    def take(self, size: int) -> bytes:
        parts, wanted = [], size
        while wanted > 0:
            if not self.rest:
                self.rest = next(self.blocks, b"")
                if not self.rest:
                    raise EOFError("the archive ends without its end mark")
            parts.append(self.rest[:wanted])
            self.rest = self.rest[wanted:]
            wanted -= len(parts[-1])
        return b"".join(parts)

    def skip(self, size: int) -> None:
        while size > 0:
            piece = min(size, 1 << 20)
            self.take(piece)
            size -= piece

    def drain(self) -> None:
        """Read to the end of the compressed stream, whose checksum comes last."""
        for _ in self.blocks:
            pass
