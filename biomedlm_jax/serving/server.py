"""A local HTTP server with OpenAI's completions, chat completions and models."""

import asyncio
import contextlib
import dataclasses
import json
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from biomedlm_jax.corpus.chat_template import ChatTemplate, chat_template
from biomedlm_jax.errors import InputError
from biomedlm_jax.generation.chat import chat_options
from biomedlm_jax.generation.generator import NOTICE, Generator
from biomedlm_jax.generation.options import model_options, read_generation_config
from biomedlm_jax.interop.directories import GENERATION_CONFIG, model_config
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.serving.batcher import STOPPING, Batcher
from biomedlm_jax.serving.completions import ApiError, Completion, Reader

LOCAL = ("localhost", "127.0.0.1", "::1", "[::1]")
HEADERS = {"x-notice": NOTICE}
GRACE = 5  # seconds that open requests have to end when the server stops
POLL = 0.5  # seconds between two looks whether a client that waits is still there


@dataclasses.dataclass(frozen=True)
class Server:
    """The application of one model."""

    reader: Reader
    batcher: Batcher
    max_body_bytes: int
    timeout: float  # seconds of a request, with waiting

    def app(self, hosts: Sequence[str]) -> Starlette:
        """Return the ASGI application; it answers requests whose Host header is one of `hosts`."""
        routes = [
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.completions, methods=["POST"]),
        ]
        # A page that rebinds its name to 127.0.0.1 sends its own name as Host.
        trusted = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
        errors = {ApiError: _error, HTTPException: _error, ClientDisconnect: _error}
        return Starlette(routes=routes, middleware=[trusted], exception_handlers=errors)

    async def health(self, request: Request) -> Response:
        """Return that the server runs, and how many requests wait."""
        waiting = len(self.batcher.waiting)
        return JSONResponse({"status": "ok", "waiting": waiting, "notice": NOTICE})

    async def models(self, request: Request) -> Response:
        """Return the list of models, which is one."""
        model = {"id": self.reader.name, "object": "model", "created": 0, "owned_by": "local"}
        return JSONResponse({"object": "list", "data": [model]}, headers=HEADERS)

    async def completions(self, request: Request) -> Response:
        """Answer a request, whole or in pieces; it has a place until it ends or its client does."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue()

        def send(event: tuple[int, str] | Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended, and closed the loop
                loop.call_soon_threadsafe(events.put_nowait, event)

        deadline, chat = loop.time() + self.timeout, "chat" in request.url.path
        raw = await self._body(request, deadline)
        completion = await run_in_threadpool(self.reader.read, raw, send, chat=chat)
        if not self.batcher.submit(completion.job):
            got = f"{self.batcher.most} requests wait already"
            raise ApiError(429, f"{got}; send this one again later")
        try:  # a request that fails before its first piece gets the status of its error
            event = await _next(events, deadline, request)
        except BaseException:
            self.batcher.cancel(completion.job)
            raise
        if not completion.job.stream:
            return JSONResponse(completion.whole(), headers=HEADERS)
        chunks = self._chunks(completion, event, events, deadline)
        return EventSourceResponse(chunks, headers=HEADERS, sep="\n")

    async def _chunks(
        self,
        completion: Completion,
        event: tuple[int, str] | None,
        events: asyncio.Queue[tuple[int, str] | Exception | None],
        deadline: float,
    ) -> AsyncIterator[dict[str, str]]:
        """Yield the events of a stream; sse-starlette closes it when its client is gone."""
        try:
            for chunk in completion.begin():
                yield _data(chunk)
            while event is not None:
                yield _data(completion.piece(*event))
                event = await _next(events, deadline)
            for chunk in completion.end():
                yield _data(chunk)
            yield {"data": "[DONE]"}
        except ApiError as error:
            yield _data(error.body)
        finally:
            self.batcher.cancel(completion.job)

    async def _body(self, request: Request, deadline: float) -> bytes:
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            # Pages of other origins may send plain text without a question to this server.
            raise ApiError(415, "expected Content-Type: application/json")
        raw = bytearray()
        try:
            async with asyncio.timeout_at(deadline):
                async for part in request.stream():
                    raw += part
                    if len(raw) > self.max_body_bytes:
                        got = f"the body has more than {self.max_body_bytes} bytes"
                        raise ApiError(413, f"{got}; shorten it")
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive in {self.timeout} s") from None
        return bytes(raw)


def load_server(
    directory: str | Path, *, name: str, template: str | None, batch_size: int, max_waiting: int,
    max_prompt_tokens: int | None, max_new_tokens: int | None, max_body_bytes: int, timeout: float,
    **loading: Any,
) -> Server:  # fmt: skip
    """Load a model and return its server; `loading` are arguments of `load`."""
    options, begin = model_options(model_config(directory), directory)
    if options.beams > 1:
        got = f"beams={options.beams} in the {GENERATION_CONFIG} of {directory}"
        raise InputError(f"got {got}; a server does not search beams: remove it there")
    model, tokenizer = load(directory, **loading)
    generator = Generator(model, tokenizer, begin=begin)
    own: ChatTemplate | InputError
    try:
        own = chat_template(generator.tokenizer, template or "", where=name)
        chat_options(options, own, generator)  # it has a token that ends an answer
    except InputError as error:
        if template:
            raise
        own = error
    longest, entries = generator.config.context_length, read_generation_config(directory)
    limits = batch_size, max_prompt_tokens or longest, max_new_tokens or longest
    reader = Reader(generator, name, entries, own, *limits)
    batcher = Batcher(generator, rows=batch_size, most=max_waiting)
    return Server(reader, batcher, max_body_bytes, timeout)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address; raise InputError if it cannot be."""
    if not 0 <= port < 2**16:
        raise InputError(f"got --port={port}; expected one up to 65535, or 0 for any that is free")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:
        got = f"cannot listen at {host}:{port}: {getattr(error, 'strerror', None) or error}"
        raise InputError(f"{got}; fix: another --host or --port") from None
    return bound


class Web(uvicorn.Server):
    """The process's web server; the first signal ends the open requests."""

    def __init__(self, own: Server, hosts: Sequence[str]):
        config = uvicorn.Config(
            own.app(hosts), log_level="warning", access_log=False, ws="none", http="h11",
            server_header=False, proxy_headers=False, timeout_graceful_shutdown=GRACE,
            log_config=None,  # which would close the handlers of others
        )  # fmt: skip
        super().__init__(config)
        AppStatus.disable_automatic_graceful_drain()  # which would cut streams without an error
        self.batcher = own.batcher
        self.batcher.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the requests with an error, and then the connections."""
        await run_in_threadpool(self.batcher.close)
        await super().shutdown(sockets)


async def _next(
    events: asyncio.Queue[tuple[int, str] | Exception | None],
    deadline: float,
    request: Request | None = None,
) -> tuple[int, str] | None:
    """Return the next piece, None at the end; raise ApiError if none comes."""
    while (left := deadline - asyncio.get_running_loop().time()) > 0:
        with contextlib.suppress(TimeoutError):
            event = await asyncio.wait_for(events.get(), min(POLL, left))
            if isinstance(event, Exception):
                raise ApiError(503 if event is STOPPING else 500, str(event))
            return event
        if request is not None and await request.is_disconnected():
            raise ApiError(499, "the client is gone")
    raise ApiError(504, "the time of this request is over; ask for fewer tokens")


def _data(chunk: dict) -> dict[str, str]:
    return {"data": json.dumps(chunk)}


async def _error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    elif not isinstance(error, ApiError):
        error = ApiError(499, "the client is gone")
    return JSONResponse(error.body, error.status)
