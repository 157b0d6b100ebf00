import json

import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_jsonl
from biomedlm_jax.finetuning.answer_scores import parse_label, parse_spans, parse_tags
from biomedlm_jax.finetuning.instructions import (
    NER,
    TASKS,
    WORDINGS,
    Layout,
    build_instructions,
    check_labels,
)
from biomedlm_jax.finetuning.pairs import read_pairs

NER_FILE = (
    "-DOCSTART- O\n\nBRCA1 B-Gene\ncauses O\nbreast B-Disease\ncancer I-Disease\n\nnothing O\n"
    "\n-DOCSTART- O\n\np53 B-Gene\np53 B-Gene\n"
)


def build(tmp_path, text, name="a.tsv", **layout):
    path = tmp_path / name
    path.write_text(text)
    return build_instructions([path], Layout(**layout))


def test_entities_as_spans(tmp_path):
    rows, figures = build(tmp_path, NER_FILE, task=NER)
    first, second, third = rows
    assert first["input"] == "BRCA1 causes breast cancer"
    assert first["output"] == "Gene: BRCA1\nDisease: breast cancer"
    assert second["output"] == "None"
    assert third["output"] == "Gene: p53\nGene: p53"
    assert [row["id"] for row in rows] == ["a.tsv:3", "a.tsv:8", "a.tsv:12"]
    assert [row["group"] for row in rows] == ["a.tsv#1", "a.tsv#1", "a.tsv#2"]
    for row in rows:
        assert "Disease, Gene." in row["instruction"]
        assert row["labels"] == ["Disease", "Gene"]
        for one in row["entities"]:
            assert row["input"][one["start"] : one["end"]] == one["text"]
    assert figures == {
        "examples": 3,
        "labels": {"Disease": 1, "Gene": 3},
        "contradictory": 0,
        "without_entity": 1,
        "left_out": {},
    }


def test_entities_as_tags_are_iob2_whatever_the_file_has(tmp_path):
    text = "a S-X\nb B-Y\n: E-Y\n"
    (row,), _ = build(tmp_path, text, task=NER, answer="tags", scheme="bioes")
    assert row["output"] == "a : B-X\nb : B-Y\n: : I-Y"
    assert row["tags"] == ["B-X", "B-Y", "I-Y"]
    assert "B-X, I-X, O" in row["instruction"]
    assert "group" not in row


def test_offsets_of_the_file(tmp_path):
    text = "IL\t5\t7\tB-X\n-2\t7\t9\tI-X\n"
    layout = {"task": NER, "columns": ["token", "start", "end", "tag"]}
    (row,), _ = build(tmp_path, text, **layout)
    assert (row["input"], row["offset"], row["output"]) == ("IL-2", 5, "X: IL-2")
    with pytest.raises(InputError, match="tags need tokens with one space between"):
        Layout(answer="tags", **layout)


def test_pairs_relations_and_classes(tmp_path):
    text = json.dumps({"sentence1": "A.", "sentence2": "B.", "gold_label": "neutral"})
    (row,), _ = build(tmp_path, text, name="a.jsonl", task="nli")
    assert (row["input"], row["output"]) == ("Premise: A.\nHypothesis: B.", "neutral")
    text = "1\t@CHEMICAL$ {x} @GENE$\tCPR:4\n2\t@CHEMICAL$ and @GENE$\tfalse\n"
    rows, figures = build(
        tmp_path,
        text,
        task="relation",
        dataset="chemprot",
        label_names={"CPR:4": "inhibitor", "false": "no relation"},
        labels=["inhibitor", "activator", "no relation"],
        negative="no relation",
    )
    assert [row["output"] for row in rows] == ["inhibitor", "no relation"]
    assert rows[0]["instruction"].endswith("one of: inhibitor, activator, no relation.")
    assert rows[0]["input"] == "@CHEMICAL$ {x} @GENE$"
    assert rows[0]["source_id"] == "1"
    assert {row["dataset"] for row in rows} == {"chemprot"}
    assert {row["negative"] for row in rows} == {"no relation"}
    assert figures["labels"] == {"inhibitor": 1, "activator": 0, "no relation": 1}
    (row,), _ = build(tmp_path, "text\tlabel\nA\t{first}\n", task="classification")
    assert row["input"] == "A"
    assert row["instruction"].endswith("one of: {first}.")


def test_the_text_recipe_reads_the_rows(tmp_path):
    rows, _ = build(tmp_path, NER_FILE, task=NER)
    write_jsonl(tmp_path / "rows.jsonl", rows)
    pairs = read_pairs(tmp_path / "rows.jsonl", "instruction,input", "output")
    assert [pair.target for pair in pairs] == [row["output"] for row in rows]
    assert pairs[0].source == f"{rows[0]['instruction']}\n\n{rows[0]['input']}"


