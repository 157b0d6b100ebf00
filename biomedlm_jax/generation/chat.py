"""Chats: messages -> ids by the model's template, answers that end at its stop token, streamed."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from biomedlm_jax.corpus.chat_template import ChatTemplate, Message, special_tokens
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_jsonl
from biomedlm_jax.generation import decoding
from biomedlm_jax.generation.generator import TRUNCATE, Generator
from biomedlm_jax.generation.options import NO_END, Options

ROLES = ("system", "user", "assistant")
TEXTS = ("content", "name", "instruction", "input")  # of a message; the last two are Alpaca's
PROBE = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def encode_chat(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of a rendered chat: special tokens that it spells are tokens."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def stop_token(template: ChatTemplate, tokenizer: Tokenizer, ends: Sequence[int] = ()) -> int:
    """Return the id of the token that ends an answer in a template.

    It is a special token, or one of `ends`. Raises InputError if there is none.
    """
    ids = encode_chat(tokenizer, template.render(PROBE, False))
    while ids and not tokenizer.decode(ids[-1:], skip_special_tokens=False).strip():
        ids.pop()
    added = tokenizer.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special}
    named = map(tokenizer.token_to_id, special_tokens(tokenizer).values())
    if ids and ids[-1] in {*special, *named, *ends}:
        return ids[-1]
    last = repr(tokenizer.id_to_token(ids[-1])) if ids else "no token"
    got = f"the chat template of {template.where} ends an answer with {last}"
    missing = template.missing_tokens(tokenizer)
    fix = "set another template"
    if missing:
        fix += f", or fine-tune with data.added_tokens: the tokenizer lacks {', '.join(missing)}"
    raise InputError(f"{got}; expected a special token, which stops decoding; fix: {fix}")


def chat_options(options: Options, template: ChatTemplate, generator: Generator) -> Options:
    """Return the options with the template's stop token among the ends of an answer."""
    ends = options.strategy(generator.config, generator.tokenizer).ends
    ends = () if options.ends == NO_END else ends
    stop = stop_token(template, generator.tokenizer, ends)
    return dataclasses.replace(options, ends=tuple(dict.fromkeys((*ends, stop))))


