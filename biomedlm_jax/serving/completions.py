"""Completions: a request in OpenAI's JSON -> a job for the batcher, and its results -> JSON."""

import dataclasses
import json
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from biomedlm_jax.corpus.chat_template import ChatTemplate
from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.files import parse_object
from biomedlm_jax.generation.chat import chat_options, check_messages, encode_chat
from biomedlm_jax.generation.generator import Generator
from biomedlm_jax.generation.options import Options, options_from
from biomedlm_jax.generation.sampling import LARGEST
from biomedlm_jax.serving.batcher import Job, Row

DECODING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # as in Options
READ = (*DECODING, "model", "n", "stream", "stream_options", "seed", "stop", "max_tokens")
# What does not change an answer here, and what is allowed at the values that do not.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
NEUTRAL = {  # as JSON
    "frequency_penalty": ("0", "0.0"), "presence_penalty": ("0", "0.0"), "logit_bias": ("{}",),
    "logprobs": ("false",), "echo": ("false",), "best_of": ("1",), "suffix": ('""',),
    "tools": ("[]",), "tool_choice": ('"none"', '"auto"'), "parallel_tool_calls": ("true", "false"),
    "response_format": ('{"type": "text"}',), "modalities": ('["text"]',),
}  # fmt: skip
STOPS, STOP_BYTES = 4, 128  # of one request: their automaton has a row for each byte


