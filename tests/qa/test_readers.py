"""readers.py: every file format gives the same rows, and what is no row is named."""

import json
import re

import pytest

from biomedlm_jax.qa.readers import read_object, read_rows


def refuse(what):
    raise ValueError(what)


def test_json_lines_are_numbered_under_either_name(tmp_path):
    records = [{"question": "a\u2028b", "n": 1}, {"question": "é 🧬"}]
    text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    for name in ("a.jsonl", "a.json", "a.JSON-lines"):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n\n").encode())
        rows = read_rows(path, refuse)
        assert [row.fields for row in rows] == records
        assert [row.where for row in rows] == [f"{path}:1", f"{path}:3"]
        assert [row.name for row in rows] == [f"{name}:1", f"{name}:3"]


def test_a_json_file_is_one_object_or_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"12": {"QUESTION": "q"}, "7": {"QUESTION": "r"}}, indent=1))
    assert [row.fields["id"] for row in read_rows(path, refuse)] == ["12", "7"]
    path.write_text(json.dumps({"questions": [{"id": "x", "body": "b"}, {"id": "y", "body": "c"}]}))
    assert [row.fields["body"] for row in read_rows(path, refuse)] == ["b", "c"]
    assert read_rows(path, refuse)[1].where == f"{path}: question 2"
    path.write_text('{"question": "one line"}')
    assert [row.where for row in read_rows(path, refuse)] == [f"{path}:1"]


def test_mmlu_cells_may_span_lines_and_quote(tmp_path):
    path = tmp_path / "anatomy_test.csv"
    path.write_text('"two\nlines, ""quoted""",1,2,3,"4, four",D\nnext,a,b,c,d,A\n')
    first, second = read_rows(path, refuse)
    assert first.fields == {
        "question": 'two\nlines, "quoted"',
        "options": ["1", "2", "3", "4, four"],
        "answer_idx": "D",
    }
    assert (second.where, second.name) == (f"{path}:3", "anatomy_test.csv:3")


def test_blurb_rows_keep_their_quotes(tmp_path):
    path = tmp_path / "test.tsv"
    path.write_bytes(b'1\t"Is" it?\t"It is.\tyes\r\n2\tAnd?\tctx\n')
    first, second = (row.fields for row in read_rows(path, refuse))
    assert first == {"id": "1", "sentence1": '"Is" it?', "sentence2": '"It is.', "label": "yes"}
    assert second == {"id": "2", "sentence1": "And?", "sentence2": "ctx"}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": ', r"a\.jsonl:2: got '.*', which is no JSON \(Expecting"),
        ("a.jsonl", b'{"a": 1}\n[1]', r"a\.jsonl:2: got JSON of type list; it is one object"),
        ("a.jsonl", b'{"a": 1, "a": 2}', r"a\.jsonl:1: got 'a' twice in one object"),
        ("a.jsonl", b'{"a": "\xff"}', r"a\.jsonl:1: .*can't decode byte 0xff"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: .*recursion"),
        ("a.json", b'{\n"1": {"QUESTION": "q"},\n"2": }', r"a\.json:3: got .*which is no JSON"),
        ("a.json", b'{"1": {"a": 1}, "1": {"a": 2}}', r"a\.json:1: got '1' twice"),
        ("a.json", b'{"questions": [3]}', r"a\.json: question 1: got JSON of type int"),
        ("a.csv", b"q,a,b,c,d,A\nq,a,b,A\n", r"a\.csv:2: got 4 columns; they are question,A,B"),
        ("a.csv", b"q,a,b,c,d,A\nq,\xff,b,c,d,A\n", r"a\.csv:2: got bytes that are no UTF-8"),
        ("a.tsv", b"1\tq\tc\tyes\n2 q c yes\n", r"a\.tsv:2: got 1 columns; they are id, question"),
        ("a.xlsx", b"", r"cannot tell the format of .*a\.xlsx from its name; it ends in \.jsonl"),
    ],
)
def test_what_is_no_row_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_rows(tmp_path / name, refuse)
    assert "\n" not in str(error.value)


def test_a_refused_row_does_not_end_the_reading(tmp_path):
    path, refused = tmp_path / "a.jsonl", []
    path.write_text('{"a": 1}\n{\n{"a": 2}\n')
    assert [row.fields["a"] for row in read_rows(path, refused.append)] == [1, 2]
    assert [re.match(re.escape(f"{path}:2: "), what) is not None for what in refused] == [True]


@pytest.mark.parametrize(
    ("numbers", "first"), [([1, 4, 2], 1), ([2, 3], 1), ([0, 3], 0), ([-1, 0], 0), ([-1, -1], 1)]
)
def test_a_file_counts_the_options_from_0_if_it_has_a_0(tmp_path, numbers, first):
    path = tmp_path / "dev.json"
    path.write_text("\n".join(json.dumps({"cop": number}) for number in numbers))
    assert {row.first for row in read_rows(path, refuse)} == {first}


def test_a_file_that_counts_both_ways_is_refused_whatever_may_be_skipped(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text('{"cop": 0}\n{"cop": 4}\n')
    with pytest.raises(ValueError, match=r"dev\.json:2: got cop 4, but cop 0 at .*dev\.json:1; a"):
        read_rows(path, lambda what: None)


def test_read_object_counts_lines_from_where_it_begins(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json:12: got .*no JSON"):
        read_object(b'{"a": 1,\n\n "b" 2}', tmp_path / "a.json", 10)
