"""documents.py: every format yields the same texts, and nothing that is wrong passes silently."""

import bz2
import gzip
import json
import lzma
import random
import re
import tracemalloc
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from cases import mostly_slow

from biomedlm_jax.corpus.documents import DocumentReader, Skipped, read_documents
from biomedlm_jax.errors import InputError

# Line separators that only `str.splitlines` believes in, the end of a line of JSON, the last plane.
TEXTS = ["plain", "é 漢字 🧬 \U0010ffff", "a\u2028b\x0bc\x85d\re\nf\n", "  kept  ", "x" * 300_000]


def lines(texts, **extra) -> bytes:
    return b"".join(json.dumps({"text": text, **extra}).encode() + b"\n" for text in texts)


def zstd_frames(data: bytes) -> bytes:
    """Several frames, cut within lines, with one to be skipped in between (as pzstd writes)."""
    compress = zstandard.ZstdCompressor().compress
    skippable = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
    return compress(data[:50]) + skippable + compress(data[50:777]) + compress(data[777:])


def small_xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=0)  # a window of 256 KiB; the default's is 8 MiB


COMPRESS = {
    "": bytes,
    ".bz2": lambda data: bz2.compress(data[:50]) + bz2.compress(data[50:], 1),
    ".xz": lambda data: small_xz(data[:50]) + bytes(8) + small_xz(data[50:]),
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".GZ": lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:]),
    ".Zst": zstd_frames,
}


def texts_of(*paths, **options) -> list[str]:
    return [document.text for document in read_documents(paths, **options)]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_jsonl_reads_back_what_was_written(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](lines(TEXTS)))
    read = list(read_documents([path]))
    assert [document.text for document in read] == TEXTS
    assert [document.source for document in read] == [f"{path}:{n}" for n in range(1, 6)]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_text_file_is_one_document(tmp_path, suffix):
    text = "\r\n".join(TEXTS)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](text.encode()))
    (document,) = read_documents([path])
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # as Python reads it
    assert (document.text, document.source) == (text, f"{path}:1")


def test_raw_unicode_byte_order_mark_blank_lines_and_a_missing_last_newline(tmp_path):
    path = tmp_path / "a.json-lines"
    raw = b"\n  \n".join(json.dumps({"text": t}, ensure_ascii=False).encode() for t in TEXTS)
    path.write_bytes(b"\xef\xbb\xbf" + raw + b"\r\n\xef\xbb\xbf" + raw)  # as `cat` joins them
    assert texts_of(path) == TEXTS * 2
    plain = tmp_path / "a.txt"
    plain.write_bytes(b"\xef\xbb\xbfabc")
    assert texts_of(plain) == ["abc"]


def test_utf_16_without_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes("As".encode("utf-16-le"))
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(ValueError, match=r"a\.txt:1: NUL character; expected UTF-8 text; fix"):
        texts_of(tmp_path)
    skipped = Skipped()
    assert texts_of(tmp_path, on_error="skip", skipped=skipped) == ["b"]
    assert skipped.bad == 1


def test_fields_are_dotted_and_joined_without_the_empty_ones(tmp_path):
    path = tmp_path / "a.jsonl"
    records = [{"title": "T", "meta": {"a": {"b": body}}, "abstract": ""} for body in ("B", " ")]
    path.write_text("\n".join(map(json.dumps, records)))
    assert texts_of(path, text_field="title, abstract, meta.a.b") == ["T\n\nB", "T"]
    assert texts_of(path, text_field="meta.a.b") == ["B"]


def test_subsets_of_the_pile(tmp_path):
    path = tmp_path / "pile.jsonl.zst"
    names = ["PubMed Central", "Github", "PubMed Abstracts", "Github"]
    data = b"".join(lines([name], meta={"pile_set_name": name}) for name in names)
    path.write_bytes(zstd_frames(data))
    skipped = Skipped()
    wanted = ["PubMed Abstracts", "PubMed Central"]
    assert texts_of(path, subsets=wanted, skipped=skipped) == names[0:3:2]
    assert skipped == Skipped(subsets=Counter(Github=2))
    assert texts_of(path, subsets="Github") == ["Github"] * 2
    with pytest.raises(
        ValueError, match=r"no documents of the subsets Pubmed .*4 lines of other.*Github"
    ):
        texts_of(path, subsets=["Pubmed"])


