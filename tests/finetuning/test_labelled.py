import json
from collections import Counter

import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.labelled import read_labelled


def read(tmp_path, text, task, name="a.tsv", **options):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_labelled(path, task, **options))


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    "text",
    [
        "7\t@CHEMICAL$ blocks @GENE$ .\tCPR:4\n",
        "index\tsentence\tlabel\n7\t@CHEMICAL$ blocks @GENE$ .\tCPR:4\n",
        "label\tsentence\tid\nCPR:4\t@CHEMICAL$ blocks @GENE$ .\t7\n",
    ],
)
def test_relations_with_and_without_a_header(tmp_path, text):
    (one,) = read(tmp_path, text, "relation")
    assert one.texts == {"sentence": "@CHEMICAL$ blocks @GENE$ ."}
    assert (one.label, one.source_id) == ("CPR:4", "7")
    assert one.place == len(text.splitlines())


def test_quotes_are_characters_of_tsv_and_quoting_of_csv(tmp_path):
    (one,) = read(tmp_path, '"@GENE$ is "new"\t1\n', "relation")
    assert one.texts["sentence"] == '"@GENE$ is "new"'
    text = 'text,label\n"a, ""b""\nsecond line",x\nplain,y\n'
    first, second = read(tmp_path, text, "classification", name="a.csv")
    assert first.texts == {"text": 'a, "b"\nsecond line'}
    assert (first.place, second.place) == (2, 4)


@pytest.mark.parametrize("mark", ["<e1>a</e1>", "[E1]a[/E1]", "<<a>>", "[[a]]", "@GENE$", "@a-b$"])
def test_marks_of_entities(tmp_path, mark):
    assert len(read(tmp_path, f"x {mark} y\t0\n", "relation")) == 1


def test_a_sentence_without_marks(tmp_path):
    with pytest.raises(InputError, match=r"a.tsv:2: got a sentence without marked entities: 'b'"):
        read(tmp_path, "@GENE$\t0\nb\t0\n", "relation")
    assert len(read(tmp_path, "x #a#\t0\n", "relation", marks="#a#")) == 1


def test_nli_pairs_without_a_gold_label_are_counted(tmp_path):
    pair = {"sentence1": "A.", "sentence2": "B.", "pairID": "p1", "sentence1_parse": "(x)"}
    text = jsonl({**pair, "gold_label": "neutral"}, {**pair, "gold_label": "-"})
    left_out = Counter()
    (one,) = read(tmp_path, text, "nli", name="a.jsonl", left_out=left_out)
    assert one.texts == {"sentence1": "A.", "sentence2": "B."}
    assert (one.label, one.source_id) == ("neutral", "p1")
    assert left_out == {f"{tmp_path}/a.jsonl: no gold label": 1}


def test_other_names_of_fields(tmp_path):
    text = jsonl({"p": "A", "h": "B", "y": 0})
    options = {"text_field": "p,h", "label_field": "y"}
    (one,) = read(tmp_path, text, "nli", name="a.jsonl", **options)
    assert (one.texts, one.label) == ({"sentence1": "A", "sentence2": "B"}, "0")
    (one,) = read(tmp_path, "A\tx\n", "classification", columns=["text", "label"])
    assert (one.texts, one.label, one.place) == ({"text": "A"}, "x", 1)
    with pytest.raises(InputError, match="got --text_field=p; nli has 2 texts"):
        read(tmp_path, text, "nli", name="a.jsonl", text_field="p")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "x", "expected .tsv, .csv, .jsonl, .json or .parquet"),
        ("a.jsonl", '{"text": "a"}\n', "a.jsonl:1: no field 'label' in text; fix: name it"),
        ("a.jsonl", '{"text": "a", "label": true}\n', "a.jsonl:1: got type bool as 'label'"),
        ("a.jsonl", '{"text": "a", "label": 0.5}\n', "a.jsonl:1: got type float as 'label'"),
        ("a.jsonl", '{"text": " ", "label": "x"}\n', "a.jsonl:1: got no text as 'text'"),
        ("a.jsonl", '{"text": "\\ud800", "label": "x"}\n', "half of a surrogate pair as 'text'"),
        ("a.jsonl", '{"text": "\\u0000", "label": "x"}\n', "got a NUL character as 'text'"),
        ("a.jsonl", '{"text": "a", "label": "x\\ny"}\n', "got a label of several lines"),
        ("a.jsonl", '\n{"text"\n', "a.jsonl:2: expected a JSON object"),
        ("a.tsv", "text\tlabel\na\tx\nb\n", "a.tsv:3: expected the columns text, label, got 1 c"),
        ("a.tsv", "a\tx\nb\ty\n", "a.tsv:2: no field 'label' in a, x; fix: name it"),
        ("a.tsv", "text\ttext\tlabel\n", "a.tsv:1: two columns have the name 'text'"),
        ("a.tsv", b"text\tlabel\n\xff\tx\n", "a.tsv:2: expected UTF-8"),
        ("a.csv", 'text,label\n"a"b,x\n', "a.csv:2: "),
    ],
)
def test_bad_lines_are_named(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message) as raised:
        read(tmp_path, text, "classification", name=name)
    assert len(str(raised.value).splitlines()) == 1


def test_columns_of_json(tmp_path):
    with pytest.raises(InputError, match=r"got --columns with .*; expected a .tsv or"):
        read(tmp_path, "{}", "nli", name="a.jsonl", columns=["a"])
