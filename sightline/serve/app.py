"""The protocol over HTTP: its routes, errors as OpenAI shapes them, and streams that end when nobody reads."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from sightline.errors import SightlineError
from sightline.serve.engine import Event, Ticket
from sightline.serve.errors import Busy, NotAllowed, RequestRefused, TooLarge, UnknownModelName
from sightline.serve.hosts import called
from sightline.serve.replies import Reply, error_reply, model_card
from sightline.serve.service import Order, Service

BODY_SECONDS = 30.0
"""In which a request's body has to arrive."""
KEEP_ALIVE_SECONDS = 15.0
"""After which a stream without news sends a comment, so that nobody on the way takes it for dead."""
PREPARING = 2
"""Requests whose pictures are unpacked at the same time: this, and not the number of clients, bounds memory."""
LOCAL = ("localhost", "127.0.0.1", "[::1]")

log = logging.getLogger("sightline.serve")


def create_app(service: Service) -> FastAPI:
    """The application. It starts and closes nothing: the engine is the caller's."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(_Gate, service=service)
    desk = _Desk(service)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path[:200]}"
        return failure(
            RequestRefused(
                f"{what}: {error.detail}; there are GET /v1/models and POST /v1/chat/completions",
                status=error.status_code,
                code="not_found" if error.status_code == 404 else "method_not_allowed",
            )
        )

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "running": service.engine.running, "waiting": service.engine.waiting}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(service, name) for name in service.menu.names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        try:
            return JSONResponse(_card(service, name))
        except UnknownModelName as error:
            return failure(error)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        try:
            return await desk.serve(request)
        except (_Gone, ClientDisconnect):
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            return failure(error)

    return app


def failure(error: Exception) -> Response:
    """An error as a response."""
    status, body, headers = error_reply(_logged(error))
    return JSONResponse(body, status, headers)


def _logged(error: Exception) -> Exception:
    """The same; what is not ours is logged whole, as clients are told of it in general terms."""
    if not isinstance(error, SightlineError):
        log.error("a request failed", exc_info=error)
    return error


def _card(service: Service, name: str) -> dict[str, Any]:
    return model_card(name, service.created, [recipe.spec for recipe in service.menu.methods(name)])


class _Desk:
    """Takes chat requests, at most so many at a time, from the body to the last token of the answer."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._inside = 0
        limits = service.limits
        self._most = limits.queue + limits.batch
        self._preparing = anyio.CapacityLimiter(PREPARING)

    async def serve(self, request: Request) -> Response:
        """The answer to a chat request. Raises what went wrong before it began."""
        if self._inside >= self._most:
            raise Busy(
                f"{self._inside} requests are being served already: try again later",
                retry_after=self._service.engine.retry_after(),
            )
        self._inside += 1
        leave = _Once(self._leave)
        try:
            body = await _body(request, self._service.limits.request_bytes)
            order = await anyio.to_thread.run_sync(self._service.read, body, limiter=self._preparing)
            del body
            conversation = _Conversation(self._service, order, request, leave)
            first = await conversation.next()
            if order.stream:
                return StreamingResponse(
                    conversation.stream(first), media_type="text/event-stream", headers=_STREAMED
                )
            return await conversation.whole(first)
        except BaseException:
            leave()
            raise

    def _leave(self) -> None:
        self._inside -= 1


