"""Files of instructions and chats -> `Conversation` records, by a format that is named.

    messages    rows: messages, a list of {role, content}; roles system, user, assistant. An
                assistant's message may have a weight, 0 or 1: whether it is in the loss
    alpaca      rows: instruction, output; may have input and system
    pairs       rows: source, target (other names: see `Fields`)

Rows are JSON lines, a JSON array (.json) or parquet. Other fields of a row are not read, but those
of `UNREAD`, which would change the text, are refused.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from biomedlm_jax.errors import InputError
from biomedlm_jax.generation.chat import instruction_messages
from biomedlm_jax.qa.question_rows import Row, first_names, read_rows

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")
UNREAD = ("tools", "functions", "function_call", "history", "conversations")
ON_ERROR = ("raise", "skip")


class Fields(NamedTuple):
    """Names of the fields of a format's rows; `group` is that of the rows that stay together."""

    source: str = "source"
    target: str = "target"
    group: str = ""


class Conversation(NamedTuple):
    """Messages as a template gets them, `role`, `content`, and of Alpaca `instruction`, `input`."""

    messages: tuple[Mapping[str, str], ...]
    trained: tuple[bool, ...]  # of each message: whether it is in the loss
    place: str  # file:line
    group: str  # conversations of one group stay on one side of a split

    @property
    def answered(self) -> int:
        """The index of the last message that is in the loss."""
        return max(i for i, one in enumerate(self.trained) if one)


def read_conversations(
    path: str | Path,
    format: str,
    *,
    fields: Fields = Fields(),  # noqa: B008
    on_error: str = "raise",
    left_out: Counter[str],
) -> list[Conversation]:
    """Return the conversations of a file.

    Those that are empty or have no answer are left out and counted in `left_out` by "file: reason".
    Raises InputError with file and line for other bad rows; `on_error="skip"` counts them, too.
    """
    if format not in FORMATS:
        raise InputError(f"got format {format!r}; expected one of {', '.join(FORMATS)}")
    if on_error not in ON_ERROR:
        raise InputError(f"got on_error={on_error!r}; expected one of {', '.join(ON_ERROR)}")
    path, kept = Path(path), []
    if not path.is_file():
        raise InputError(f"no such file: {path}")

    def refuse(message: str) -> None:
        if on_error == "raise":
            raise InputError(message)
        left_out[f"{path}: bad line"] += 1

    for row in read_rows(path, refuse):
        try:
            messages, trained = FORMATS[format](row.fields, fields)
            group = _group(row, messages, fields.group)
            _check_text(messages)
        except InputError as error:
            refuse(f"{row}: {error}")
            continue
        reason = _reason(messages, trained)
        if reason:
            left_out[f"{path}: {reason}"] += 1
        else:
            kept.append(Conversation(tuple(messages), tuple(trained), str(row), group))
    if not kept:
        counted = ", ".join(f"{n:,} {reason}" for reason, n in left_out.items())
        raise InputError(
            f"{path} has no conversation with an answer" + f" ({counted})" * bool(counted)
        )
    return kept


Parsed = tuple[list[dict[str, str]], list[bool]]


def _messages(fields: Mapping[str, Any], _: Fields) -> Parsed:
    listed = fields.get("messages")
    if not isinstance(listed, list):
        raise InputError(_expected("messages", fields))
    messages, trained = [], []
    for number, one in enumerate(listed, 1):
        message, weight = check_message(one, f"message {number}")
        messages.append(message)
        trained.append(weight)
    if messages and messages[0]["role"] == ASSISTANT:
        raise InputError("got an assistant's message as the first; expected a system or user one")
    return messages, trained