BAD = {
    b'{"text": "abc': r"expected a JSON object, got '{.text.: .abc' \(Unterminated",
    b"[1]": "expected a JSON object, got JSON of type list",
    b'{"body2": "b", "id": 1}': r"--text_field=text is not .* 'id'\]; name one of them; fix",
    b'{"text": 1}': "--text_field=text is int; expected a string or a list of strings",
    b'{"text": ["a", {}]}': "--text_field=text is a list with dict; expected a string",
    b'{"text": "\xff"}': "can't decode byte 0xff",
    b'{"text": "\\ud83e"}': "surrogates not allowed",
    b'{"text": ["a", "bc\\u0000"]}': "NUL character; expected UTF-8 text",
    b'{"text": "a", "text": "b"}': "got the key 'text' twice",
    b"[" * 100_000: "recursion",
    b'{"text": ' + b"1" * 5000 + b"}": "integer string conversion",
}


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_bad_line_is_named_or_skipped_and_counted(tmp_path, bad):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(["one"]) + bad + b"\n" + lines(["", "two"]))
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: ") + ".*" + BAD[bad]) as error:
        texts_of(path)
    assert str(error.value).endswith("--on_error=skip")
    skipped = Skipped()
    assert texts_of(path, on_error="skip", skipped=skipped) == ["one", "two"]
    assert skipped == Skipped(bad=1, empty=1, examples=[str(error.value)])


@pytest.mark.parametrize(
    ("record", "advice"),
    [
        ({"pmcid": "1", "body": "B", "title": "T", "abstract": "A"}, "title,abstract,body"),
        ({"title": "T", "abstract": None, "content": "C"}, "title,content"),
        ({"title": ["T", None], "abstract": [{"text": "A"}], "body": 3}, "title"),
    ],
)
def test_the_error_suggests_the_text_fields_of_an_article(tmp_path, record, advice):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"; use --text_field={advice}$"):
        texts_of(path)
    assert len(texts_of(path, text_field=advice)) == 1


def test_real_articles_name_their_fields(real_data):
    path = real_data / "pubmed_text" / "pmc_fulltext_ccby.jsonl.gz"
    with pytest.raises(ValueError, match=r"use --text_field=title,abstract,body$"):
        next(read_documents([path]))


def test_a_missing_subset_is_a_bad_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(["one"], meta={}))
    with pytest.raises(
        ValueError,
        match=r"a.jsonl:1: --subset_field=meta.pile_set_name is not among .*\]; name one of them$",
    ):
        texts_of(path, subsets=["PubMed Central"])


def test_five_examples_are_enough(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"{\n" * 9 + lines(["one"]))
    skipped = Skipped()
    assert texts_of(tmp_path, on_error="skip", skipped=skipped) == ["one"]
    assert (skipped.bad, len(skipped.examples)) == (9, 5)
    assert str(skipped).startswith("9 bad lines, the first: ")


