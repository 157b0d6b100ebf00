import json
from collections import Counter

import pytest

from biomedlm_jax.corpus.tokenizer import copy_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.config import ChatSettings
from biomedlm_jax.finetuning.text_data import read_data, text_data
from biomedlm_jax.interop.directories import model_config, read_tokenizer
from biomedlm_jax.settings import read_settings


@pytest.fixture(scope="module")
def known(world):
    config = model_config(world / "chat")
    return read_tokenizer(world / "chat", config), config


def make(config, known):
    settings, left_out = read_settings(ChatSettings, config), Counter()
    read = read_data(settings, left_out)
    return text_data(settings, read, copy_tokenizer(known[0]), known[1], left_out), left_out


def test_sources_are_mixed_and_split(world, chat_config, known):
    files = tuple(str(world / name) for name in ("chats.jsonl", "alpaca.jsonl"))
    changes = {"data__train": files, "data__format": ("messages", "alpaca")}
    changes |= {"data__weights": (1.0, 0.5), "data__caps": (0, 10), "data__dev_fraction": 0.3}
    data, left_out = make(chat_config(**changes), known)
    assert not left_out
    assert data.epochs is not None
    again, _ = make(chat_config(**changes), known)
    assert again.content == data.content
    assert again.epochs == data.epochs
    assert {len(epoch) for epoch in data.epochs} == {len(data.epochs[0])}
    assert (
        f"5 of {len(data.prompts) - len(data.epochs[0]) + 5:,} of {files[1]} an epoch"
        in data.description
    )
    assert data.ends == (known[1].eos_token_id,)
    for prompt, prefix in zip(data.dev_prompts, data.prefixes, strict=True):
        whole = [*prompt.prefix, *prompt.branches[0]]
        assert whole[: len(prefix)] == prefix
        assert len(whole) > len(prefix)


def test_what_has_no_room_is_counted(world, chat_config, known, tmp_path):
    file = tmp_path / "chats.jsonl"
    rows = [json.loads(line) for line in (world / "chats.jsonl").read_text().splitlines()]
    long = {"role": "assistant", "content": "it is aspirin. " * 40}
    rows += [{"messages": [rows[0]["messages"][0], long]}]
    question = {"role": "user", "content": "what about aspirin? " * 40}
    rows += [{"messages": [question, rows[0]["messages"][1]]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"data__train": (str(file),), "data__dev": (str(world / "chats.jsonl"),)}
    data, left_out = make(chat_config(**changes), known)
    assert left_out == {f"{file}: no room for the answer in a row": 1}
    assert "1 without some of the start of the user's text" in data.description
    assert f"{len(data.dev)} of dev that are also in train" in data.description
    assert len(data.prompts) == len(rows) - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__train": ()}, "empty data.train"),
        ({"data__format": ()}, "it is never guessed"),
        ({"data__format": ("sharegpt",)}, "expected one of messages, alpaca, pairs"),
        ({"data__weights": (1.0, 2.0)}, "expected one for each of the 1 files"),
        ({"data__weights": (0.0,)}, "expected weights above 0"),
        ({"data__dev_fraction": 1.0}, "every file needs one to train on"),
        ({"data__template": ""}, "no chat template; fix: set template to one of alpaca"),
        (
            {"data__template": "chatml"},
            "added_tokens: the tokenizer lacks <.im_start.>, <.im_end.>",
        ),
        ({"data__date": "today"}, "expected YYYY-MM-DD"),
        ({"data__row_tokens": 8}, "no conversation is left that fits 8 tokens"),
    ],
)
def test_bad_settings(chat_config, known, changes, message):
    with pytest.raises(InputError, match=message):
        make(chat_config(**changes), known)


def test_a_line_without_proof_is_refused_with_its_place_or_counted(
    world, chat_config, known, tmp_path
):
    file = tmp_path / "chats.jsonl"
    rows = [json.loads(line) for line in (world / "chats.jsonl").read_text().splitlines()]
    rows.append({"messages": [rows[0]["messages"][0], {"role": "assistant", "content": "<p> it"}]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"data__train": (str(file),), "data__masked_spans": ("<p>", "</p>")}
    with pytest.raises(InputError, match=rf"chats\.jsonl:{len(rows)}: an answer has <p> without"):
        make(chat_config(**changes), known)
    _, left_out = make(chat_config(**changes, data__on_error="skip"), known)
    assert left_out == {f"{file}: masks without proof": 1}


def test_a_file_is_named_once(world, chat_config):
    file = str(world / "chats.jsonl")
    for changes in ({"data__train": (file, file)}, {"data__dev": (file,)}):
        with pytest.raises(InputError, match=r"twice in data\.train and data\.dev; fix"):
            read_data(read_settings(ChatSettings, chat_config(**changes)), Counter())


def test_markers_that_are_no_tokens_are_named(world, chat_config, known, tmp_path):
    file, text = tmp_path / "own.jinja", "{% for m in messages %}{{ '<|user|>' if m.role == 'user' "
    text += "else '<|bot|>' }}{{ m.content }}{{ eos_token }}{% endfor %}"
    file.write_text(text + "{% if add_generation_prompt %}<|bot|>{% endif %}")
    changes = {"data__train": (str(world / "chats.jsonl"),), "data__format": ("messages",)}
    data, _ = make(chat_config(data__template=str(file), **changes), known)
    assert "; its <|user|>, <|bot|> encoded as text, as the tokenizer lacks" in data.description
