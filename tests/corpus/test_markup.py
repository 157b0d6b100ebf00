"""markup.py: strict parsing of each record alone; what is lost is counted, and nothing else."""

import gzip
import re
import tracemalloc

import pytest
from lxml import etree

from biomedlm_jax.corpus.articles import Rejection
from biomedlm_jax.corpus.markup import (
    make_parser,
    parse_records,
    parse_xml,
    read_records,
)
from biomedlm_jax.errors import InputError

DECLARED = '<?xml version="1.0" encoding="{}"?><set><a>é</a></set>'
HEAD = '<?xml version="1.0"?>\n<!DOCTYPE set SYSTEM "set.dtd">\n<set>\n'


def items(data: bytes | str, *, size: int = 1 << 20, **options):
    """The text of each record, or the reason of a Rejection."""
    data = data.encode() if isinstance(data, str) else data
    blocks = [data[i : i + size] for i in range(0, len(data), size)]
    options = {"roots": ["set"], **options}
    return [
        (item.place, item.reason) if isinstance(item, Rejection) else (item[0], item[1].text)
        for item in parse_records(blocks, "f", ["a", "b"], **options)
    ]


def values(data, **options):
    return [value for _, value in items(data, **options)]


def reason_and_detail(data: bytes, **options) -> tuple[str, str]:
    """Those of the only Rejection, which is the last item."""
    *_, last = parse_records([data], "f", ["a"], **{"roots": ["set"], **options})
    assert isinstance(last, Rejection)
    assert last.detail.isprintable()
    return last.reason, last.detail


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 1000])
def test_the_cuts_of_the_blocks_do_not_matter(size):
    comment = "<!-- <a>no</a> --><?pi <a>no</a> ?>"
    text = f"{HEAD}<a>1</a>\n{comment}<b x='2'>2</b >\n<b x='2'>2</b><a>3<c>4</c></a></set>\n"
    text = text.replace("<b x='2'>2</b >\n", "")
    assert items(text, size=size) == [("f:1", "1"), ("f:2", "2"), ("f:3", "3")]
    broken = f"{HEAD}<a>1</a><a>2<x></a><a>3<a>4</a></set>"
    assert items(broken, size=size) == [
        ("f:1", "1"),
        ("f:2", "broken"),
        ("f:3", "broken"),
        ("f:4", "4"),
    ]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("<set/>", []),
        ("<x:set xmlns:x='u'><x:a>1</x:a></x:set>", ["broken"]),  # the prefix is not declared
        ("<set><a>1</a><a>2", ["1", "truncated"]),
        ("<set><a>1</a><!-- 2", ["1", "truncated"]),
        ("<set><a>1</a>\n", ["1", "truncated"]),
        ("<set>", ["truncated"]),
        ("<set> ", ["truncated"]),
        ("<set x='1' />\n", []),
        ("<set><z>1</a><a>2</a><z>3</a></set>", ["broken", "2", "broken"]),
        ("<set>lost<a>2</a>lost</set>", ["broken", "2", "broken"]),
        ("<set>lost</set>", ["broken"]),
        ("<z>1</a><a>2</a></set>", ["broken", "2", "broken"]),
        ("<set><a>2</a>", ["2", "truncated"]),
        ("", ["truncated"]),
        ("<html><body>503</body></html>", ["wrong_format"]),
        ("{}", ["wrong_format"]),
        (b"PK\x03\x04" + bytes(300), ["wrong_format"]),
        ("<set><a>1</a> <z>lost</a> <a>3</a></set>", ["1", "broken", "3"]),
        ("<set><a>1</a> lost <a>3</a></set>", ["1", "broken", "3"]),
        ("<set><a>1</a><a>\0</a><a>3</a></set>", ["1", "broken", "3"]),
        ("<set><a>1</a><a>&#0;</a><a>&#x1F;</a></set>", ["1", "broken", "broken"]),
        (b"<set><a>1</a><a>\xe9</a><a>3</a></set>", ["1", "encoding", "3"]),
        (b"<set><a>\xed\xa0\x80</a><a>\xff\xfe</a></set>", ["encoding", "encoding"]),
        ("<set><a>&beta;&nbsp;&amp;&lt;&NotEqualTilde;</a></set>", ["β\xa0&<≂̸"]),
        ("<set><a>&mine;</a></set>", ["broken"]),
        ("<set><a><!DOCTYPE x [<!ENTITY e 'E'>]>&e;</a></set>", ["broken"]),
        ("<a>1</a>", ["1"]),
        ("\ufeff<set><a>é</a></set>", ["é"]),
        ("<set><a>1</a></set>".encode("utf-16"), ["1"]),
        ("<set><a>1</a></set>".encode("utf-16")[:-3], ["1", "encoding"]),
        ('<?xml version="1.0" encoding="ISO-8859-1"?><set><a>é</a></set>'.encode("latin-1"), ["é"]),
        (
            '<?xml version="1.0" encoding="windows-1252"?><set><a>“</a></set>'.encode("cp1252"),
            ["“"],
        ),
        (DECLARED.format("klingon"), ["encoding"]),
        (DECLARED.format("UTF-16"), ["é"]),
        ("<set><!DOCTYPE", ["truncated"]),
    ],
)
def test_each_lost_record_is_one_rejection(data, expected):
    assert values(data) == expected
    assert values(data, size=5) == expected