_STREAMED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class _Once:
    """Does a thing the first time it is called."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act: Callable[[], None] | None = act

    def __call__(self) -> None:
        act, self._act = self._act, None
        if act is not None:
            act()


class _Gone(Exception):
    """The client has hung up."""


class _Conversation:
    """One order on its way: events come from the engine's thread, and the client is watched meanwhile."""

    def __init__(self, service: Service, order: Order, request: Request, leave: _Once) -> None:
        self._reply = Reply(order)
        self._leave = leave
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._going = self._writing = len(order.asks)
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended before the engine
                loop.call_soon_threadsafe(self._hear, event)

        self._ticket: Ticket = service.engine.submit(order.asks, tell)
        self._gone = asyncio.ensure_future(_hung_up(request))
        self._gone.add_done_callback(lambda _: self._end())  # nobody may have begun to read

    def _hear(self, event: Event) -> None:
        self._events.put_nowait(event)
        self._writing -= event.last
        if not self._writing:
            self._leave()  # who reads slowly keeps nobody out

    async def next(self, patience: float | None = None) -> Event | None:
        """What happens next; None where nothing did for ``patience`` seconds.

        Raises:
            _Gone: the client has hung up. Its place is free again.
            SightlineError: an answer failed; the others are given up.
        """
        news = asyncio.ensure_future(self._events.get())
        try:
            await asyncio.wait({news, self._gone}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if news.done():
                event = news.result()
                if event.error is not None:
                    raise event.error
                self._going -= event.last
                return event
            if self._gone.done():
                raise _Gone
            return None
        except BaseException:
            self._end()
            raise
        finally:
            news.cancel()

    async def whole(self, event: Event | None) -> Response:
        """The answer in one piece."""
        events = []
        try:
            while event is not None:
                events.append(event)
                event = await self.next() if self._going else None
            return JSONResponse(self._reply.whole(events))
        finally:
            self._end()

    async def stream(self, event: Event | None) -> AsyncIterator[bytes]:
        """The answer as server-sent events. An error in the middle is told, and ends it."""
        try:
            while True:
                if event is None:
                    yield b": still here\n\n"
                else:
                    for chunk in self._reply.chunks(event):
                        yield _sent(chunk)
                if not self._going:
                    break
                event = await self.next(KEEP_ALIVE_SECONDS)
            if self._reply.order.usage:
                yield _sent(self._reply.usage_chunk())
        except _Gone:
            return
        except Exception as error:
            _, body, _ = error_reply(_logged(error))
            yield _sent(body)
        finally:
            self._end()
        yield b"data: [DONE]\n\n"

    def _end(self) -> None:
        self._ticket.cancel()
        self._gone.cancel()
        self._leave()


def _sent(found: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(found, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


async def _hung_up(request: Request) -> None:
    """Returns once the client has hung up; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, most: int) -> bytes:
    """A JSON body, whole.

    Raises:
        RequestRefused: another content type, or it takes too long.
        TooLarge: more bytes than ``most``.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a page of a stranger cannot send unasked
        raise RequestRefused("the content type must be application/json", status=415, code="content_type")
    too_large = TooLarge(
        f"the request has more than {most:,} bytes, which is the limit: send smaller pictures"
    )
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated) > most:
        raise too_large
    pieces: list[bytes] = []

    async def read() -> None:
        size = 0
        async for piece in request.stream():
            size += len(piece)
            if size > most:
                raise too_large
            pieces.append(piece)

    try:
        await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise RequestRefused(
            f"the request did not arrive within {BODY_SECONDS:g} seconds", status=408, code="timeout"
        ) from None
    return b"".join(pieces)


class _Gate:
    """Lets in who has the key; without a key on this machine alone, who asks for this machine."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        key = service.api_key
        self._key = None if key is None else _digest(f"Bearer {key}".encode())
        self._local = service.loopback and key is None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(Request(scope))) is not None:
            await failure(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, request: Request) -> RequestRefused | None:
        if self._key is not None:
            given = _digest(
                request.headers.get("authorization", "").encode("latin-1")
            )  # the bytes as they came
            if not hmac.compare_digest(given, self._key):
                return NotAllowed("the API key is missing or wrong: send Authorization: Bearer KEY")
        if self._local and called(request.headers.get("host", "")) not in LOCAL:
            return RequestRefused(
                "this server answers requests to localhost alone: start it with --api-key to be called by another name",
                status=403,
                code="host_not_allowed",
            )
        return None


def _digest(header: bytes) -> bytes:
    """Of one length whatever the header, so that comparing tells nothing of a key's."""
    return hashlib.sha256(header).digest()
