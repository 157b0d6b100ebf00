"""The JSON of requests and answers, in comparison with `generate` and OpenAI's client."""

import json

import pytest
from chats import CHAT

from biomedlm_jax.corpus.chat_template import read_chat_template
from biomedlm_jax.generation.chat import Chat
from biomedlm_jax.generation.generator import Generator, generate
from biomedlm_jax.generation.options import Options
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.serving.completions import ApiError

PROMPT = "the kinase binds the receptor"


def expected_of(directory, prompts, **options):
    model, tokenizer = load(directory)
    return generate(model, tokenizer, prompts, directory=directory, **options)


def test_completions_are_the_texts_of_generate(served, directories):
    client = served[2]
    fields = {"model": "model", "prompt": PROMPT, "max_tokens": 10}
    for options in (
        {},
        {"stop": ["e", "zz"]},
        {"temperature": 0.8, "top_p": 0.9, "seed": 5},
    ):
        answer = client.completions.create(**fields, **options)
        (text,) = expected_of(directories["gpt"], [PROMPT], max_new_tokens=10, **options)
        assert answer.choices[0].text == text
        pieces = [*client.completions.create(**fields, **options, stream=True)]
        assert "".join(piece.choices[0].text for piece in pieces) == text
        assert pieces[-1].choices[0].finish_reason == answer.choices[0].finish_reason
        if not options:
            assert answer.choices[0].finish_reason == "length"
            usage = answer.usage
            assert (usage.prompt_tokens, usage.completion_tokens) == (16, 10)
            assert usage.total_tokens == 26


def test_several_prompts_and_answers(served, directories):
    options = {"temperature": 0.8, "seed": 3}
    fields = {"model": "model", "prompt": [PROMPT, "what"], "max_tokens": 6, "n": 2, **options}
    fields["extra_body"] = {"top_k": 9, "repetition_penalty": 1.2}
    answer = served[2].completions.create(**fields)
    options |= {"samples": 2, "max_new_tokens": 6, **fields["extra_body"]}
    expected = expected_of(directories["gpt"], [PROMPT, "what"], **options)
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    texts = dict.fromkeys(range(4), "")
    with_usage = {"include_usage": True}
    for chunk in served[2].completions.create(**fields, stream=True, stream_options=with_usage):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert [*texts.values()] == expected
    assert chunk.usage == answer.usage


def test_chats_are_rendered_by_the_models_template(chatting, directories):
    client, directory = chatting[2], directories["llama"]
    messages = [CHAT[0], {"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]
    generator = Generator(*load(directory))
    options, template = Options(max_new_tokens=10), read_chat_template(directory)
    chat = Chat(generator, template, options, system=CHAT[0]["content"])
    expected = "".join(chat.say("What is it?"))
    fields = {"model": "model", "messages": messages, "max_completion_tokens": 10}
    answer = client.chat.completions.create(**fields)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].message.role == "assistant"
    chunks = [*client.chat.completions.create(**fields, stream=True)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason


LONG = "what is a trial of the drug " * 9
BAD = {
    "model": ({"model": "other"}, 404, "this server has 'model'"),
    "logprobs": ({"logprobs": 0}, 400, "got logprobs, which is not supported"),
    "penalty": ({"presence_penalty": 1}, 400, "got presence_penalty, which is not supported"),
    "no prompt": ({"prompt": None}, 400, "expected prompt"),
    "ids": ({"prompt": [1, 2]}, 400, "expected prompt"),
    "max_tokens": ({"max_tokens": 41}, 400, "whole number from 1 to 40"),
    "true": ({"max_tokens": True}, 400, "whole number from 1 to 40"),
    "long": ({"prompt": LONG}, 400, "expected at most 60 tokens"),
    "together": ({"prompt": "what " * 19, "max_tokens": 40}, 400, "at most 96 tokens together"),
    "temperature": ({"temperature": -1}, 400, "got temperature=-1"),
    "top_p": ({"top_p": 0.5}, 400, "it needs a temperature above 0"),
    "seed": ({"seed": 0.5}, 400, "got seed=0.5"),
    "greedy": ({"n": 2}, 400, "all answers would be equal"),
    "many": ({"n": 5, "temperature": 1, "prompt": ["a", "b"]}, 400, "at most 8 answers"),
    "stop": ({"stop": ["a"] * 5}, 400, "a text or up to 4"),
    "empty stop": ({"stop": ""}, 400, "entries that are not empty"),
    "stream": ({"stream": "yes"}, 400, "expected true or false"),
    "half": ({"prompt": "\ud800"}, 400, "surrogates not allowed"),
    "nan": ({"temperature": float("nan")}, 400, "the body"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_answered(served, name):
    fields, status, message = BAD[name]
    raw = json.dumps({"model": "model", "prompt": PROMPT, **fields}).encode()
    with pytest.raises(ApiError, match=message) as error:
        served[0].reader.read(raw, print, chat=False)
    assert error.value.status == status
    assert "--" not in str(error.value), "a client has no flags"


def test_chats_that_cannot_be_answered(served, chatting):
    for own, messages, message in (
        (served, CHAT[:2], "model has no chat template.*chats need one"),
        (chatting, [], "expected messages"),
        (chatting, [CHAT[2]], "the last message is not a user's"),
        (chatting, [{"role": "tool", "content": "a"}], "expected one of system, user, assistant"),
        (chatting, [{"role": "user", "content": LONG}], "expected at most 60 tokens"),
    ):
        raw = json.dumps({"model": "model", "messages": messages}).encode()
        with pytest.raises(ApiError, match=message) as error:
            own[0].reader.read(raw, print, chat=True)
        assert error.value.status == 400
    with pytest.raises(ApiError, match="expected a JSON object"):
        chatting[0].reader.read(b"{", print, chat=True)
