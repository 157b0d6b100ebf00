import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedlm_jax.corpus.articles import Article
from biomedlm_jax.corpus.sources import Source, TextRecords, parse_sources, read_source
from biomedlm_jax.errors import InputError


def read(path, **fields) -> list:
    source = Source("mine", "text", (str(path),))
    return list(read_source(source, path, TextRecords(**fields)))


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


def test_fields_with_usual_names_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    row = {"pmcid": "PMC7", "pmid": 12, "doi": "10.1/x", "license": "CC-BY", "year": "2004-05-01"}
    row |= {"title": "T", "abstract": ["A.", "", "B."], "body": None, "type": "letter"}
    row |= {"languages": ["en", "fr"], "journal": "J"}
    write(path, b"{", row, b"", {**row, "body": "B."})
    broken, article, other = read(path)
    assert broken.reason == "broken"
    assert article == Article(
        place=f"{path}:2",
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
    )
    assert other.body == "B."
    # A text is the whole of its record.
    write(path, {"text": "Whole.", "title": "T", "pmid": 9}, {"text": "More.", "pmid": None})
    assert [(one.text, one.pmid) for one in read(path)] == [("Whole.", "9"), ("More.", "")]


def test_fields_can_be_named(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, {"t": "T", "meta": {"x": "X"}, "pmid": 1})
    (article,) = read(path, fields=(("title", "t"), ("body", "meta.x")))
    assert (article.title, article.body, article.pmid) == ("T", "X", "")
    for fields, message in (
        ((("text", "t"),), "got a field for 'text'; expected one of title, abstract, body, pmid"),
        ((("pmid", "t"),), "got no field of a text; name that of title, abstract or body"),
    ):
        with pytest.raises(InputError, match=message):
            TextRecords(fields=fields)


def test_subsets_of_the_pile(tmp_path):
    path = tmp_path / "a.jsonl"
    names = ("PubMed Abstracts", "Github", "PubMed Central")
    write(path, *({"text": name, "meta": {"pile_set_name": name}} for name in names))
    got = read(path, subsets=names[::2])
    assert [one.source for one in got[::2]] == list(names[::2])
    assert got[1].reason == "subset"
    assert [one.source for one in read(path)] == list(names)
    write(path, {"text": "of no subset"})
    assert [one.source for one in read(path)] == ["mine"]


def test_files_of_each_format(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.json").write_text('[{"title": "one", "abstract": "two"}]')
    pq.write_table(pa.table({"abstract": ["one"], "pmid": [1]}), tmp_path / "c.parquet")
    text, array, table = (next(iter(read(file))) for file in sorted(tmp_path.iterdir()))
    assert (text.body, array.abstract, table.abstract, table.pmid) == ("one", "two", "one", "1")
    (tmp_path / "d.jsonl.gz").write_bytes(b"\x1f\x8b")
    assert [one.reason for one in read(tmp_path / "d.jsonl.gz")] == ["truncated"]
    xml = (
        "<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID>1</PMID><Article><ArticleTitle>"
        "T</ArticleTitle></Article></MedlineCitation></PubmedArticle></PubmedArticleSet>"
    )
    (tmp_path / "e.xml").write_text(xml)
    source = Source("m", "medline", ())
    (article,) = read_source(source, tmp_path / "e.xml", TextRecords())
    assert (article.pmid, article.title) == ("1", "T")
    jats = "<article><front><article-meta/></front><body><p>Text.</p></body></article>"
    (tmp_path / "f.nxml").write_text(jats)
    (article,) = read_source(Source("p", "pmc", ()), tmp_path / "f.nxml", TextRecords())
    assert article.body == "Text."
