import io
import json

import pytest
from rich.console import Console

from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning import mask_view


def printed(config, model, **options):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", highlight=False)
    console.soft_wrap = True
    mask_view.show_masks(config, model, console, **options)
    return out.getvalue()


def test_learned_tokens_are_coloured(world, chat_config):
    text = printed(chat_config(), world / "chat")
    assert text.count("example ") == 3
    green, end = "\x1b[30;42m", "\x1b[0m"
    assert f"{green}it is " in text
    assert f"<|endoftext|>{end}" in text
    assert "template zephyr, stop token <|endoftext|>" in text
    first = text.partition("example 1: ")[2]
    count = int(first.partition(" in the loss")[0].split(", ")[1])
    learned = first.partition(green)[2].partition(end)[0]
    assert learned.startswith("it is ")
    assert 3 <= count <= len(learned)


def test_pairs_are_shown_and_questions_refused(world, text_config, question_config):
    text = printed(text_config(), world / "base", examples=1)
    assert text.count("example ") == 1
    assert "<|startoftext|>" in text
    with pytest.raises(InputError, match="recipe='questions', whose loss is not over tokens"):
        printed(question_config(), world / "base")


def test_what_is_left_out_is_printed(world, chat_config, tmp_path):
    file = tmp_path / "chats.jsonl"
    rows = [json.loads(line) for line in (world / "chats.jsonl").read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": []}]))
    text = printed(chat_config(data__train=(str(file),)), world / "chat", examples=0)
    assert f"1 left out of {file}: no messages" in text