def test_wordings_depend_on_seed_and_id_only(tmp_path):
    text = "".join(f"w{n} B-X\n\n" for n in range(40))
    plain, _ = build(tmp_path, text, task=NER)
    assert len({row["instruction"] for row in plain}) == 1
    options = {"task": NER, "paraphrases": True}
    chosen, _ = build(tmp_path, text, **options)
    assert chosen == build(tmp_path, text, **options)[0]
    assert len({row["instruction"] for row in chosen}) == len(WORDINGS["spans"])
    assert chosen != build(tmp_path, text, seed=1, **options)[0]
    shorter, _ = build(tmp_path, text[: text.index("w30")], **options)
    assert shorter == chosen[:30]


def test_every_task_has_wordings_that_name_the_labels():
    assert {*WORDINGS} == {"spans", "tags", *TASKS} - {NER}
    for wordings in WORDINGS.values():
        assert len({*wordings}) == len(wordings) > 1
        assert all("{labels}" in one for one in wordings)


@pytest.mark.parametrize("answer", ["spans", "tags"])
def test_outputs_are_read_back(tmp_path, answer):
    """Tokens that look like separators, tags and other lines."""
    text = ": B-A\nO O\nNone B-A:\n- I-A:\nA: B-A\nB-A I-A\n. I-A\n\nNone O\n\nNone B-A\n"
    rows, _ = build(tmp_path, text, task=NER, answer=answer)
    for row in rows:
        if answer == "tags":
            assert parse_tags(row["output"], row["tokens"], row["labels"]) == row["tags"]
        else:
            gold = [(one["type"], one["text"]) for one in row["entities"]]
            assert parse_spans(row["output"], row["labels"]) == gold
    labels = ["not. entailed", "Entailed."]
    rows = [{"text": "a", "label": label} for label in labels]
    rows, _ = build(tmp_path, json.dumps(rows), name="a.json", task="classification")
    assert [parse_label(row["output"], row["labels"]) for row in rows] == labels


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"task": "qa"}, "got task='qa'; expected one of ner, relation"),
        ({"task": NER, "scheme": "bilou"}, "got scheme='bilou'"),
        ({"task": NER, "answer": "json"}, "got answer='json'"),
        ({"task": NER, "negative": "x"}, "got negative with ner, where it has no effect"),
        ({"task": "nli", "entity_type": "x"}, "got entity_type with nli"),
        ({"task": NER, "label_names": {"a": "c", "b": "c"}}, "got the name 'c' for two labels"),
        ({"task": "relation", "marks": "("}, r"got marks='\(', no regular expression: missing"),
        ({"task": NER, "labels": ["Gene"]}, "a.tsv:3: got the label 'Disease'; expected one of G"),
        ({"task": NER, "label_names": {"gene": "x"}}, "no example has the label .* named 'x'"),
        ({"task": NER, "label_names": {"Gene": "Disease"}}, "a.tsv:3: got the label 'Disease', th"),
        ({"task": NER, "label_names": {"Gene": "disease"}}, "got the labels 'Disease', 'disease'"),
        ({"task": NER, "label_names": {"Gene": "a: b"}}, "got the type 'a: b'"),
        (
            {"task": NER, "label_names": {"Gene": "a b"}, "answer": "tags"},
            "got the type 'a b'; expected one without white space",
        ),
    ],
)
def test_bad_layouts(tmp_path, layout, message):
    with pytest.raises(InputError, match=message):
        build(tmp_path, NER_FILE, **layout)


def test_an_input_with_two_outputs_is_counted(tmp_path):
    text = "text\tlabel\na\tx\nb\tx\na\ty\nb\tx\na\tx\n"
    _, figures = build(tmp_path, text, task="classification")
    assert figures["contradictory"] == 3


def test_bad_inputs(tmp_path):
    with pytest.raises(InputError, match="got negative='no'; expected one of yes"):
        build(tmp_path, "text\tlabel\na\tyes\n", task="classification", negative="no")
    with pytest.raises(InputError, match="no example in"):
        build(tmp_path, "\n", task=NER)
    with pytest.raises(InputError, match="no example has an entity; fix: name the types"):
        build(tmp_path, "a O\n", task=NER)
    rows, _ = build(tmp_path, "a O\n", task=NER, labels=["Gene"])
    assert rows[0]["output"] == "None"
    (tmp_path / "b").mkdir()
    again = tmp_path / "b" / "a.tsv"
    again.write_text("b O\n")
    with pytest.raises(InputError, match=r"two files have the name a.tsv; ids use it"):
        build_instructions([tmp_path / "a.tsv", again], Layout(task=NER, labels=["X"]))
    with pytest.raises(InputError, match="no such file"):
        build_instructions([tmp_path / "c.tsv"], Layout(task=NER))


def test_check_labels():
    check_labels(["a b", "c: d"], None)
    check_labels(["a b"], "spans")
    for labels in (["a", "."], [""]):
        with pytest.raises(InputError, match="got a label without a character in '"):
            check_labels(labels, None)
    for labels, answer in ((["a", "A."], None), (["a", "a"], "spans")):
        with pytest.raises(InputError, match="expected labels that differ in more than case"):
            check_labels(labels, answer)
