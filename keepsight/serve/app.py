"""OpenAI's protocol over HTTP: routes, errors in OpenAI's shape, and streams that end when the client disconnects."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from keepsight.serve.auth import AuthMiddleware
from keepsight.serve.errors import Busy, InvalidImage, RequestRefused, UnknownModelName
from keepsight.serve.image_fetch import ImageFetcher
from keepsight.serve.request_body import BodyReader
from keepsight.serve.request_handler import ParsedRequest, RequestHandler
from keepsight.serve.requests import GenerationEvent
from keepsight.serve.responses import (
    ResponseBuilder,
    error_parts,
    error_response,
    log_and_detach,
    model_card,
)
from keepsight.serve.thread_limiter import ThreadLimiter, run_unless_disconnected, wait_for_disconnect

KEEP_ALIVE_SECONDS = 15.0
"""A stream without news for this long sends a comment, so that proxies and clients do not take the connection for dead."""
MAX_PREPARING = 2
"""Requests whose images are decoded at the same time. This bounds memory, however many clients there are."""
MAX_FETCHING = 16
"""Requests whose images are fetched at the same time. Requests without images to fetch do not wait for them."""
_READ_METHODS = ["GET", "HEAD"]
# Without the second header, nginx would collect the stream and pass it on in one piece
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def create_app(handler: RequestHandler) -> FastAPI:
    """The FastAPI application. It neither starts nor closes the engine, which belongs to the caller."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(AuthMiddleware, handler=handler)
    if handler.origins:
        # Added last, so it runs before the authentication: a browser's preflight request never carries the key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=handler.origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            # Browsers hide most headers of a response from pages of another origin, unless the server names them
            expose_headers=("Retry-After",),
        )
    endpoint = _ChatEndpoint(handler)

    # Starlette raises HTTPException for unknown routes and methods. Clients expect OpenAI's error shape for these as well
    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path[:200]}"
        return error_response(
            RequestRefused(
                f"{what}: {error.detail}; there are GET /v1/models and POST /v1/chat/completions",
                status=error.status_code,
                code="not_found" if error.status_code == 404 else "method_not_allowed",
                headers=error.headers,
            )
        )

    @app.api_route("/health", methods=_READ_METHODS)
    async def health() -> dict[str, Any]:
        return {"status": "ok", "running": handler.engine.running, "waiting": handler.engine.waiting}

    @app.api_route("/v1/models", methods=_READ_METHODS)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(handler, name) for name in handler.models.names]}

    # Model names hold slashes, colons and equals signs, hence :path
    @app.api_route("/v1/models/{name:path}", methods=_READ_METHODS)
    async def model(name: str) -> Response:
        try:
            return JSONResponse(_card(handler, name))
        except UnknownModelName as error:
            return error_response(error)

    # The route takes the raw request, because FastAPI would read and parse a declared body before any of our bounds apply
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        try:
            return await endpoint.respond(request)
        except ClientDisconnect:
            # Nobody reads this response. nginx has introduced the code for clients that disconnect
            return Response(status_code=499)
        except Exception as error:
            # An error that leaves the route would be logged a second time by uvicorn, and answered in plain text
            return error_response(error)

    return app


def _card(handler: RequestHandler, name: str) -> dict[str, Any]:
    """The entry of one model name in the list of models."""
    return model_card(name, handler.created, handler.models.specs(name))


class _ChatEndpoint:
    """Answers chat requests, a bounded number at a time, from the body to the last token of the answer."""

    def __init__(self, handler: RequestHandler) -> None:
        self._handler = handler
        self._active = 0
        limits = handler.limits
        # The engine's bound on its queue is not enough: requests hold memory as soon as their bodies have arrived
        self._max_active = limits.queue + limits.batch
        self._bodies = BodyReader(limits.request_bytes)
        self._preparing = ThreadLimiter(MAX_PREPARING, "preparing")
        self._fetching = ThreadLimiter(MAX_FETCHING, "fetching")

    async def respond(self, request: Request) -> Response:
        """The response to a chat request.

        Raises:
            KeepsightError: whatever went wrong before the response began.
            ClientDisconnect: the client has disconnected.
        """
        # A request counts only once its body has arrived, so that bodies that never come keep nobody out
        body = await self._bodies.read(request)
        if self._active >= self._max_active:
            raise Busy(
                f"{self._active} requests are being served already: try again later",
                retry_after=self._handler.engine.retry_after(),
            )
        self._active += 1
        # The end of the answer, a disconnect and an error all release the request, and more than one of them may happen
        release = _RunOnce(self._release)
        disconnected = asyncio.ensure_future(wait_for_disconnect(request))
        try:
            parsed = await run_unless_disconnected(disconnected, self._parse(body))
            del body  # it may be large, and this frame lives as long as the answer
            active = _ActiveRequest(self._handler, parsed, disconnected, release)
            # A stream whose first token takes long gets its headers before it, or proxies and clients would give up
            first = await active.next_event(KEEP_ALIVE_SECONDS if parsed.stream else None)
            if parsed.stream:
                return StreamingResponse(
                    active.stream(first), media_type="text/event-stream", headers=_STREAM_HEADERS
                )
            return await active.complete(first)
        except BaseException:  # uvicorn cancels this coroutine when its time to shut down is over
            disconnected.cancel()
            release()
            raise

    async def _parse(self, body: bytes) -> ParsedRequest:
        """The request in ``body``, ready for the engine. Its fields, images and prompt are worked on in threads."""
        handler = self._handler
        request = await self._preparing.run(handler.parse, body)
        del body
        fetched: Mapping[str, bytes | InvalidImage] = {}
        # Fetching has threads of its own: a slow host must not keep the threads that decode images of other requests
        if urls := handler.urls_to_fetch(request):
            fetcher = ImageFetcher(handler.limits)
            try:
                fetched = await self._fetching.run(fetcher.fetch_all, urls)
            finally:
                fetcher.stop()  # this coroutine may have been cancelled while the thread still fetches
        return await self._preparing.run(handler.prepare, request, fetched)

    def _release(self) -> None:
        self._active -= 1