@pytest.mark.parametrize("suffix", list(COMPRESS)[1:])
def test_a_stream_that_was_cut_off_never_passes_for_a_short_one(tmp_path, suffix):
    rng = random.Random(0)
    texts = [rng.randbytes(2000).hex() for _ in range(300)]  # more than one buffer, compressed
    whole = COMPRESS[suffix](lines(texts))
    path = tmp_path / f"a.jsonl{suffix}"
    (tmp_path / "b.jsonl").write_bytes(lines(["next file"]))
    kept = {}
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(
            ValueError, match=r"a\.jsonl\S*:\d+: the compressed stream is damaged or truncated"
        ):
            texts_of(path)
        skipped = Skipped()
        *head, last = texts_of(tmp_path, on_error="skip", skipped=skipped)
        assert (head, last, skipped.bad) == (texts[: len(head)], "next file", 1)
        kept[cut] = len(head)
    assert kept[0] == kept[1] == 0
    assert 100 < kept[len(whole) // 2] < 200 or suffix in (".bz2", ".xz")  # in large blocks
    path.write_bytes(lines(texts))
    with pytest.raises(ValueError, match=":1: the compressed stream is damaged or truncated"):
        texts_of(path)


@pytest.mark.parametrize("suffix", mostly_slow(COMPRESS, ["", ".xz", ".GZ", ".Zst"]))
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    rng = random.Random(0)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](lines(rng.randbytes(10_000).hex() for _ in range(400))))
    tracemalloc.start()
    count = sum(1 for _ in read_documents([path]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 400
    assert peak < 2_000_000  # of 8 million bytes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.txt", "no such file or directory: .*missing.txt"),
        ("*.jsonl", r"no file to read in .*\*\.jsonl; the known formats are .txt, .jsonl"),
        ("empty", "no file to read in .*empty; the known formats are"),
        ("a.csv", r"a\.csv has a name of unknown format; the known formats are"),
        ("a.*", r"a\.csv has a name of unknown format"),
        ("blank.txt", "no documents in 1 file.* 1 empty text"),
    ],
)
def test_input_that_is_not_there(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").touch()
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(InputError, match=message):
        texts_of(tmp_path / name)


def test_arguments_are_checked_before_reading(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="no input; name at least one"):
        read_documents([])
    with pytest.raises(ValueError, match="got on_error='ignore'; expected one of raise, skip"):
        read_documents([tmp_path], on_error="ignore")
    with pytest.raises(ValueError, match=r"got the field name 'a\.'"):
        read_documents([tmp_path], text_field="a.")
    with pytest.raises(ValueError, match=r"a\.txt is plain text, which has no subsets"):
        read_documents([tmp_path], subsets=["PubMed Central"])


def test_null_is_empty_and_a_list_is_paragraphs(tmp_path):
    path = tmp_path / "a.jsonl"
    records = [
        {"title": None, "abstract": "A", "meta": None},
        {"title": "T", "abstract": ["one", None, " ", "two"], "meta": {"x": "M"}},
        {"title": None, "abstract": [], "meta": {"x": None}},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    skipped = Skipped()
    texts = texts_of(path, text_field="title,abstract,meta.x", skipped=skipped)
    assert texts == ["A", "T\n\none\n\ntwo\n\nM"]
    assert skipped == Skipped(empty=1)
    path.write_text('{"text": "a", "kind": null}\n{"text": "b", "kind": ["x", "y"]}')
    assert texts_of(path, subsets="y", subset_field="kind", skipped=skipped) == ["b"]
    assert skipped.subsets == {"(null)": 1}


RECORDS = [{"text": text, "n": [{"a": ']}\\"'}, 1.5]} for text in TEXTS]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("dump", ["array", "indented", "lines"])
def test_json_holds_an_array_or_lines(tmp_path, dump, suffix):
    text = {
        "array": json.dumps(RECORDS, ensure_ascii=False),
        "indented": "\ufeff \n" + json.dumps(RECORDS, indent=2) + "\n",
        "lines": "\n".join(map(json.dumps, RECORDS)),
    }[dump]
    path = tmp_path / f"a.json{suffix}"
    path.write_bytes(COMPRESS[suffix](text.encode()))
    documents = list(read_documents([path]))
    assert [document.text for document in documents] == TEXTS
    first = text.splitlines().index("  {") + 1 if dump == "indented" else 1
    assert documents[0].source == f"{path}:{first}"


def test_json_holds_one_object(tmp_path):
    path = tmp_path / "a.json"
    for indent in (None, 1):
        path.write_text(json.dumps(RECORDS[1], indent=indent))
        assert texts_of(path) == TEXTS[1:2]
    path.write_text("[]")
    with pytest.raises(ValueError, match="no documents"):
        texts_of(path)


@pytest.mark.parametrize(
    ("raw", "kept", "message"),
    [
        ('[{"text": "a"},\n{"text": "b"', ["a"], r":2: Expecting ',' .* in the JSON array"),
        ('[{"text": "a"}', ["a"], r":1: the file ends in the JSON array"),
        ('[{"text": "a"}] x', ["a"], "expected 'end', got 'x' in the JSON array"),
        ('[{"text": "a"} {"text": "b"}]', ["a"], "expected ',', got '{'"),
        ('[{"text": "a"}, 12, {"text": "b"}]', ["a", "b"], "expected a JSON object, got JSON of"),
        ('[{"text": "a"}, {"text": 1}, {"text": "b"}]', ["a", "b"], "is int; expected"),
    ],
)
def test_a_damaged_array_is_refused_or_counted(tmp_path, raw, kept, message):
    path = tmp_path / "a.json"
    path.write_text(raw)
    with pytest.raises(ValueError, match=message):
        texts_of(path)
    skipped = Skipped()
    assert texts_of(path, on_error="skip", skipped=skipped) == kept
    assert skipped.bad == 1


def test_an_array_larger_than_the_limit_is_read_item_by_item(tmp_path):
    path = tmp_path / "a.json.xz"
    items = [{"text": f"{i}" * 50_000} for i in range(9)]
    path.write_bytes(lzma.compress(json.dumps(items).encode()))
    options = {"max_document_bytes": 60_000}
    assert len(texts_of(path, **options)) == 9
    path.write_bytes(lzma.compress(json.dumps([{"text": "x" * 70_000}, {"text": "y"}]).encode()))
    with pytest.raises(ValueError, match=r":1: .* longer than 60,000 bytes"):
        texts_of(path, **options)
    assert texts_of(path, **options, on_error="skip") == ["y"]


def test_parquet_rows(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"id": list(range(200)), "text": [f"text {i}" for i in range(199)] + [None]}
    columns["parts"] = [["p", f"{i}"] for i in range(200)]
    columns["meta"] = [{"kind": "x" if i % 2 else "y"} for i in range(200)]
    pq.write_table(pa.table(columns), path, row_group_size=70)
    skipped = Skipped()
    documents = list(read_documents([path], skipped=skipped))
    assert [document.text for document in documents] == columns["text"][:-1]
    assert documents[150].source == f"{path}:151"
    assert skipped.empty == 1
    assert texts_of(path, text_field="parts")[7] == "p\n\n7"
    assert len(texts_of(path, text_field="parts", subsets="x", subset_field="meta.kind")) == 100
    with pytest.raises(ValueError, match=r"body is not among the fields \['id', 'meta', 'parts'"):
        texts_of(path, text_field="body")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"a\.parquet:1: not a parquet file"):
        texts_of(path)


@pytest.mark.parametrize("suffix", mostly_slow(COMPRESS, ["", ".gz", ".xz"]))
def test_a_small_file_that_inflates_is_refused_in_little_memory(tmp_path, suffix):
    (tmp_path / "b.jsonl").write_bytes(lines(["b"]))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](lines(["a", "x" * 80_000_000, "c"])))
    text = tmp_path / f"c.txt{suffix}"
    text.write_bytes(path.read_bytes())
    options = {"max_document_bytes": 1_000_000}
    for name in (path, text):
        with pytest.raises(ValueError, match=r"longer than 1,000,000 bytes; fix the file, or"):
            texts_of(name, **options)
    skipped = Skipped()
    tracemalloc.start()
    texts = texts_of(tmp_path, **options, on_error="skip", skipped=skipped)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts == ["a", "c", "b"]
    assert skipped.bad == 2
    assert peak < 45_000_000  # one call of zstandard; 3 MB for the others


