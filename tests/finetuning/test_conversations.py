import json
from collections import Counter

import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.conversations import Fields, read_conversations, turn_starts

USER, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}


def read(path, rows, format="messages", **options):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    left_out = Counter()
    return read_conversations(path, format, left_out=left_out, **options), left_out


def test_the_three_formats_make_the_same_record(tmp_path):
    file = tmp_path / "a.jsonl"
    (one,), _ = read(file, [{"messages": [USER, ANSWER]}])
    assert one.messages == (USER, ANSWER)
    assert (one.trained, one.place, one.group) == ((False, True), f"{file}:1", "Why?")
    (two,), _ = read(file, [{"source": "Why?", "target": "So."}], "pairs")
    assert two == one
    fields = Fields("q", "a", "g")
    (three,), _ = read(file, [{"q": "Why?", "a": "So.", "g": 3}], "pairs", fields=fields)
    assert three == one._replace(group="3")
    rows = [
        {"instruction": "Why?", "output": "So."},
        {"instruction": "Why?", "input": "it", "output": "So.", "system": "Be brief.", "id": 1},
        {"instruction": "Why?", "input": " ", "output": "So.", "system": None},
        {"instruction": "", "input": "Why?", "output": "So."},
    ]
    (plain, both, empty, alone), _ = read(file, rows, "alpaca")
    assert plain.messages == ({**USER, "instruction": "Why?"}, ANSWER)
    assert both.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?\n\nit", "instruction": "Why?", "input": "it"},
        ANSWER,
    )
    assert both.answered == 2
    assert empty.messages == plain.messages
    assert alone.messages == (USER, ANSWER)


def test_weights_decide_what_is_learned(tmp_path):
    chat = [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}, USER]
    (one,), _ = read(tmp_path / "a.jsonl", [{"messages": chat}])
    assert one.trained == (False, False, False, True, False)
    assert one.answered == 3
    assert all("weight" not in message for message in one.messages)
    assert [*turn_starts(one.messages)] == [0, 2, 4]


def test_what_has_no_answer_is_counted(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [
        {"messages": []},
        {"messages": [USER]},
        {"messages": [USER, {**ANSWER, "content": " "}]},
        {"messages": [{"role": "user", "content": ""}, ANSWER]},
        {"messages": [USER, {**ANSWER, "weight": 0}]},
        {"messages": [USER, ANSWER]},
    ]
    kept, left_out = read(file, rows)
    assert len(kept) == 1
    assert left_out == {
        f"{file}: no messages": 1,
        f"{file}: no answer in the loss": 2,
        f"{file}: an empty answer": 1,
        f"{file}: no text of a user": 1,
    }
    with pytest.raises(InputError, match=r"no conversation with an answer \(1 .*: no messages\)"):
        read(file, rows[:1])


BAD = [
    ([USER, {"role": "tool", "content": "x"}], "message 2 has role 'tool'; expected one of system"),
    ([{"from": "human", "value": "x"}], "message 1 has role None"),
    (["x"], "message 1 is of type str"),
    ([USER, {**ANSWER, "content": [{"type": "text", "text": "x"}]}], "content of type list"),
    ([USER, {**ANSWER, "tool_calls": [1]}], "message 2 has 'tool_calls', which is not read"),
    ([USER, {**ANSWER, "weight": 0.5}], "weight 0.5; expected 0 or 1"),
    ([ANSWER, USER, ANSWER], "an assistant's message as the first"),
    ([USER, {**ANSWER, "content": "a\0"}], "NUL character"),
    ([USER, {**ANSWER, "content": "\ud800"}], "expected UTF-8 text"),
    ("x", "expected messages, a list; got of type str"),
]


@pytest.mark.parametrize(("messages", "problem"), BAD)
def test_a_bad_line_is_refused_with_its_place_or_counted(tmp_path, messages, problem):
    file = tmp_path / "a.jsonl"
    rows = [{"messages": [USER, ANSWER]}, {"messages": messages}]
    with pytest.raises(InputError, match=r"a\.jsonl:2: ") as caught:
        read(file, rows)
    assert problem in str(caught.value)
    kept, left_out = read(file, rows, on_error="skip")
    assert (len(kept), left_out) == (1, {f"{file}: bad line": 1})


@pytest.mark.parametrize(
    ("format", "row", "problem"),
    [
        ("alpaca", {"instruction": "a"}, "expected output, a text; got none"),
        ("alpaca", {"output": "a"}, "expected instruction, a text; got none"),
        ("alpaca", {"instruction": "a", "output": "b", "input": 3}, "expected input, a text"),
        ("alpaca", {"instruction": "a", "output": "b", "history": [["a"]]}, "'history', which"),
        ("pairs", {"source": "a"}, "expected target, a text; got none, of the fields source"),
        ("messages", {"messages": [USER, ANSWER], "tools": [1]}, "the field 'tools', which is not"),
        ("messages", {"messages": [USER, ANSWER]}, "expected the field 'g'"),
    ],
)
def test_a_row_of_another_format_is_refused(tmp_path, format, row, problem):
    fields = Fields(group="g") if "field 'g'" in problem else Fields()
    with pytest.raises(InputError, match=r"a\.jsonl:1: ") as caught:
        read(tmp_path / "a.jsonl", [row], format, fields=fields)
    assert problem in str(caught.value)


def test_formats_are_named(tmp_path):
    for options, problem in (
        ({"format": "sharegpt"}, "format 'sharegpt'; expected one of messages, alpaca, pairs"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
    ):
        with pytest.raises(InputError, match=problem):
            read(tmp_path / "a.jsonl", [], **options)
    with pytest.raises(InputError, match="no such file"):
        read_conversations(tmp_path / "none", "pairs", left_out=Counter())