class _RunOnce:
    """Calls a function the first time, and does nothing after that."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function: Callable[[], None] | None = function

    def __call__(self) -> None:
        function, self._function = self._function, None
        if function is not None:
            function()


class _ActiveRequest:
    """A request that was submitted to the engine.

    Events arrive from the engine's thread. If the client disconnects, the request is cancelled, whatever it waits for.
    """

    def __init__(
        self,
        handler: RequestHandler,
        parsed: ParsedRequest,
        disconnected: asyncio.Future[None],
        release: _RunOnce,
    ) -> None:
        self._responses = ResponseBuilder(parsed)
        self._release = release
        self._events: asyncio.Queue[GenerationEvent] = asyncio.Queue()
        # Choices whose last event was not sent yet, and choices whose last event has not arrived yet
        self._unsent = self._unfinished = len(parsed.generation_requests)
        loop = asyncio.get_running_loop()

        def on_event(event: GenerationEvent) -> None:
            with suppress(RuntimeError):  # the event loop may end before the engine
                loop.call_soon_threadsafe(self._put, event)

        self._handle = handler.engine.submit(parsed.generation_requests, on_event)
        self._disconnected = disconnected
        # A client may disconnect before anybody has begun to read the stream, so the reader's own clean-up is not enough
        self._disconnected.add_done_callback(lambda _: self._close())

    def _put(self, event: GenerationEvent) -> None:
        """Take an event from the engine. This runs in the event loop, because asyncio's queues are not thread-safe."""
        self._events.put_nowait(event)
        self._unfinished -= event.last
        if not self._unfinished:
            self._release()  # a client that reads slowly must keep nobody else out once its answer is generated

    async def next_event(self, timeout: float | None = None) -> GenerationEvent | None:
        """The next event, or None if there was none for ``timeout`` seconds.

        Raises:
            ClientDisconnect: the client has disconnected. Its requests are cancelled.
            KeepsightError: an answer failed. The others of the same request are cancelled.
        """
        news = asyncio.ensure_future(self._events.get())
        try:
            either: set[asyncio.Future[Any]] = {news, self._disconnected}
            await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if news.done():
                event = news.result()
                if event.error is not None:
                    raise event.error
                self._unsent -= event.last
                return event
            if self._disconnected.done():
                raise ClientDisconnect
            return None
        except BaseException:
            self._close()
            raise
        finally:
            news.cancel()  # asyncio.wait leaves it running, and it would swallow the next event

    async def complete(self, event: GenerationEvent | None) -> Response:
        """The whole answer in one response. ``event`` is the first event."""
        events = []
        try:
            while event is not None:
                events.append(event)
                event = await self.next_event() if self._unsent else None
            return JSONResponse(self._responses.completion(events))
        finally:
            self._close()

    async def stream(self, event: GenerationEvent | None) -> AsyncIterator[bytes]:
        """The answer as server-sent events. An error in the middle becomes an event and ends the stream.

        Args:
            event: the first event, or None if it takes longer than ``KEEP_ALIVE_SECONDS``.
        """
        try:
            while True:
                if event is None:
                    yield b": still here\n\n"
                else:
                    for chunk in self._responses.chunks(event):
                        yield _server_sent(chunk)
                if not self._unsent:
                    break
                event = await self.next_event(KEEP_ALIVE_SECONDS)
            if self._responses.request.include_usage:
                yield _server_sent(self._responses.usage_chunk())
        except ClientDisconnect:
            return
        except Exception as error:
            _, body, _ = error_parts(log_and_detach(error))
            yield _server_sent(body)
        finally:
            self._close()
        # Streams that end with an error are terminated as well: OpenAI's protocol ends every stream in this way
        yield b"data: [DONE]\n\n"

    def _close(self) -> None:
        """Cancel what is still being generated, and stop counting the request. It may be called any number of times."""
        self._handle.cancel()
        self._disconnected.cancel()
        self._release()


def _server_sent(data: dict[str, Any]) -> bytes:
    """One server-sent event that holds ``data`` as JSON."""
    # JSON has no NaN or infinity: figures are made finite or None before, and one that was forgotten must not be sent
    return b"data: " + json.dumps(data, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"