def test_a_text_file_has_its_lines_as_python_reads_them(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\rthree\n")
    assert texts_of(tmp_path / "a.txt") == [(tmp_path / "a.txt").read_text()]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.txt.gz", "a.parquet"])
def test_a_pointer_to_a_file_is_not_the_file(tmp_path, name):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer, not the data; run"):
        texts_of(tmp_path / name)


@pytest.mark.parametrize("first", [{"text": "x" * 1_200_000}, {}])
def test_json_lines_are_told_by_the_whole_first_line(tmp_path, first):
    (tmp_path / "a.json").write_text(json.dumps(first) + '\n{"text": "second"}\n')
    texts = texts_of(tmp_path / "a.json", on_error="skip")
    assert [text[-6:] for text in texts] == ["x" * 6, "second"][-len(first) - 1 :]


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path):
    table = pa.table([["a"], ["b"], ["c"], ["d"]], names=["text", "text", "more", "more"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="two columns with the name text"):
        texts_of(tmp_path / "a.parquet")
    pq.write_table(table.select([0, 2, 3]), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet") == ["a"]


def test_a_reader_reads_files_without_documents_and_counts_go_on(tmp_path):
    for name, line in (("a", '{"text": ""}'), ("b", "{}"), ("c", '{"text": "x"}')):
        (tmp_path / f"{name}.jsonl").write_text(f"{line}\n" * 4)
    reader, total = DocumentReader(on_error="skip"), Skipped()
    files = reader.files([tmp_path], total)
    texts = []
    for file in files:
        skipped = Skipped()
        texts.append([document.text for document in reader.read([file], skipped)])
        total.add(skipped)
    assert texts == [[], [], ["x"] * 4]
    whole = Skipped()
    list(read_documents([tmp_path], on_error="skip", skipped=whole))
    assert total == whole
    assert (whole.bad, whole.empty, len(whole.examples)) == (4, 4, 4)
    total.add(whole)
    assert (total.bad, len(total.examples)) == (8, 5)


def test_the_names_of_a_document_are_those_of_its_record(tmp_path):
    rows = [{"text": "a", "pmid": 12, "pmcid": "PMC3", "doi": None, "id": ""}, {"text": "b"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"text": ["a", "b"], "pmid": [12, None], "pmcid": ["PMC3", None], "size": [1, 2]}
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    (tmp_path / "c.txt").write_text("c")
    names = [document.names for document in read_documents([tmp_path])]
    assert names == [{"pmid": "12", "pmcid": "PMC3"}, {}] * 2 + [{}]