def test_entities_are_neither_expanded_nor_fetched(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    levels = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    for definition, reference in (
        ('<!ENTITY l0 "ha">' + levels, "&l9;"),
        (f'<!ENTITY x SYSTEM "{secret.as_uri()}">', "&x;"),
        ('<!ENTITY x SYSTEM "http://127.0.0.1:9/x">', "&x;"),
        ('<!ENTITY % p SYSTEM "http://127.0.0.1:9/x"> %p;', "&x;"),
        ('<!ENTITY x "<a>7</a>">', "&x;"),
    ):
        data = f"<!DOCTYPE set [{definition}]>\n<set><a>1</a><a>{reference}</a><a>3</a></set>"
        assert items(data) == [("f:1", "1"), ("f:2", "broken"), ("f:3", "3")]
    reason, detail = reason_and_detail(b"<set><a>&l9;</a></set>")
    assert (reason, detail[:23]) == ("broken", "Entity 'l9' not defined")


def test_a_record_beyond_the_limit_is_passed_over_in_bounded_memory():
    def blocks():
        yield b"<set><a>1</a><a>"
        for _ in range(3000):
            yield b"x" * 10_000
        yield b"</a><a>3</a><a>" + b"y" * 2000 + b"</a></set>"

    tracemalloc.start()
    read = list(parse_records(blocks(), "f", ["a"], roots=["set"], limit=1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [getattr(item, "reason", "") for item in read] == ["", "long", "", "long"]
    assert read[1] == Rejection("f:2", "long", "more than 1,000 bytes")
    assert peak < 1_000_000


@pytest.mark.parametrize("filler", [b"z" * 10_000, b"<!--" + b"z" * 9_000 + b"-->", b" " * 10_000])
def test_what_stands_between_records_takes_no_memory(filler):
    def blocks():
        yield b"<set>"
        for _ in range(1000):
            yield filler
        yield b"<a>1</a></set>"

    tracemalloc.start()
    read = list(parse_records(blocks(), "f", ["a"], roots=["set"], alone=False))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(read) == 1
    assert peak < 1_000_000


def test_a_long_comment_is_passed_over():
    data = b"<set><a>1</a><!--" + b"x" * 50_000 + b"--><a>2</a></set>"
    assert values(data, size=100, limit=1000) == ["1", "2"]


def test_a_damaged_stream_is_read_as_far_as_it_goes(tmp_path):
    data = gzip.compress(b"<set>" + b"".join(b"<a>%d</a>" % i for i in range(50_000)) + b"</set>")
    path = tmp_path / "f.xml.gz"
    path.write_bytes(data[: len(data) // 2])
    *records, last = read_records(path, ["a"], roots=["set"])
    assert 1000 < len(records) < 49_000
    assert [record[1].text for record in records] == [str(i) for i in range(len(records))]
    assert (last.reason, last.place) == ("truncated", f"{path}:{len(records) + 1}")
    path.write_bytes(data[:-8] + b"\0" * 8)  # another checksum
    assert list(read_records(path, ["a"], roots=["set"]))[-1].reason == "truncated"
    path.write_bytes(b"")
    assert [item.reason for item in read_records(path, ["a"], roots=["set"])] == ["truncated"]
    with pytest.raises(InputError, match="no such file"):
        list(read_records(tmp_path / "none.xml", ["a"], roots=["set"]))


def test_records_may_stand_among_others_if_they_are_not_alone():
    data = "<set><record><h>1</h><a>1</a></record><record><h>2</h><a>2</a></record></set>"
    assert values(data, alone=False) == ["1", "2"]
    assert values(data) == ["broken", "1", "broken", "2", "broken"]
    assert values("<set><a>1</a><y>2</a><a>3</a></set>", alone=False) == ["1", "broken", "3"]


def test_a_deep_record_is_refused_by_the_parser():
    deep = b"<a>" + b"<i>" * 5000 + b"</i>" * 5000 + b"</a>"
    reason, detail = reason_and_detail(b"<set>" + deep + b"</set>")
    assert reason == "broken"
    assert "depth" in detail


def test_the_parser_is_not_lenient():
    parser = make_parser()
    for text in (b"<a><b></a>", b"<a b=1/>", b"<a/><a/>", b"<a>&x;</a>", b""):
        with pytest.raises(etree.XMLSyntaxError):
            parse_xml(text, parser)
    assert re.match("6", ".".join(map(str, etree.LXML_VERSION)))