class Chat:
    """A conversation with a model: its messages so far."""

    def __init__(
        self, generator: Generator, template: ChatTemplate, options: Options, *, system: str = ""
    ):
        self.generator, self.template = generator, template
        self.options = chat_options(options, template, generator)
        self.messages: list[dict[str, str]] = []
        if system:
            self.messages.append({"role": "system", "content": system})

    def encode(self, messages: Sequence[Message], *, truncate: str = "error") -> list[int]:
        """Return the ids of messages and of the header of an answer, as `apply_chat_template`.

        Raises InputError if they do not fit the model with an answer; `truncate="left"` leaves out
        the oldest turns then, but not the system message.
        """
        if truncate not in TRUNCATE:
            raise InputError(f"got truncate={truncate!r}; expected one of {', '.join(TRUNCATE)}")
        config, options = self.generator.config, self.options
        new = 1 if options.max_length else options.max_new_tokens
        room = min(options.max_length or config.context_length, config.context_length) - new
        ids = encode_chat(self.generator.tokenizer, self.template.render(messages, True))
        before = [*messages[:1]] if messages[0]["role"] == "system" else []
        starts = [i for i, one in enumerate(messages) if one["role"] == "user" and i > len(before)]
        for first in starts if truncate == "left" else ():
            if len(ids) <= room:
                break
            text = self.template.render([*before, *messages[first:]], True)
            ids = encode_chat(self.generator.tokenizer, text)
        if options.max_length and len(ids) > room:
            got = f"{len(ids)} tokens, and the model's max_length is {options.max_length}"
            raise InputError(f"the chat has {got}; pass --max_new_tokens")
        if len(ids) > room:
            got = f"{len(ids)} tokens, and {new} new ones make {len(ids) + new}"
            limit = f"the model has {config.context_length} positions"
            fix = "shorten its last message, or lower --max_new_tokens"
            fix += ", or leave out the oldest turns (--truncate=left)" * (truncate == "error")
            raise InputError(f"the chat has {got}; {limit}: {fix}")
        decoding.check_prompts(config, [ids], new)
        return ids

    def say(self, text: str, *, truncate: str = "error") -> Iterator[str]:
        """Yield the answer to a user's text in pieces; both become part of the conversation.

        If it raises, or is not read to its end, the conversation is as it was before.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        pieces = []
        for piece in self.generator.stream(self.encode(messages, truncate=truncate), self.options):
            pieces.append(piece)
            yield piece
        answer = {"role": "assistant", "content": "".join(pieces).strip()}
        self.messages = [*messages, answer]


def instruction_messages(instruction: str, input: str = "", system: str = "") -> list[dict]:
    """Return the messages of an instruction: the user's, and before it a system message if given.

    A text of white space is none. The user's message also has its parts, for Alpaca's template.
    """
    parts = {"instruction": instruction, "input": input}
    parts = {name: text for name, text in parts.items() if text.strip()}
    user = {"role": "user", "content": "\n\n".join(parts.values())}
    user |= parts if "instruction" in parts else {}  # an input alone is the instruction
    return [*[{"role": "system", "content": system}] * bool(system.strip()), user]


def read_chats(path: str | Path) -> list[tuple[list[dict[str, str]], dict[str, Any]]]:
    """Return the messages of each JSON line, the last a user's, and {"id": ..} if it has one.

    A line has messages, or an instruction and perhaps its input and a system message; its output
    is not read. Raises InputError with file and line for any other.
    """
    chats = []
    for where, record in read_jsonl(path):
        messages: Any = record.get("messages")
        if messages is None and "instruction" in record:
            messages = _of_instruction(record, where)
        check_messages(messages, where)
        identity = {"id": record["id"]} if "id" in record else {}
        try:  # half of a surrogate pair, NaN: such an answer could not be written
            json.dumps([messages, identity], ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:
            raise InputError(f"{where}: {error}; fix the messages or the id") from None
        chats.append((messages, identity))
    if not chats:
        raise InputError(f"{path} has no chats; expected one a line")
    return chats


def check_messages(messages: Any, where: str) -> None:
    """Raise InputError unless these are messages of known roles with texts, the last a user's."""
    if not (isinstance(messages, list) and messages):
        raise InputError(f"{where}: expected messages, a list of objects, or an instruction")
    for number, one in enumerate(messages, 1):
        fields = {**one} if isinstance(one, dict) else {}
        if fields.get("role") not in ROLES or not isinstance(fields.get("content"), str):
            got = f"message {number} has role {fields.get('role')!r}"
            expected = f"expected one of {', '.join(ROLES)}, and the text content"
            raise InputError(f"{where}: {got}; {expected}")
        if unknown := sorted({*fields} - {*TEXTS, "role"}):
            raise InputError(f"{where}: message {number} has {unknown[0]!r}, which is not read")
        if bad := [n for n in TEXTS if not isinstance(fields.get(n, ""), str)]:
            raise InputError(f"{where}: message {number} has a {bad[0]} that is no text")
    if messages[-1]["role"] != "user":
        raise InputError(f"{where}: the last message is not a user's, so nothing is to answer")


def _of_instruction(record: dict[str, Any], where: str) -> list[dict[str, str]]:
    texts = {name: record.get(name) for name in ("instruction", "input", "system")}
    texts = {name: text for name, text in texts.items() if text is not None}
    if bad := [name for name, text in texts.items() if not isinstance(text, str)]:
        raise InputError(f"{where}: expected {bad[0]}, a text")
    messages = instruction_messages(**{"instruction": "", **texts})
    if not messages[-1]["content"]:
        raise InputError(f"{where}: the instruction has no text")
    return messages