class ApiError(Exception):
    """An error of a request, as HTTP status and OpenAI's JSON."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str = ""):
        super().__init__(message)
        self.status, kind = status, "server_error" if status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if status == 429 else kind
        fields = {"message": message, "type": kind, "param": param, "code": code or None}
        self.body = {"error": fields}


@dataclasses.dataclass
class Completion:
    """A request that is being answered, as OpenAI's JSON: whole, or as the chunks of a stream."""

    job: Job
    name: str  # of the model
    chat: bool
    prompt_tokens: int
    with_usage: bool  # at the end of a stream
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))
    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    def whole(self) -> dict[str, Any]:
        """Return the answers."""
        choices = []
        for i, row in enumerate(self.job.rows):
            message = {"role": "assistant", "content": row.text, "refusal": None}
            content = {"message": message} if self.chat else {"text": row.text}
            choices.append({"index": i, **content, "logprobs": None, "finish_reason": row.finish})
        return self._object("", choices=choices, usage=self._usage())

    def begin(self) -> list[dict[str, Any]]:
        """Return the chunks before the first text: the role of each answer in a chat."""
        rows = range(len(self.job.rows)) if self.chat else ()
        return [self.piece(i, "", role="assistant") for i in rows]

    def piece(self, i: int, text: str, finish: str | None = None, **role: str) -> dict[str, Any]:
        """Return a chunk with new text of answer `i`, or the reason of its end."""
        delta = {**role, "content": text} if finish is None else {}
        content = {"delta": delta} if self.chat else {"text": text}
        choice = {"index": i, **content, "logprobs": None, "finish_reason": finish}
        return self._object(".chunk", choices=[choice])

    def end(self) -> list[dict[str, Any]]:
        """Return the chunks after the last text."""
        chunks = [self.piece(i, "", row.finish) for i, row in enumerate(self.job.rows)]
        usage = self._object(".chunk", choices=[], usage=self._usage())
        return [*chunks, *[usage] * self.with_usage]

    def _object(self, part: str, **fields: Any) -> dict[str, Any]:
        kind = f"chat.completion{part}" if self.chat else "text_completion"
        common = {"object": kind, "created": self.created, "model": self.name}
        return {"id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}", **common, **fields}

    def _usage(self) -> dict[str, int]:
        new = sum(len(row.tokens) for row in self.job.rows)
        counts = {"prompt_tokens": self.prompt_tokens, "completion_tokens": new}
        return {**counts, "total_tokens": self.prompt_tokens + new}


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads requests for one model. `template` is its chat template, or why it has none."""

    generator: Generator
    name: str
    entries: Mapping[str, Any]  # of the model's generation_config.json
    template: ChatTemplate | InputError
    rows: int  # answers of a request at most
    max_prompt_tokens: int
    max_new_tokens: int

    def read(self, raw: bytes, send: Callable, *, chat: bool) -> Completion:
        """Return the request; raise ApiError for one that cannot be answered."""
        try:
            return self._read(raw, send, chat)
        except InputError as error:
            raise ApiError(400, str(error)) from None

    def _read(self, raw: bytes, send: Callable, chat: bool) -> Completion:
        body = parse_object(raw, "the body")
        try:  # half of a surrogate pair, NaN: it could not be tokenized or returned
            json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:
            raise ApiError(400, f"the body: {error}") from None
        body = {name: value for name, value in body.items() if value is not None}
        known = (*(("messages", "max_completion_tokens") if chat else ("prompt",)), *READ)
        for name in sorted({*body} - {*known, *IGNORED}):
            if json.dumps(body[name]) not in NEUTRAL.get(name, ()):
                got = f"got {name}, which is not supported"
                raise ApiError(400, f"{got}; expected some of {', '.join(known)}", name)
        if body.get("model") != self.name:
            got = f"got model={body.get('model')!r}; this server has {self.name!r}"
            raise ApiError(404, got, "model", "model_not_found")
        stream, shown = body.get("stream", False), body.get("stream_options", {})
        if type(stream) is not bool or not isinstance(shown, dict) or (shown and not stream):
            expected = "expected true or false, and an object of options with true only"
            raise ApiError(400, f"got stream={stream!r}; {expected}", "stream")
        options, given = self._options(body)
        template = self.template
        if not chat:
            prompts = self._prompts(body.get("prompt"))
        elif isinstance(template, InputError):
            raise ApiError(400, f"{template} (chats need one; /v1/completions does not)")
        else:
            options = chat_options(options, template, self.generator)
            messages: Any = body.get("messages")
            messages = [*map(_with_text, messages)] if isinstance(messages, list) else messages
            check_messages(messages, "messages")
            prompts = [encode_chat(self.generator.tokenizer, template.render(messages))]
        if len(prompts) * options.samples > self.rows:
            got = f"got {counted(len(prompts), 'prompt')} with n={options.samples}"
            raise ApiError(400, f"{got}; expected at most {self.rows} answers", "n")
        limits = [self._limit(len(ids), options, given) for ids in prompts]
        pairs = zip(prompts, limits, strict=True)
        rows = [Row(ids, limit) for ids, limit in pairs for _ in range(options.samples)]
        job, tokens = Job(rows, options, send, stream), sum(map(len, prompts))
        return Completion(job, self.name, chat, tokens, shown.get("include_usage") is True)

    def _options(self, body: dict[str, Any]) -> tuple[Options, int | None]:
        """Return the options of decoding, and max_tokens if it is given."""
        given = {name: body[name] for name in DECODING if name in body}
        names = [name for name in ("max_completion_tokens", "max_tokens") if name in body]
        most = _whole(body, names[0], self.max_new_tokens) if names else None
        stop = body.get("stop", [])
        stop = [stop] if isinstance(stop, str) else stop
        texts = isinstance(stop, list) and all(isinstance(text, str) for text in stop)
        if not texts or len(stop) > STOPS or len("".join(stop).encode()) > STOP_BYTES:
            expected = f"a text or up to {STOPS}, of {STOP_BYTES} bytes together"
            raise ApiError(400, f"got another stop; expected {expected}", "stop")
        given |= {"stop": tuple(stop)} if stop else {}
        config = self.generator.config
        options, _ = options_from(config, dict(self.entries), max_new_tokens=most, **given)
        samples = _whole(body, "n", self.rows) if "n" in body else options.samples
        if samples > 1 and not options.temperature:
            got = f"got n={samples} with temperature 0, where all answers would be equal"
            raise ApiError(400, f"{got}; set a temperature above 0", "n")
        seed = body["seed"] if "seed" in body else secrets.randbelow(LARGEST)
        return dataclasses.replace(options, samples=samples, seed=seed), most

    def _prompts(self, prompts: Any) -> list[list[int]]:
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if not (isinstance(prompts, list) and prompts and all(type(p) is str for p in prompts)):
            raise ApiError(400, "expected prompt, a text or a list of texts", "prompt")
        try:
            return self.generator.encode(prompts, Options(max_new_tokens=1))
        except InputError:
            raise self._too_long("prompt") from None

    def _limit(self, size: int, options: Options, given: int | None) -> int:
        """Return how many tokens an answer to a prompt of `size` tokens may have."""
        room = self.generator.config.context_length - size
        if size > self.max_prompt_tokens or room < 1:
            raise self._too_long(f"prompt of {counted(size, 'token')}")
        limit = options.max_length - size if options.max_length else options.max_new_tokens
        if (given or 1) > room or limit < 1:
            most = min(options.max_length or size + room, size + room)
            got = f"got a prompt of {counted(size, 'token')} and max_tokens={given}"
            fix = f"expected at most {counted(most, 'token')} together"
            raise ApiError(400, f"{got}; {fix}", "max_tokens", "context_length_exceeded")
        return min(limit, room, self.max_new_tokens)

    def _too_long(self, what: str) -> ApiError:
        most = min(self.max_prompt_tokens, self.generator.config.context_length - 1)
        message = f"got a {what} that is too long; expected at most {counted(most, 'token')}"
        return ApiError(400, message, code="context_length_exceeded")


def _whole(body: dict[str, Any], name: str, most: int) -> int:
    value = body[name]
    if type(value) is not int or not 1 <= value <= most:
        expected = f"expected a whole number from 1 to {most}"
        raise ApiError(400, f"got {name}={value!r}; {expected}", name)
    return value


def _with_text(message: Any) -> Any:
    """Return a message without null fields, and with its text parts joined to one."""
    if isinstance(message, dict):
        message = {name: value for name, value in message.items() if value is not None}
        parts = message.get("content")
        if isinstance(parts, list) and all(
            isinstance(part, dict) and part.get("type") == "text" and type(part.get("text")) is str
            for part in parts
        ):
            message["content"] = "".join(part["text"] for part in parts)
    return message