def check_message(one: Any, what: str) -> tuple[dict[str, str], bool]:
    """Return a message of role and content, and whether it is in the loss; InputError if bad."""
    if not isinstance(one, dict):
        raise InputError(f"{what} is of type {type(one).__name__}; expected an object")
    given = {name: value for name, value in one.items() if value is not None}
    role, content = given.get("role"), given.get("content")
    if role not in ROLES:
        raise InputError(f"{what} has role {role!r}; expected one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise InputError(f"{what} has a content of type {type(content).__name__}; expected a text")
    if unknown := sorted({*given} - {"role", "content", "weight", "name"}):
        fix = "expected role, content and weight; fix: remove it"
        raise InputError(f"{what} has {unknown[0]!r}, which is not read; {fix}")
    weight = given.get("weight", 1)
    if weight not in (0, 1) or isinstance(weight, str):
        raise InputError(f"{what} has weight {weight!r}; expected 0 or 1")
    named = {"name": str(given["name"])} if "name" in given else {}
    return {"role": role, "content": content, **named}, role == ASSISTANT and bool(weight)


def _alpaca(fields: Mapping[str, Any], _: Fields) -> Parsed:
    texts: dict[str, Any] = {"instruction": "", "input": "", "system": "", "output": None}
    texts |= {name: fields[name] for name in texts if fields.get(name) is not None}
    if bad := [name for name, text in texts.items() if not isinstance(text, str)]:
        raise InputError(_expected(bad[0], fields))
    if "instruction" not in fields:
        raise InputError(_expected("instruction", fields))
    output = texts.pop("output")
    return _turn(instruction_messages(**texts), output)


def _pairs(fields: Mapping[str, Any], names: Fields) -> Parsed:
    source, target = fields.get(names.source), fields.get(names.target)
    for name, text in ((names.source, source), (names.target, target)):
        if not isinstance(text, str):
            raise InputError(_expected(name, fields))
    return _turn([{"role": USER, "content": str(source)}], str(target))


def _turn(before: list[dict[str, str]], answer: str) -> Parsed:
    messages = [*before, {"role": ASSISTANT, "content": answer}]
    return messages, [one["role"] == ASSISTANT for one in messages]


FORMATS: dict[str, Callable[[Mapping[str, Any], Fields], Parsed]] = {
    "messages": _messages,
    "alpaca": _alpaca,
    "pairs": _pairs,
}


def _expected(name: str, fields: Mapping[str, Any]) -> str:
    kind = "a list" if name == "messages" else "a text"
    got = f"of type {type(fields[name]).__name__}" if name in fields else "none"
    return f"expected {name}, {kind}; got {got}, of the fields {first_names(fields)}"


def _group(row: Row, messages: list[dict[str, str]], name: str) -> str:
    if unread := [one for one in UNREAD if row.fields.get(one)]:
        raise InputError(f"got the field {unread[0]!r}, which is not read; fix: remove it")
    if name and name not in row.fields:
        raise InputError(f"expected the field {name!r} (data.group_field)")
    questions = (one["content"] for one in messages if one["role"] == USER)
    return str(row.fields[name]) if name else next(questions, "")


def _check_text(messages: list[dict[str, str]]) -> None:
    for text in (text for one in messages for text in one.values()):
        if "\0" in text:
            raise InputError("got a NUL character; expected UTF-8 text")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can escape
            raise InputError(f"expected UTF-8 text ({error.reason})") from None


def _reason(messages: list[dict[str, str]], trained: list[bool]) -> str:
    """Return why a conversation is left out; "" if it is not."""
    if not messages:
        return "no messages"
    if not any(trained):
        return "no answer in the loss"
    roles = [(one["role"], one["content"].strip()) for one in messages]
    if any(role == ASSISTANT and not text for role, text in roles):
        return "an empty answer"
    if not any(role == USER and text for role, text in roles):
        return "no text of a user"
    return ""


def turn_starts(messages: tuple[Mapping[str, str], ...]) -> Iterator[int]:
    """Yield the indices of the user's messages that begin a turn."""
    for i, one in enumerate(messages):
        if one["role"] == USER and (i == 0 or messages[i - 1]["role"] != USER):
            yield i
