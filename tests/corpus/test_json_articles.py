"""json_articles.py: named fields become those of an Article, and what is left out is counted."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from biomedlm_jax.corpus.articles import Article, Rejection
from biomedlm_jax.corpus.json_articles import FieldNames, read_json_articles
from biomedlm_jax.errors import InputError

FIELDS = FieldNames(
    title="title",
    abstract="abstract",
    body="body",
    pmid="meta.pmid",
    pmcid="meta.pmcid",
    doi="doi",
    license="license",
    year="year",
    languages="languages",
    types="type",
    journal="journal",
)
RECORD = {
    "title": "T",
    "abstract": ["A", None, "B"],
    "body": None,
    "meta": {"pmid": 12, "pmcid": "PMC7"},
    "doi": "10.1/x",
    "license": "CC BY",
    "year": "2004-05",
    "languages": ["en", "fr"],
    "type": "letter",
    "journal": "J",
}


@pytest.fixture
def read(tmp_path):
    def read(*records, name="a.jsonl", **options):
        path = tmp_path / name
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return list(read_json_articles(path, **options))

    return read


def reasons(items):
    return [item.reason if isinstance(item, Rejection) else item.text for item in items]


def test_every_field(tmp_path, read):
    (article,) = read(RECORD, fields=FIELDS)
    path = tmp_path / "a.jsonl"
    assert article == Article(
        f"{path}:1",
        "jsonl",
        title="T",
        abstract="A\n\nB",
        pmid="12",
        pmcid="PMC7",
        doi="10.1/x",
        license="CC BY",
        year=2004,
        languages=("en", "fr"),
        types=("letter",),
        journal="J",
    )
    table = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([RECORD]), table)
    (row,) = read_json_articles(table, FIELDS)
    assert (row.place, row.source, row.text) == (f"{table}:1", "parquet", article.text)
    assert (row.year, row.pmid, row.languages) == (2004, "12", ("en", "fr"))


def test_values_that_are_no_ids_are_unknown(read):
    record = RECORD | {"year": 20041, "doi": None, "meta": {"pmid": "x", "pmcid": 7}}
    (article,) = read(record, fields=FIELDS)
    assert (article.year, article.doi, article.pmid, article.pmcid) == (None, "", "", "PMC7")


def test_the_pile(tmp_path):
    names = ["PubMed Central", "Github", "PubMed Abstracts"]
    records = [{"text": name, "meta": {"pile_set_name": name}} for name in names]
    path = tmp_path / "pile.jsonl.zst"
    data = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(zstandard.ZstdCompressor().compress(data.encode()))
    items = list(read_json_articles(path, subsets=["PubMed Abstracts", "PubMed Central"]))
    assert reasons(items) == ["PubMed Central", "subset", "PubMed Abstracts"]
    assert [items[0].source, items[0].body] == ["PubMed Central"] * 2
    assert items[1] == Rejection(f"{path}:2", "subset", "Github")
    assert len(reasons(read_json_articles(path))) == 3


def test_each_bad_record_is_one_rejection(read):
    items = read(
        {"text": "one"},
        b"",
        b'{"text": "tw',
        b"[1]",
        {"text": " "},
        {"text": None},
        {"body": "x"},
        {"text": 1},
        {"text": ["a", {}]},
        b'{"text": "\\ud83e"}',
        b'{"text": "\xff"}',
        {"text": "a\0"},
        b'{"text": "' + b"x" * 200 + b'"}',
        {"text": "last"},
        b'{"text": "' + b"x" * 200 + b'"}',
        limit=100,
    )
    broken = ["broken"] * 2, ["broken"] * 6
    expected = ["one", *broken[0], "empty", "empty", *broken[1], "long", "last", "long"]
    assert reasons(items) == expected
    numbers = [int(item.place.rpartition(":")[2]) for item in items]
    assert numbers == [1, *range(3, 16)]
    missing = "the field 'text' of body is missing; the record has 'body'"
    assert items[5].detail == missing


def test_plain_text_and_json(tmp_path, read):
    (article,) = read(b"one\r\n\r\ntwo", name="a.txt")
    assert (article.source, article.body) == ("txt", "one\n\ntwo\n")
    assert reasons(read([{"text": "a"}, {"text": "b"}], name="a.json")) == ["a", "b"]
    broken = read(b'[{"text": "a"}, {"text"', name="a.json")
    assert reasons(broken) == ["a", "broken"]
    assert reasons(read(b"x" * 200, name="b.txt", limit=100)) == ["long"]


def test_a_cut_stream_is_counted(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    lines = "".join(json.dumps({"text": f"{i}"}) + "\n" for i in range(5000))
    path.write_bytes(gzip.compress(lines.encode())[:5000])
    *articles, last = read_json_articles(path)
    assert [article.body for article in articles] == [str(i) for i in range(len(articles))]
    assert last.reason == "truncated"


def test_a_field_that_no_record_has_is_an_error(read):
    records = [{"text": "a", "pmid": None}] * 3
    assert len(read(*records, fields=FieldNames(pmid="pmid"))) == 3
    message = r"a\.jsonl: none of the first 3 records has the field 'PMID' or 'y'; name another"
    with pytest.raises(InputError, match=message):
        read(*records, fields=FieldNames(pmid="PMID", year="y"))
    with pytest.raises(InputError, match="none of the first 1000 records has the field 'txt'"):
        read(*records * 500, fields=FieldNames(body="txt"))


def test_bad_arguments(tmp_path, read):
    with pytest.raises(InputError, match=r"got 'a\.\.b' as the field of pmid"):
        FieldNames(pmid="a..b")
    with pytest.raises(InputError, match="got no field of a text"):
        FieldNames(body="")
    with pytest.raises(InputError, match="plain text, which has no subsets"):
        read(b"x", name="a.txt", subsets="x")
    with pytest.raises(InputError, match="name of unknown format"):
        read(b"x", name="a.xml")
    with pytest.raises(InputError, match="no such file"):
        list(read_json_articles(tmp_path / "none.jsonl"))
