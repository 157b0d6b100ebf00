import json

import jax
import pytest
from chats import CHAT, save
from transformers import AutoTokenizer

from biomedlm_jax.corpus.chat_template import chat_template
from biomedlm_jax.corpus.tokenizer import load_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.generation.chat import Chat, read_chats, stop_token
from biomedlm_jax.generation.generator import Generator
from biomedlm_jax.generation.options import Options
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config

NEW = 6


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save(tmp_path_factory.mktemp("tokenizer") / "chatml", template="chatml")


@pytest.fixture(scope="module")
def generator(directory):
    config = GPT2Config(vocab_size=285, context_length=160, layers=1, width=32, heads=2)
    return Generator(GPT2(config, key=jax.random.key(0)), load_tokenizer(directory))


@pytest.fixture
def chat(generator):
    return make(generator)


def make(generator, *, system="", **options):
    template = chat_template(generator.tokenizer)
    return Chat(generator, template, Options(max_new_tokens=NEW, **options), system=system)


def test_ids_are_those_of_transformers(chat, directory):
    theirs = AutoTokenizer.from_pretrained(directory)
    options = {"add_generation_prompt": True, "return_dict": False}
    for messages in (CHAT[:2], CHAT[:4], CHAT[1:2]):
        assert chat.encode(messages) == theirs.apply_chat_template(messages, **options)


def test_a_conversation_is_streamed_with_its_history(generator, monkeypatch):
    chat = make(generator, system="Be brief.")
    stop = generator.tokenizer.token_to_id("<|im_end|>")
    assert chat.options.ends == (284, stop)
    real, given = generator.stream, []

    def stream(ids, options):
        given.append(ids)
        assert options is chat.options
        yield from real(ids, options)

    monkeypatch.setattr(generator, "stream", stream)
    first = "".join(chat.say("What is it?"))
    second = "".join(chat.say("Why?"))
    expected = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": first.strip()},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": second.strip()},
    ]
    assert chat.messages == expected
    assert given == [chat.encode(expected[:2]), chat.encode(expected[:4])]
    answers = generator.answers([given[1]], chat.options)
    assert answers[0][0].text == second
    # An answer that is not read to its end, or a message that is refused, changes nothing.
    next(chat.say("More?"))
    with pytest.raises(InputError, match="the model has 160 positions"):
        [*chat.say("what " * 200)]
    assert chat.messages == expected


def test_the_oldest_turns_are_left_out_where_asked(chat):
    long = [CHAT[0], *CHAT[1:3] * 4, CHAT[1]]
    with pytest.raises(InputError, match=r"new ones make \d+; the model has 160.*truncate=left"):
        chat.encode(long)
    ids = chat.encode(long, truncate="left")
    assert len(ids) <= 160 - NEW
    kept = next(k for k in range(1, len(long), 2) if chat_ids(chat, [long[0], *long[k:]]) == ids)
    assert kept > 1
    assert len(chat_ids(chat, [long[0], *long[kept - 2 :]])) > 160 - NEW
    with pytest.raises(InputError, match=r"160 positions: shorten its last .*new_tokens$"):
        chat.encode([CHAT[0], {"role": "user", "content": "x " * 300}], truncate="left")
    with pytest.raises(InputError, match="truncate='right'"):
        chat.encode(long, truncate="right")


def chat_ids(chat, messages):
    text = chat.template.render(messages)
    return chat.generator.tokenizer.encode(text, add_special_tokens=False).ids


def test_the_stop_token_is_special(generator):
    tokenizer = generator.tokenizer
    for name, stop in (
        ("chatml", "<|im_end|>"),
        ("zephyr", "<|endoftext|>"),
        ("llama3", "<|eot_id|>"),
    ):
        assert stop_token(chat_template(tokenizer, name), tokenizer) == tokenizer.token_to_id(stop)
    own = make(generator, ends=(5,))
    assert own.options.ends == (5, tokenizer.token_to_id("<|im_end|>"))
    template = chat_template(tokenizer)
    template._compiled = template._compiled.environment.from_string("{{ messages[1].content }}")
    with pytest.raises(InputError, match="ends an answer with 'b'; expected a special token"):
        stop_token(template, tokenizer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no chats; expected one a line"),
        ('{"prompt": "a"}', r"c\.jsonl:1: expected messages, a list"),
        ('{"messages": []}', "expected messages, a list"),
        ('{"messages": [{"role": "tool", "content": "a"}]}', "message 1 has role 'tool'"),
        ('{"messages": [{"role": "user", "content": 3}]}', "and the text content"),
        (
            '{"messages": [{"role": "user", "content": "a", "tool_calls": 1}]}',
            "'tool_calls', which",
        ),
        (
            '{"messages": [{"role": "assistant", "content": "a"}]}',
            "the last message is not a user's",
        ),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "fix the messages or the id"),
        ('{"instruction": 3}', r"c\.jsonl:1: expected instruction, a text"),
        ('{"instruction": " ", "input": ""}', "the instruction has no text"),
    ],
)
def test_files_of_chats(tmp_path, text, message):
    file = tmp_path / "c.jsonl"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_chats(file)
    file.write_text(json.dumps({"messages": CHAT[:2], "id": 3}) + "\n")
    assert read_chats(file) == [(CHAT[:2], {"id": 3})]


def test_instructions_are_chats(tmp_path):
    file = tmp_path / "c.jsonl"
    rows = [
        {"instruction": "Do.", "input": "this", "output": "not read", "id": "a:1"},
        {"instruction": "Do.", "input": None, "system": "Be brief."},
        {"instruction": "", "input": "this"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    apart = {"content": "Do.\n\nthis", "instruction": "Do.", "input": "this"}
    system = {"role": "system", "content": "Be brief."}
    assert read_chats(file) == [
        ([{"role": "user", **apart}], {"id": "a:1"}),
        ([system, {"role": "user", "content": "Do.", "instruction": "Do."}], {}),
        ([{"role": "user", "content": "this"}], {}),
    ]
