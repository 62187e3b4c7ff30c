"""The protocol over HTTP: its routes, errors as OpenAI shapes them, and streams that end when nobody reads."""

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

from keepsight.serve.auth import Gate
from keepsight.serve.batching_engine import Ticket
from keepsight.serve.errors import BadPicture, Busy, RequestRefused, UnknownModelName
from keepsight.serve.image_fetch import Fetching
from keepsight.serve.request_body import Bodies
from keepsight.serve.request_handler import Order, Service
from keepsight.serve.requests import Event
from keepsight.serve.responses import Reply, error_reply, failure, logged, model_card
from keepsight.serve.thread_limiter import Crew, hung_up, unless

KEEP_ALIVE_SECONDS = 15.0
"""After which a stream without news sends a comment, so that nobody on the way takes it for dead."""
PREPARING = 2
"""Requests whose pictures are unpacked at the same time: this, and not the number of clients, bounds memory."""
FETCHING = 16
"""Requests whose pictures are fetched at the same time. Whoever sends none to fetch does not wait for them."""


def create_app(service: Service) -> FastAPI:
    """The application. It starts and closes nothing: the engine is the caller's."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, service=service)
    if service.origins:  # outside of the gate: a browser asks whether it may without the key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("Retry-After",),
        )
    desk = _Desk(service)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path[:200]}"
        return failure(
            RequestRefused(
                f"{what}: {error.detail}; there are GET /v1/models and POST /v1/chat/completions",
                status=error.status_code,
                code="not_found" if error.status_code == 404 else "method_not_allowed",
                headers=error.headers,
            )
        )

    @app.api_route("/health", methods=_LOOK)
    async def health() -> dict[str, Any]:
        return {"status": "ok", "running": service.engine.running, "waiting": service.engine.waiting}

    @app.api_route("/v1/models", methods=_LOOK)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(service, name) for name in service.menu.names]}

    @app.api_route("/v1/models/{name:path}", methods=_LOOK)
    async def model(name: str) -> Response:
        try:
            return JSONResponse(_card(service, name))
        except UnknownModelName as error:
            return failure(error)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        try:
            return await desk.serve(request)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            return failure(error)

    return app


def _card(service: Service, name: str) -> dict[str, Any]:
    return model_card(name, service.created, service.menu.specs(name))


class _Desk:
    """Takes chat requests, at most so many at a time, from the body to the last token of the answer."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._inside = 0
        limits = service.limits
        self._most = limits.queue + limits.batch
        self._bodies = Bodies(limits.request_bytes)
        self._preparing = Crew(PREPARING, "preparing")
        self._fetching = Crew(FETCHING, "fetching")

    async def serve(self, request: Request) -> Response:
        """The answer to a chat request. Raises what went wrong before it began."""
        body = await self._bodies.read(request)
        if self._inside >= self._most:
            raise Busy(
                f"{self._inside} requests are being served already: try again later",
                retry_after=self._service.engine.retry_after(),
            )
        self._inside += 1
        leave = _Once(self._leave)
        gone = asyncio.ensure_future(hung_up(request))
        try:
            order = await unless(gone, self._order(body))
            del body
            conversation = _Conversation(self._service, order, gone, leave)
            # Who waits long for the first token of a stream gets its head before: who is on the way would give up
            first = await conversation.next(KEEP_ALIVE_SECONDS if order.stream else None)
            if order.stream:
                return StreamingResponse(
                    conversation.stream(first), media_type="text/event-stream", headers=_STREAMED
                )
            return await conversation.whole(first)
        except BaseException:
            gone.cancel()
            leave()
            raise

    async def _order(self, body: bytes) -> Order:
        service = self._service
        request = await self._preparing.run(service.parse, body)
        del body
        fetched: Mapping[str, bytes | BadPicture] = {}
        if urls := service.elsewhere(request):
            fetching = Fetching(service.limits)
            try:
                fetched = await self._fetching.run(fetching.all, urls)
            finally:
                fetching.stop()
        return await self._preparing.run(service.order, request, fetched)

    def _leave(self) -> None:
        self._inside -= 1


_LOOK = ["GET", "HEAD"]
_STREAMED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class _Once:
    """Does a thing the first time it is called."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act: Callable[[], None] | None = act

    def __call__(self) -> None:
        act, self._act = self._act, None
        if act is not None:
            act()


class _Conversation:
    """One order on its way: events come from the engine's thread, and the client is watched meanwhile."""

    def __init__(self, service: Service, order: Order, gone: asyncio.Future[None], leave: _Once) -> None:
        self._reply = Reply(order)
        self._leave = leave
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._going = self._writing = len(order.asks)
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended before the engine
                loop.call_soon_threadsafe(self._hear, event)

        self._ticket: Ticket = service.engine.submit(order.asks, tell)
        self._gone = gone
        self._gone.add_done_callback(lambda _: self._end())  # nobody may have begun to read

    def _hear(self, event: Event) -> None:
        self._events.put_nowait(event)
        self._writing -= event.last
        if not self._writing:
            self._leave()  # who reads slowly keeps nobody out

    async def next(self, patience: float | None = None) -> Event | None:
        """What happens next; None where nothing did for ``patience`` seconds.

        Raises:
            ClientDisconnect: the client has hung up. Its place is free again.
            KeepsightError: an answer failed; the others are given up.
        """
        news = asyncio.ensure_future(self._events.get())
        try:
            either: set[asyncio.Future[Any]] = {news, self._gone}
            await asyncio.wait(either, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if news.done():
                event = news.result()
                if event.error is not None:
                    raise event.error
                self._going -= event.last
                return event
            if self._gone.done():
                raise ClientDisconnect
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
        except ClientDisconnect:
            return
        except Exception as error:
            _, body, _ = error_reply(logged(error))
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
