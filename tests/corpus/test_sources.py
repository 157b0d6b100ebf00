import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedlm_jax.corpus.articles import Article, Rejection
from biomedlm_jax.corpus.sources import Source, TextFields, parse_sources, read_source
from biomedlm_jax.errors import InputError


def read(path, **fields) -> list:
    source = Source("mine", "text", (str(path),))
    return list(read_source(source, path, TextFields(**fields)))


def write(path, *rows) -> None:
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def test_sources_have_names_formats_and_paths():
    values = ["medline:baseline/,updatefiles/", "pile=text:C:/p=q/*.zst", "my-pmc.2=pmc:a"]
    assert parse_sources(values) == (
        Source("medline", "medline", ("baseline/", "updatefiles/")),
        Source("pile", "text", ("C:/p=q/*.zst",)),
        Source("my-pmc.2", "pmc", ("a",)),
    )
    for value in ("baseline/", "xml:a", "medline:", "medline:,", "a b=text:x"):
        with pytest.raises(InputError, match=r"got --source=.*; expected \[NAME=\]FORMAT:PATH"):
            parse_sources([value])
    with pytest.raises(InputError, match="got 2 sources with the name text; list their paths in"):
        parse_sources(["text:a", "text:b"])
    with pytest.raises(InputError, match="no source"):
        parse_sources([])


def test_files_of_a_source_are_those_of_its_format(tmp_path):
    names = ("pubmed26n0002.xml.gz", "pubmed26n0001.xml.gz", "pubmed26n0001.xml.gz.md5", "a.jsonl")
    for name in (*names, "PMC1.nxml", "oa.tar.gz", "oa.tgz"):
        (tmp_path / name).touch()
    skipped = []
    files = Source("a", "medline", (str(tmp_path),)).files(skipped)
    xml = ["PMC1.nxml", "oa.tar.gz", "oa.tgz", "pubmed26n0001.xml.gz", "pubmed26n0002.xml.gz"]
    assert [file.name for file in files] == xml
    assert len(skipped) == 2
    assert [file.name for file in Source("a", "text", (str(tmp_path),)).files()] == ["a.jsonl"]
    with pytest.raises(InputError, match=r"the known formats are \.xml, \.nxml, \.tar, \.tgz"):
        Source("a", "pmc", (str(tmp_path / "a.jsonl"),)).files()


def test_records_of_json_lines_are_articles(tmp_path):
    path = tmp_path / "a.jsonl"
    row = {"pmcid": "PMC7", "pmid": 12, "doi": "10.1/x", "license": "CC-BY", "year": "2004-05-01"}
    row |= {"title": "T", "abstract": ["A.", "", "B."], "body": None, "type": "letter"}
    row |= {"languages": ["en", "fr"], "journal": "J"}
    more = [{"text": "Whole.", "title": "T", "pmid": "PMID: 9", "pmcid": 8, "year": 1999}]
    write(path, row, b"", *more, {"text": "Only text."}, {"text": "", "pmid": "none"})
    assert read(path) == [
        Article(
            place=f"{path}:1",
            source="mine",
            title="T",
            abstract="A.\n\nB.",
            pmid="12",
            pmcid="PMC7",
            doi="10.1/x",
            license="CC-BY",
            year=2004,
            languages=("en", "fr"),
            types=("letter",),
            journal="J",
        ),
        Article(f"{path}:3", "mine", body="Whole.", pmid="9", pmcid="PMC8", year=1999),
        Article(f"{path}:4", "mine", body="Only text."),
        Article(f"{path}:5", "mine"),
    ]


def test_a_field_of_the_text_can_be_named(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, {"t": "T", "meta": {"x": "X"}}, {"t": "T"})
    first, second = read(path, text_field="t,meta.x")
    assert first.body == "T\n\nX"
    assert second.reason == "broken"
    assert "--text_field=meta.x is not among the fields ['t']" in second.detail


def test_subsets_of_the_pile(tmp_path):
    path = tmp_path / "a.jsonl"
    names = ("PubMed Abstracts", "Github", "PubMed Central")
    rows = [{"text": name, "meta": {"pile_set_name": name}} for name in names]
    write(path, *rows, {"text": "no subset"})
    got = read(path, subsets=names[::2])
    assert [one.source for one in got[::2]] == list(names[::2])
    assert [one.reason for one in got[1::2]] == ["other_subset", "broken"]
    assert [one.source for one in read(path)] == ["mine"] * 4


def test_what_cannot_be_read_is_rejected_and_the_rest_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    bad = [b"{", b'{"text": 1}', b'{"text": "\\ud800"}', b'{"text": "a\\u0000"}', b"\xff", b"[]"]
    write(path, *bad, {"text": "good", "doi": "\ud800"}, {"text": "good"})
    *rejected, good = read(path)
    assert good == Article(f"{path}:8", "mine", body="good")
    assert [(one.place, one.reason) for one in rejected] == [
        (f"{path}:{line}", "broken") for line in range(1, 8)
    ]
    assert all(isinstance(one, Rejection) and one.detail for one in rejected)


def test_a_truncated_file_ends_in_one_rejection(tmp_path):
    path, lines = tmp_path / "a.jsonl.gz", [json.dumps({"text": f"{n} " * 400}) for n in range(50)]
    path.write_bytes(gzip.compress("\n".join(lines).encode())[:-200])
    *articles, last = read(path)
    assert articles[0].body.startswith("0 0 ")
    assert (last.place, last.reason) == (str(path), "damaged")
    array = tmp_path / "a.json"
    array.write_text('[{"text": "one"}, {"text": ')
    one, last = read(array)
    assert (one.body, last.reason) == ("one", "damaged")


def test_other_files_of_texts(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo".encode())
    assert [one.body for one in read(tmp_path / "a.txt")] == ["one\ntwo"]
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    assert [one.reason for one in read(tmp_path / "b.txt")] == ["broken"]
    pq.write_table(pa.table({"text": ["one", None], "pmid": [1, 2]}), tmp_path / "c.parquet")
    one, two = read(tmp_path / "c.parquet")
    assert (one.body, one.pmid, two.body, two.pmid) == ("one", "1", "", "2")
    (tmp_path / "d.json").write_text('[{"text": "one"}, {"title": "two"}]')
    assert [one.text for one in read(tmp_path / "d.json")] == ["one", "two"]
