"""streams.py: lines and blocks of compressed files, in bounded memory; damage is never silent."""

import bz2
import gzip
import lzma
import os
import random

import pytest
import zstandard

from biomedlm_jax import streams
from biomedlm_jax.streams import BrokenStreamError, read_blocks, read_lines, reading

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("data", [b"", b"\n", b"a", b"a\n", b"a\r\nb\x0bc\n\nd"])
def test_lines_are_those_of_the_file(tmp_path, suffix, data):
    path = tmp_path / f"a{suffix.upper()}"
    path.write_bytes(COMPRESS[suffix](data))
    expected = list(enumerate(data.splitlines(keepends=True), 1))
    if b"\x0b" in data:
        expected = [(1, b"a\r\n"), (2, b"b\x0bc\n"), (3, b"\n"), (4, b"d")]
    assert list(read_lines(path)) == expected


@pytest.mark.parametrize("suffix", list(COMPRESS)[1:])
def test_a_damaged_stream_names_the_line_after_the_last_good_one(tmp_path, suffix):
    whole = b"".join(b"%d %s\n" % (i, os.urandom(40).hex().encode()) for i in range(5000))
    path = tmp_path / f"a{suffix}"
    for data in (COMPRESS[suffix](whole)[:-20_000], b"", b"not compressed at all"):
        path.write_bytes(data)
        lines = []
        with pytest.raises(BrokenStreamError, match="damaged or truncated") as caught:
            lines.extend(read_lines(path))
        assert f"{path}:" in str(caught.value)


def test_a_long_line_is_copied_once_and_one_beyond_the_limit_is_named(tmp_path, monkeypatch):
    """A line in parts, each appended to the rest, would take quadratic time."""
    path, sizes, lines = tmp_path / "a.zst", [], []
    path.write_bytes(COMPRESS[".zst"](b"a\n" + b"x" * 5_000_000 + b"\nb\n"))
    decompressed, readinto = streams._decompressed, streams._Stream.readinto

    class Spy:
        def __init__(self, *arguments):
            self.file = decompressed(*arguments)

        def readline(self, limit):
            lines.append(len(line := self.file.readline(limit)))
            return line

    def counted(stream, buffer):
        sizes.append(readinto(stream, buffer))
        return sizes[-1]

    with monkeypatch.context() as patch:
        patch.setattr(streams, "_decompressed", Spy)
        patch.setattr(streams._Stream, "readinto", counted)
        assert [len(line) for _, line in read_lines(path)] == [2, 5_000_001, 2]
    assert lines == [2, 5_000_001, 2, 0]
    assert sum(sizes) == 5_000_005
    assert len(sizes) < 200  # 39 buffers
    with pytest.raises(ValueError, match=r"a\.zst:2: the line is longer than 1,000 bytes"):
        list(read_lines(path, limit=1000))
    messages = []
    kept = list(read_lines(path, limit=1000, on_long=messages.append))
    assert (kept, len(messages)) == ([(1, b"a\n"), (3, b"b\n")], 1)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz"])  # bz2 has blocks of 900 kB
def test_blocks_before_a_damage_are_read(tmp_path, suffix):
    text = random.Random(0).randbytes(300_000).hex().encode()
    path, blocks = tmp_path / f"a{suffix}", []
    path.write_bytes(COMPRESS[suffix](text)[:200_000])
    with pytest.raises(BrokenStreamError):
        blocks.extend(read_blocks(path))  # keeps what came before the error
    read = b"".join(blocks)
    assert text.startswith(read)
    assert len(read) > 250_000


@pytest.mark.parametrize("suffix", COMPRESS)
def test_the_position_is_that_in_the_file_on_the_disk(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(COMPRESS[suffix](os.urandom(1 << 21)))
    size, positions = path.stat().st_size, []
    for _ in read_blocks(path):
        file, position = reading()
        assert file == path
        positions.append(position)
    assert positions == sorted(positions)
    assert 0 < positions[0] < positions[-1] <= size
    assert positions[-1] > 0.9 * size
    assert reading() == (path, 0)  # closed
