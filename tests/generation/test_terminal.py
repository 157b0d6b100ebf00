"""Flags that contradict one another, and prompts typed in; the command's tests do the rest."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from biomedlm_jax.generation import terminal
from biomedlm_jax.generation.decoding import check_prompts
from biomedlm_jax.generation.options import Options

NAMES = ("prompt", "prompts", "score", "out", "html", "overwrite", "trace", "field", "batch_size")
NAMES += ("chat", "messages", "template", "system")


class Flags(SimpleNamespace):
    def __getitem__(self, name):
        return SimpleNamespace(present=getattr(self, name) is not None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"prompt": "a", "score": "b"}, "got --prompt and --score; expected only one"),
        ({"prompts": "a"}, "got --prompts without --out; expected both"),
        ({"messages": "a", "chat": True}, "got --messages and --chat; expected only one"),
        ({"messages": "a"}, "got --messages without --out; expected both"),
        ({"out": "a", "prompt": "b"}, "got --out without --prompts or --messages"),
        ({"system": "a", "messages": "b", "out": "c"}, "got --system without --chat"),
        ({"template": "a", "prompt": "b"}, "got --template without --chat or --messages"),
        ({"html": "a", "prompt": "b"}, "got --html without --score"),
    ],
)
def test_contradicting_flags_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        terminal.check_flags(Flags(**{**dict.fromkeys(NAMES), **flags}), {})


def test_a_chat_has_one_answer():
    with pytest.raises(ValueError, match="got --chat with --beams or --samples"):
        terminal.check_flags(Flags(**{**dict.fromkeys(NAMES), "chat": True}), {"beams": 2})


def test_a_message_that_is_refused_does_not_end_the_chat(monkeypatch, capsys):
    texts = []

    def say(text, *, truncate):
        if text == "long":
            raise ValueError("the model has 8 positions")
        texts.append(text)
        yield from ("<", text, ">")

    flags, errors = SimpleNamespace(truncate="error"), io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n\nlong\nb"))
    with pytest.raises(ValueError, match="1 messages were not answered"):
        terminal._converse(SimpleNamespace(say=say), flags, Console(file=errors, soft_wrap=True))
    assert capsys.readouterr().out == "<a>\n<b>\n"
    assert "the model has 8 positions" in errors.getvalue()
    assert texts == ["a", "b"]


def test_an_invalid_prompt_does_not_end_the_session(monkeypatch, capsys):
    def stream(ids, options):
        yield from ("<", str(len(ids)), ">")

    config = SimpleNamespace(vocab_size=9, context_length=8, eos_token_id=8)

    def encode(prompts, options, *, truncate):
        ids = [[1] * len(prompt) for prompt in prompts]
        check_prompts(config, ids, options.max_new_tokens)
        return ids

    generator = SimpleNamespace(encode=encode, stream=stream)
    flags, errors = SimpleNamespace(stats=False, truncate="error"), io.StringIO()
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\n\nfar too long\nab"))
    console = Console(file=errors, soft_wrap=True)
    with pytest.raises(ValueError, match="1 prompts were not answered"):
        terminal._answer_typed(generator, Options(max_new_tokens=2), flags, console)
    assert capsys.readouterr().out == "<3>\n<2>\n"
    assert "the model has 8 positions" in errors.getvalue()
