"""Chat templates: the Jinja text of a tokenizer directory that makes one text of messages.

A text is rendered as by `apply_chat_template` of transformers 5.23: with the same options, filters,
functions and variables, in jinja2's immutable sandbox.
"""

import contextlib
import dataclasses
import datetime
import importlib.resources
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from tokenizers import Tokenizer

from biomedlm_jax.corpus.huggingface_tokenizer import NAMED
from biomedlm_jax.corpus.tokenizer import END_OF_TEXT, TEMPLATES, Source, load_tokenizer
from biomedlm_jax.errors import InputError

FILE = "chat_template.jinja"
# Templates of the package, for models without one of their own.
BUILT_IN = ("alpaca", "chatml", "human", "llama2", "llama3", "zephyr")
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Message = Mapping[str, Any]


class ChatTemplate:
    """A template with the special tokens that it may name.

    `today` replaces the clock of `strftime_now`; it may raise InputError.
    """

    def __init__(
        self,
        text: str,
        tokens: Mapping[str, str],
        *,
        where: str,
        today: Callable[[], datetime.datetime] = datetime.datetime.now,
    ):
        self.text, self.where, self._tokens = text, where, dict(tokens)
        environment = _Environment(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=_Undefined,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": _refuse,
            "strftime_now": lambda form: today().strftime(form),
            "dict": _PlainDict(),
            "namespace": _PlainNamespace,
        }
        self._marks: _Marks = environment.marks
        try:
            self._compiled = environment.from_string(text)
        except (TemplateError, RecursionError) as error:
            raise InputError(f"{where} has a chat template that is no Jinja: {error}") from None

    @property
    def prints_the_date(self) -> bool:
        """Whether it may ask the clock."""
        return "strftime_now" in self.text

    @property
    def marks_answers(self) -> bool:
        """Whether it has {% generation %} blocks."""
        return GENERATION.search(self.text) is not None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Return the chat as text, with the header of the assistant's next turn if that is asked.

        Raises InputError if the template refuses the messages, or fails.
        """
        return self.render_marked(messages, add_generation_prompt)[0]

    def render_marked(
        self, messages: Sequence[Message], add_generation_prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text, and first and end characters of its {% generation %} blocks."""
        if not messages:
            raise InputError("got a conversation without a message; expected at least one")
        given: dict[str, Any] = {"tools": None, "documents": None}
        given["messages"] = [{k: v for k, v in m.items() if v is not None} for m in messages]
        given["add_generation_prompt"] = add_generation_prompt
        pieces, spans = self._marks.start()
        try:
            for piece in self._compiled.generate(**given, **self._tokens):
                pieces.append(piece)
        except InputError:
            raise
        except (TemplateError, ArithmeticError, RecursionError) as error:
            raise InputError(f"the chat template of {self.where} fails: {error}") from None
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            got = f"{type(error).__name__}: {error}"
            raise InputError(f"the chat template of {self.where} fails: {got}") from None
        return "".join(pieces), spans

    def missing_tokens(self, tokenizer: Tokenizer) -> list[str]:
        """Return markers such as <|im_end|> in the template that are no tokens."""
        names = dict.fromkeys(re.findall(r"<\|[a-z_]+\|>", self.text))
        return [name for name in names if tokenizer.token_to_id(name) is None]


def chat_template(
    tokenizer: Tokenizer,
    name: str = "",
    *,
    where: str = "the tokenizer",
    today: Callable[[], datetime.datetime] = datetime.datetime.now,
) -> ChatTemplate:
    """Return a template for a tokenizer.

    `name` is one of the tokenizer's named templates, of `BUILT_IN`, or a .jinja file; "" is the
    tokenizer's own default. Raises InputError if there is no such template.
    """
    own = templates_of(tokenizer, where=where)
    text, source = own.get(name or "default"), where
    if text is None and name in BUILT_IN:
        folder = importlib.resources.files("biomedlm_jax.corpus") / "chat_templates"
        text, source = (folder / f"{name}.jinja").read_text(encoding="utf-8"), name
    elif text is None and name.endswith(".jinja"):
        try:
            text, source = Path(name).read_text(encoding="utf-8"), name
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the template {name}: {error}") from None
    if text is None:
        named = [one for one in own if one != "default"]
        got = f"{where} has no chat template" + (f" {name!r}" if name else "")
        known = ", ".join([*named, *BUILT_IN])
        raise InputError(f"{got}; fix: set template to one of {known}, or a .jinja file")
    return ChatTemplate(text, special_tokens(tokenizer), where=source, today=today)


def read_chat_template(
    directory: str | Path,
    name: str = "",
    *,
    today: Callable[[], datetime.datetime] = datetime.datetime.now,
) -> ChatTemplate | None:
    """Return a template of a tokenizer directory, by default its default; None without one."""
    tokenizer = load_tokenizer(directory)
    text = templates_of(tokenizer, where=str(directory)).get(name or "default")
    if text is None:
        return None
    return ChatTemplate(text, special_tokens(tokenizer), where=str(directory), today=today)


