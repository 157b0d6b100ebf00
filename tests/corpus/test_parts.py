import gzip
import hashlib
import json

import numpy as np
import pytest

from biomedlm_jax.corpus import parts
from biomedlm_jax.corpus.articles import Article, Deletion, Rejection
from biomedlm_jax.corpus.filters import Filters
from biomedlm_jax.corpus.parts import (
    HAS_BODY,
    HAS_TEXT,
    MapSettings,
    SegmentReader,
    document,
    make_part,
    part_name,
)
from biomedlm_jax.corpus.signatures import Banding, sign
from biomedlm_jax.corpus.sources import Source, TextRecords
from biomedlm_jax.errors import InputError
from biomedlm_jax.streams import read_lines

BANDING = Banding.of(0.8)
TEXT = Source("texts", "text", ())


def settings(**values) -> MapSettings:
    given = {"filters": Filters(), "records": TextRecords(), "banding": BANDING}
    return MapSettings(**{**given, **values})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"Text number {n} " + "of words " * n, "pmid": n} for n in range(1, 41)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def left_out(folder):
    return [json.loads(line) for _, line in read_lines(folder / "left_out.jsonl.zst")]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_documents_and_numbers_of_a_part(tmp_path, file, monkeypatch):
    monkeypatch.setattr(parts, "SEGMENT", 15)
    monkeypatch.setattr(parts, "FRAME_BYTES", 400)
    part = make_part(tmp_path / "part", TEXT, [file], settings())
    assert part["segments"] == [15, 15, 10]
    assert part["counts"]["records"] == part["counts"]["documents"] == 40
    raw = file.read_bytes()
    entry = {"path": str(file), "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    assert part["inputs"] == [entry]
    reader = SegmentReader(tmp_path / "part", 1)
    order = [14, 3, 4, 0, 14]
    documents = [json.loads(line) for line in reader.lines(order)]
    assert [one["pmid"] for one in documents] == ["30", "19", "20", "16", "30"]
    texts = [json.loads(line)["text"] for line in raw.splitlines()[15:30]]
    assert reader.columns(["text_bytes"])["text_bytes"].tolist() == [len(text) for text in texts]
    for row in (0, 14):
        signature = sign(texts[row], BANDING)
        assert reader.columns(["pmid"])["pmid"][row] == 16 + row
        assert reader.columns(["exact"])["exact"][row] == signature.exact[0]
        assert reader.columns(["band20"])["band20"][row] == signature.bands[20]
        assert reader.columns(["seed0"])["seed0"][row] == signature.seeds[0]
        mine = reader.columns(["sample"])["sample"][
            reader.columns(["sample_row"])["sample_row"] == row
        ]
        assert np.array_equal(mine, signature.sample)
    total = sum(len(json.loads(line)["text"]) for line in raw.splitlines())
    assert part["counts"]["text_bytes"] == part["counts"]["read_bytes"] == total


def test_a_part_is_the_same_anywhere_and_kept_until_its_input_changes(tmp_path, file):
    make_part(tmp_path / "one", TEXT, [file], settings())
    make_part(tmp_path / "two", TEXT, [file], settings())
    assert content(tmp_path / "one") == content(tmp_path / "two")
    docs = tmp_path / "one" / "00000.docs"

    def is_made_again(**options) -> bool:
        before = docs.stat().st_mtime_ns
        make_part(tmp_path / "one", TEXT, [file], settings(**options))
        return docs.stat().st_mtime_ns != before

    assert not is_made_again()
    assert is_made_again(filters=Filters(min_characters=1))
    assert is_made_again()
    whole = docs.read_bytes()
    docs.write_bytes(whole[:-1])  # damaged
    assert is_made_again()
    assert docs.read_bytes() == whole
    file.write_text(file.read_text().replace("number 1 ", "number 0 "))
    assert make_part(tmp_path / "two", TEXT, [file], settings())["counts"]["documents"] == 40
    assert content(tmp_path / "one") != content(tmp_path / "two")  # of the same size


def test_refused_records_and_deletions_have_a_row_without_text(tmp_path, file, monkeypatch):
    records = [
        Article("f:1", "m", title="Only a title", pmid="1"),
        Deletion("f:2", "2"),
        Rejection("f:3", "broken", "no end tag"),
        Article("f:4", "m", abstract="An abstract.", pmid="4", doi="10.1/X", version=3),
        Article("f:5", "m", body="A body.", pmcid="PMC5", doi="http://dx.doi.org/10.1/x"),
    ]
    monkeypatch.setattr(parts, "read_source", lambda *_: iter(records))
    part = make_part(tmp_path / "part", TEXT, [file], settings())
    assert part["counts"] == {
        "records": 4,
        "documents": 2,
        "text_bytes": 19,
        "read_bytes": 31,
        "left_out:broken": 1,
        "left_out:title_only": 1,
    }
    assert left_out(tmp_path / "part") == [
        {"source": "texts", "place": "f:1", "id": "pmid:1", "reason": "title_only"},
        {"source": "texts", "place": "f:3", "reason": "broken", "detail": "no end tag"},
    ]
    reader = SegmentReader(tmp_path / "part", 0)
    assert reader.columns(["kind"])["kind"].tolist() == [
        0,
        parts.DELETION,
        HAS_TEXT,
        HAS_BODY | HAS_TEXT,
    ]
    assert reader.columns(["record"])["record"].tolist() == [0, 1, 3, 4]
    assert reader.columns(["pmid"])["pmid"].tolist() == [1, 2, 4, 0]
    assert reader.columns(["pmcid"])["pmcid"].tolist() == [0, 0, 0, 5]
    assert reader.columns(["version"])["version"].tolist() == [1, 0, 3, 1]
    dois = reader.columns(["doi"])["doi"].tolist()
    assert dois[:2] == [0, 0]
    assert dois[2] == dois[3] != 0  # in capitals and as an address
    assert not reader.columns(["band0"])["band0"][:2].any()
    assert [line[:17] for line in reader.lines([0, 3])] == [b"", b'{"id": "PMC5", "t']


def test_documents_have_an_id_and_the_name_of_their_license():
    known = {"abstract": "A\u2028b", "pmid": "4", "doi": "10.1/X", "license": "cc-by-nc 4.0"}
    article = Article("f:4", "m", **known, pmcid="PMC5", year=2001)
    assert document(article) == {
        "id": "PMC5",
        "text": "A\u2028b",
        "source": "m",
        "license": "CC BY-NC",
        "pmid": "4",
        "pmcid": "PMC5",
        "doi": "10.1/X",
        "year": 2001,
    }
    assert document(Article("", "m", pmid="4", doi="x"))["id"] == "pmid:4"
    assert document(Article("", "m", doi="x", license="Own terms"))["license"] == "Own terms"
    nameless = document(Article("", "m", body="b"))
    assert nameless["id"].startswith("text:")
    assert [name for name in nameless if nameless[name] is None] == [
        *("license", "pmid", "pmcid", "doi", "year")
    ]


def test_a_list_of_licenses_replaces_those_of_the_files(tmp_path):
    file, listed = tmp_path / "a.jsonl", tmp_path / "list.csv"
    rows = [{"text": f"text {n}", "pmcid": f"PMC{n}", "license": "CC BY"} for n in (1, 2, 3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    listed.write_text("Accession ID,License\nPMC1,CC BY-NC\nPMC2,NO-CC CODE\n")
    chosen = settings(file_list=str(listed), filters=Filters(license="commercial"))
    part = make_part(tmp_path / "part", TEXT, [file], chosen)
    assert part["counts"]["documents"] == 2
    assert [row["id"] for row in left_out(tmp_path / "part")] == ["PMC1"]


def test_a_truncated_file_ends_the_part_unless_it_may_be_skipped(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    lines = "".join(json.dumps({"text": f"{n} " * 400}) + "\n" for n in range(50))
    file.write_bytes(gzip.compress(lines.encode())[:-200])
    message = r"is truncated \(the .*\); copy the file again, or pass --on_error"
    with pytest.raises(InputError, match=message) as caught:
        make_part(tmp_path / "part", TEXT, [file], settings())
    assert str(caught.value).count(str(file)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl.gz"]
    part = make_part(tmp_path / "part", TEXT, [file], settings(on_damage="skip"))
    assert 0 < part["counts"]["documents"] < 50
    assert part["counts"]["left_out:truncated"] == 1


def test_the_name_of_a_part_depends_on_its_files(tmp_path):
    one, two = tmp_path / "1.txt", tmp_path / "2.txt"
    assert len({part_name(TEXT, 0, files) for files in ([one], [two], [one, two])}) == 3


def test_texts_are_normalised_and_flagged_on_request(tmp_path):
    file = tmp_path / "a.jsonl"
    texts = ["cafe\u0301  au lait", "Î²-glucan and Î²-blockers", "plain"]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    part = make_part(tmp_path / "one", TEXT, [file], settings())
    assert part["counts"]["flag:mojibake"] == 1
    make_part(tmp_path / "two", TEXT, [file], settings(normalisations=("nfc", "spaces")))
    for name, expected in (("one", texts), ("two", ["caf\u00e9 au lait", *texts[1:]])):
        lines = SegmentReader(tmp_path / name, 0).lines(range(3))
        assert [json.loads(line)["text"] for line in lines] == expected
