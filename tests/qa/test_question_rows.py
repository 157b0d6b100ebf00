"""question_rows.py: every row of a file with its place, and what is no row."""

import json

import pytest


def test_json_lines_are_numbered(tmp_path, read):
    records = [{"question": "a\u2028b", "n": 1}, {"question": "é 🧬"}]
    text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    content = b"\xef\xbb\xbf" + text.replace("\n", "\r\n\n").encode()
    rows = read(tmp_path / "a.jsonl", "questions", content)
    assert [row.fields for row in rows] == records
    assert list(map(str, rows)) == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:3"]
    assert [row.id for row in rows] == ["a.jsonl:1", "a.jsonl:3"]


def test_json_objects(tmp_path, read):
    path = tmp_path / "a.json"
    articles = {"12": {"QUESTION": "q"}, "7": {"QUESTION": "r"}}
    rows = read(path, "pubmedqa", json.dumps(articles, indent=1))
    assert [row.id for row in rows] == ["12", "7"]
    assert str(rows[1]) == f"{path}:id 7"
    listed = {"questions": [{"id": "x", "body": "b"}, {"id": "y", "body": "c"}]}
    rows = read(path, "bioasq", json.dumps(listed))
    assert [row.fields["body"] for row in rows] == ["b", "c"]
    assert str(rows[1]) == f"{path}:entry 2"


def test_blurb_rows_keep_their_quotes(tmp_path, read):
    content = b'1\t"Is" it?\t"It is.\tyes\r\n\n2\tAnd?\tctx\n'
    first, second = (row.fields for row in read(tmp_path / "test.tsv", "blurb", content))
    assert first == {"id": "1", "sentence1": '"Is" it?', "sentence2": '"It is.', "label": "yes"}
    assert second == {"id": "2", "sentence1": "And?", "sentence2": "ctx"}


@pytest.mark.parametrize(
    ("format", "content", "message"),
    [
        ("questions", b'{"a": 1}\n{"a": ', r"file:2: expected a JSON object, got "),
        ("questions", b'{"a": 1}\n[1]', r"file:2: expected a JSON object, got JSON of type list"),
        ("questions", b'{"a": 1, "a": 2}', r"file:1: got the key 'a' twice"),
        ("questions", b'{"a": "\xff"}', r"file:1: .*can't decode byte 0xff"),
        ("questions", b"[" * 100_000, r"file:1: .*recursion"),
        ("pubmedqa", b'{\n"1": {"QUESTION": "q"},\n"2": }', r"file: expected .* in line 3"),
        ("pubmedqa", b'{"1": {"a": 1}, "1": {"a": 2}}', r"file: got the key '1' twice"),
        ("pubmedqa", b'{"1": 3}', r"file:id 1: expected an object, got int"),
        ("bioasq", b'{"questions": [3]}', r"file:entry 1: expected an object, got int"),
        ("bioasq", b'{"12": {"QUESTION": "q"}}', r"file: expected a list named questions, got 12"),
        ("mmlu", b"q,a,b,c,d,A\nq,a,b,A\n", r"file:2: expected the columns question, A, B.* got 4"),
        ("mmlu", b"q,a,b,c,d,A\nq,\xff,b,c,d,A\n", r"file:2: expected UTF-8"),
        ("blurb", b"index\tsentence1\tsentence2\tlabel\n", r"file:1: got a line of column names"),
        ("mmlu", b"question,A,B,C,D,answer\n", r"file:1: got a line of column names"),
        ("blurb", b"1\tq\tc\tyes\n2 q c yes\n", r"file:2: expected the columns id, .* got 1 col"),
    ],
)
def test_a_bad_file_is_named_and_its_other_rows_are_read(tmp_path, format, content, message, read):
    path = tmp_path / "file"
    with pytest.raises(ValueError, match=message) as error:
        read(path, format, content)
    assert "\n" not in str(error.value)
    if "UTF-8" not in message:
        refused = []
        read(path, format, content, refused.append)
        assert refused == [str(error.value)]


def test_the_items_of_an_array_on_one_line_have_their_own_ids(tmp_path, read):
    records = [{"question": str(n)} for n in range(3)]
    rows = read(tmp_path / "a.json", "medmcqa", json.dumps(records))
    assert [row.fields for row in rows] == records
    assert [row.id for row in rows] == ["a.json:1", "a.json:1#2", "a.json:1#3"]
