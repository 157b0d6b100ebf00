"""Chat templates: the Jinja text of a tokenizer directory that makes one text of messages."""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from biomedlm_jax.buckets import as_path
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json

FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
TOKENS += ("mask_token",)


class _Generation(Extension):
    """{% generation %}, which marks the assistant's text: its body is rendered as it is."""

    tags = frozenset({"generation"})  # pyright: ignore

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A template with the special tokens that it may name."""

    def __init__(self, text: str, tokens: Mapping[str, str], *, where: str):
        self.text, self._tokens, self._where = text, dict(tokens), where
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self._compiled = environment.from_string(text)
        except TemplateError as error:
            raise InputError(f"{where} has a chat template that is no Jinja: {error}") from None

    def render(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the chat as text, with the header of the assistant's next turn if that is asked.

        Raises InputError if the template refuses the messages, or fails.
        """
        given: dict[str, Any] = {"messages": messages, "tools": None, "documents": None}
        given["add_generation_prompt"] = add_generation_prompt
        try:
            return self._compiled.render(**given, **self._tokens)
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            raise InputError(f"the chat template of {self._where} fails: {error}") from None


def read_chat_template(directory: str | Path) -> ChatTemplate | None:
    """Return the default chat template of a tokenizer directory; None without one."""
    folder = as_path(directory)
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    text = config.get("chat_template")
    if isinstance(text, list):
        named = {one.get("name"): one.get("template") for one in text if isinstance(one, dict)}
        text = named.get("default")
    if (folder / FILE).exists():
        text = (folder / FILE).read_text(encoding="utf-8")
    if text is None:
        return None
    if not isinstance(text, str):
        raise InputError(f"{folder / CONFIG} has a chat_template of another kind; expected a text")
    special = read_json(folder / SPECIAL) if (folder / SPECIAL).exists() else {}
    both = {**special, **config}
    tokens = {name: both[name] for name in TOKENS if both.get(name) is not None}
    tokens = {k: v.get("content", "") if isinstance(v, dict) else v for k, v in tokens.items()}
    return ChatTemplate(text, tokens, where=str(folder))


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
