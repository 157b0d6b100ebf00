"""archives.py: the members are those that tarfile reads; nothing unsafe or cut passes silently."""

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc

import pytest
import zstandard

from biomedlm_jax.corpus.archives import is_archive, read_members
from biomedlm_jax.corpus.articles import Rejection
from biomedlm_jax.errors import InputError

COMPRESS = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tar.zst": zstandard.ZstdCompressor().compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lambda data: lzma.compress(data, preset=0),
}
LONG = "PMC/" + "é" * 90 + "/" + "x" * 150 + ".nxml"


def tar(members, tar_format=tarfile.PAX_FORMAT) -> bytes:
    """An archive of (name, bytes or type) in order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes) and len(content) != 1:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content, "/etc/passwd"
                archive.addfile(info)
    return buffer.getvalue()


def read(path, data: bytes, limit: int = 10_000):
    path.write_bytes(data)
    return list(read_members(path, (".nxml", ".xml"), limit=limit))


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_the_members_are_those_that_were_written(tmp_path, suffix, tar_format):
    members = [
        ("a.nxml", b"one"),
        ("PMC/", tarfile.DIRTYPE),
        ("PMC/b.XML", b"x" * 1500),
        ("PMC/figure.jpg", b"\0" * 2000),
        ("PMC/._b.xml", b"resource fork"),
        (LONG, b""),
        ("c.xml", b"y" * 512),
    ]
    path = tmp_path / f"a{suffix}"
    assert is_archive(path)
    wanted = [members[i] for i in (0, 2, 5, 6)]
    assert read(path, COMPRESS[suffix](tar(members, tar_format))) == wanted
    assert not is_archive("a.xml.gz")


@pytest.mark.parametrize(
    "name", ["../a.xml", "x/../../a.xml", "/etc/a.xml", "\\a.xml", "x\\..\\a.xml", "C:/a.xml"]
)
def test_names_that_lead_out_are_rejected_and_the_rest_is_read(tmp_path, name):
    path = tmp_path / "a.tar"
    item, rest = read(path, tar([(name, b"<article/>"), ("b.xml", b"two")]))
    assert (item.place, item.reason) == (f"{path}:{name}", "unsafe")
    assert rest == ("b.xml", b"two")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_are_rejected(tmp_path, kind):
    item, rest = read(tmp_path / "a.tar", tar([("a.xml", kind), ("b.xml", b"two")]))
    assert item.reason == "unsafe"
    assert rest == ("b.xml", b"two")


def test_a_large_member_is_passed_over(tmp_path):
    path = tmp_path / "a.tar.gz"
    data = gzip.compress(tar([("a.xml", b"\0" * 30_000_000), ("b.xml", b"two")]))
    tracemalloc.start()
    item, rest = read(path, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert item == Rejection(f"{path}:a.xml", "long", "30,000,000 bytes; at most 10,000 are read")
    assert rest == ("b.xml", b"two")
    assert peak < 8_000_000


def test_a_cut_or_damaged_archive_does_not_pass_for_a_short_one(tmp_path):
    path = tmp_path / "a.tar"
    members = [(f"{i}.xml", b"x" * 1000) for i in range(4)]
    data = tar(members)
    for end in (1, 511, 512, 900, 1536, 2000, 3072, 6144):  # the last is just before the end mark
        *whole, last = read(path, data[:end])
        assert last.reason == "truncated", end
        assert whole == members[: end // 1536]
    damaged = bytearray(data)
    damaged[1536 + 148] ^= 1  # the checksum of the second header; tarfile stops without an error
    first, last = read(path, bytes(damaged))
    assert first == members[0]
    assert (last.reason, last.detail) == (
        "truncated",
        "after 0.xml: no header of a tar archive (bad checksum)",
    )
    packed = gzip.compress(data)
    *_, last = read(tmp_path / "a.tar.gz", packed[:-4])
    assert last.reason == "truncated"
    assert [item.reason for item in read(path, b"<article/>" * 200)] == ["truncated"]
    with pytest.raises(InputError, match="no such file"):
        list(read_members(tmp_path / "b.tar", (".xml",), limit=10))


def test_extended_headers(tmp_path):
    path = tmp_path / "a.tar"
    for data in (b"x", b"99999 path=a\n", b" =\n", b"2 path=a\n"):
        info = tarfile.TarInfo("h")
        info.type, info.size = tarfile.XHDTYPE, len(data)
        blob = info.tobuf() + data.ljust(512, b"\0") + tar([("a.xml", b"one")])
        (item,) = read(path, blob)
        assert item.detail.endswith("an extended header is damaged")
    info.size = 1 << 30
    (item,) = read(path, info.tobuf())
    assert "an extended header of 1,073,741,824 bytes" in item.detail
    info = tarfile.TarInfo("a.xml")
    info.size = 1  # the field "size" says more
    field = b"10 size=3\n"
    header = tarfile.TarInfo("h")
    header.type, header.size = tarfile.XHDTYPE, len(field)
    blob = header.tobuf() + field.ljust(512, b"\0") + info.tobuf() + b"abc".ljust(512, b"\0")
    assert read(path, blob + bytes(1024)) == [("a.xml", b"abc")]