def special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the special tokens that a template may name, such as bos_token."""
    source: Source | None = vars(tokenizer).get("source")
    if source is None:  # as transformers reads it once it is saved
        return dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    return {name: source.special[name] for name in NAMED if name in source.special}


def templates_of(tokenizer: Tokenizer, *, where: str = "the tokenizer") -> dict[str, str]:
    """Return the chat templates of a tokenizer's directory by name; the plain one is `default`.

    Files take the place of tokenizer_config.json's, as in transformers.
    """
    source: Source | None = vars(tokenizer).get("source")
    files = dict(source.files) if source else {}
    try:
        named = {FILE: "default"} | {
            path: path.removeprefix(f"{TEMPLATES}/").removesuffix(".jinja")
            for path in files
            if path.startswith(f"{TEMPLATES}/")
        }
        texts = {name: files[path].decode() for path, name in named.items() if path in files}
        config = json.loads(files.get("tokenizer_config.json") or "{}")
    except ValueError as error:
        raise InputError(f"{where} has a chat template that cannot be read: {error}") from None
    # Python reads text files with its own line ends.
    texts = {name: re.sub("\r\n?", "\n", text) for name, text in texts.items()}
    value = config.get("chat_template")
    if texts or value is None:
        return texts
    if isinstance(value, str):
        return {"default": value}
    with contextlib.suppress(KeyError, TypeError):
        pairs = value.items() if isinstance(value, dict) else [
            (one["name"], one["template"]) for one in value
        ]  # fmt: skip
        if all(isinstance(text, str) for pair in pairs for text in pair):
            return dict(pairs)
    expected = "expected a text, or a list of objects with name and template"
    raise InputError(f"tokenizer_config.json of {where} has another chat_template; {expected}")


def with_template(tokenizer: Tokenizer, text: str) -> Tokenizer:
    """Return the tokenizer with `text` as its default template, which is saved with it."""
    if templates_of(tokenizer).get("default") == text:
        return tokenizer
    source: Source | None = vars(tokenizer).get("source")
    if source is None:
        raise InputError("the tokenizer was not read from a directory; save and load it first")
    copy = Tokenizer.from_str(tokenizer.to_str())
    files = {**source.files, FILE: text.encode("utf-8")}
    vars(copy).update(vars(tokenizer), source=dataclasses.replace(source, files=files))
    return copy


class _Undefined(Undefined):
    """A variable that is not there; a special token that the tokenizer lacks may not be printed."""

    def __str__(self) -> str:
        if self._undefined_name in NAMED:
            got = f"it prints {self._undefined_name}, which the tokenizer lacks"
            raise InputError(f"the chat template fails: {got}; fix: set another template")
        return super().__str__()

    __slots__ = ()


class _Marks:
    """Characters of the {% generation %} blocks of the text that is being rendered."""

    def __init__(self):
        self.start()

    def start(self) -> tuple[list[str], list[tuple[int, int]]]:
        """Return two new lists: for the pieces rendered so far, and for the blocks."""
        self.pieces: list[str] = []
        self.spans: list[tuple[int, int]] = []
        return self.pieces, self.spans

    def add(self, text: str) -> None:
        """Note a block that begins after the pieces so far."""
        first = sum(map(len, self.pieces))
        self.spans.append((first, first + len(text)))


class _Environment(ImmutableSandboxedEnvironment):
    globals: dict[str, Any]

    def __init__(self, **options: Any):
        self.marks = _Marks()
        super().__init__(**options)


class _Generation(Extension):
    """{% generation %}, which marks the assistant's text; its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text = caller()
        environment = self.environment
        assert isinstance(environment, _Environment)
        environment.marks.add(text)
        return text


class _PlainDict:
    """The function `dict`, without the attributes of the type."""

    def __call__(self, *args: Any, **named: Any) -> dict:
        return dict(*args, **named)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


class _PlainNamespace(Namespace):
    """Jinja's namespace, without names that begin with an underscore."""

    def __init__(*args: Any, **named: Any):
        self, *rest = args
        values = dict(*rest, **named)
        for name in values:
            _check_attribute(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not have the attribute {name!r}")


def _to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    options: dict[str, Any] = {"indent": indent, "separators": separators, "sort_keys": sort_keys}
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def fixed_date(text: str, *, name: str = "data.date") -> Callable[[], datetime.datetime]:
    """Return a clock that stands at YYYY-MM-DD, or with "" one that may not be read.

    `name` is what an InputError calls the setting.
    """
    if not text:
        return _no_date
    try:
        day = datetime.datetime.strptime(text, "%Y-%m-%d")
    except ValueError:
        raise InputError(f"got {name}={text!r}; expected YYYY-MM-DD") from None
    return lambda: day


def _no_date() -> NoReturn:
    got = "the chat template prints today's date, so a run could not be resumed tomorrow"
    raise InputError(f"{got}; fix: set --config.data.date=YYYY-MM-DD")
