"""The page over HTTP: a few routes over one ``PageService``. It needs the extra ``ui``."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib.resources import files
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keepsight.errors import KeepsightError
from keepsight.serve.addresses import host_name, is_local_name
from keepsight.serve.errors import Busy, RequestRefused, is_client_safe
from keepsight.serve.page.request_schema import find_scene, parse_page_request
from keepsight.serve.page.scheduler import Emit, Job, Scheduler, Slot
from keepsight.serve.page.service import PageService, PreparedRequest, client_message
from keepsight.serve.request_body import BodyReader
from keepsight.serve.thread_limiter import ThreadLimiter, run_unless_disconnected, wait_for_disconnect

Result = TypeVar("Result")
MAX_PREPARING = 2
"""Requests that are parsed, and whose images are decoded, at the same time. This bounds memory."""
HEADERS = {
    # No scripts or styles from elsewhere and none inline, so that text of the model can be shown but never runs
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""The headers of every response, unless the response sets them itself."""
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/pane.js": ("pane.js", "text/javascript; charset=utf-8"),
    "/heat.js": ("heat.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""The files of the page by their path, each with its media type. Nothing else of the folder is served."""
log = logging.getLogger(__name__)


def create_page(service: PageService, *, local_host: str | None = "localhost") -> Starlette:
    """The Starlette application of the page.

    Args:
        service: the model and what the page shows of it.
        local_host: the address that the server listens on, if it is only reachable from this machine. Requests must then
            name this machine as their host. Without that check, a foreign web page could send requests under a host name
            that resolves to this machine (DNS rebinding). None accepts any host.
    """
    scheduler = Scheduler(service.limits.queue, workers=len(service.models))
    bodies = BodyReader(service.limits.request_bytes)
    preparing = ThreadLimiter(MAX_PREPARING, "page")

    # uvicorn waits for open responses before it runs what follows the yield, which ends the threads of the workers
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        scheduler.close()

    async def facts(request: Request) -> Response:
        return JSONResponse(service.facts())

    async def scene(request: Request) -> Response:
        found = _png(request.path_params["name"])
        # A scene is a function of its name alone, so that browsers may keep its picture
        return Response(found, media_type="image/png", headers={"Cache-Control": "max-age=86400"})

    # This takes time and memory for the image, so that it runs in threads of its own and takes no worker from the model
    def parse_and_prepare(body: bytes, answered: bool) -> PreparedRequest:
        request = parse_page_request(body, service.limits, vocabulary=service.vocabulary, answered=answered)
        del body  # it holds the image once more, as base64
        return service.prepare(request)

    async def answer(request: Request) -> Response:
        # A client gets a slot only once its body has arrived, so that bodies that never come keep nobody out
        body = await bodies.read(request)
        slot = scheduler.reserve()
        try:
            prepared = await _run_unless_disconnected(request, preparing.run(parse_and_prepare, body, False))
            del body
            events = slot.run(_report_errors(service.answer, prepared))
        except BaseException:  # a disconnect and a cancelled coroutine included
            slot.leave()
            raise

        async def lines() -> AsyncIterator[str]:
            yield _line({"event": "queued", "ahead": slot.ahead})
            async for event in events:
                yield _line(event)

        return _EventStream(lines(), slot)

    async def attention(request: Request) -> Response:
        body = await bodies.read(request)
        slot = scheduler.reserve()
        try:
            prepared = await _run_unless_disconnected(request, preparing.run(parse_and_prepare, body, True))
            del body
            events = await _run_unless_disconnected(
                request, _collect(slot.run(_report_errors(service.attention_maps, prepared)))
            )
        finally:
            slot.leave()
        # The client is still there, so that only the end of the server can have stopped the job before its event
        if not events:
            raise RequestRefused("the server is about to end", status=503)
        failed = events[0].get("event") == "error"
        return JSONResponse(events[0], status_code=400 if failed else 200)

    routes = [Route(path, _file(*what)) for path, what in FILES.items()]
    routes += [
        Route("/api/facts", facts),
        Route("/api/answer", answer, methods=["POST"]),
        Route("/api/attention", attention, methods=["POST"]),
        Route("/scene/{name}.png", scene),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_HostAndHeadersMiddleware, local_host=local_host)],
        # Starlette runs the handler of Exception outside of all middleware, so that this one has to set HEADERS itself
        exception_handlers={
            HTTPException: _on_error,
            KeepsightError: _on_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_unexpected_error,
        },
        lifespan=lifespan,
    )
    app.state.scheduler = scheduler
    return app


class _HostAndHeadersMiddleware:
    """ASGI middleware that refuses requests to foreign host names, and puts ``HEADERS`` on every response.

    Args:
        app: the application behind the middleware.
        local_host: as for ``create_page``.
    """

    def __init__(self, app: ASGIApp, local_host: str | None) -> None:
        self._app, self._local_host = app, local_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        host = Headers(scope=scope).get("host", "")
        app = self._app
        if self._local_host is not None and not is_local_name(host_name(host), self._local_host):
            app = error_response(RequestRefused("this page answers under the names of this machine alone"))
        await app(scope, receive, send_with_headers)


class _EventStream(StreamingResponse):
    """A stream of JSON lines. A client that disconnects leaves its slot, even before the first line was read.

    A clean-up in the generator of the lines would not do, because a generator that was never begun runs no ``finally``.
    """

    def __init__(self, lines: AsyncIterator[str], slot: Slot) -> None:
        super().__init__(lines, media_type="application/x-ndjson")
        self._slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._slot.leave()


def error_response(error: KeepsightError) -> Response:
    """The response for an error: one line of JSON. An error whose message the client may not read is logged."""
    status, headers = 400, dict(HEADERS)
    if isinstance(error, Busy):
        status, headers["Retry-After"] = 429, str(error.retry_after)
    elif isinstance(error, RequestRefused):
        status = error.status
        headers |= error.headers
    elif not is_client_safe(error):
        status = 500
        log.error("a request failed", exc_info=error)
    # The frames of the traceback hold the image, and are only freed by the garbage collector's search for cycles
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return JSONResponse({"error": client_message(error)}, status_code=status, headers=headers)


async def _on_error(request: Request, error: Exception) -> Response:
    """The response for a named error, or for one that Starlette raises."""
    if isinstance(error, HTTPException):  # raised by Starlette, for example for an unknown route
        what = f"{request.method} {request.url.path[:200]}: {error.detail}"
        return error_response(RequestRefused(what, status=error.status_code, headers=error.headers))
    assert isinstance(error, KeepsightError)
    return error_response(error)


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    """The response for an error that is not one of ours. uvicorn logs its traceback."""
    return JSONResponse({"error": client_message(error)}, status_code=500, headers=HEADERS)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """A response that nobody reads. nginx has introduced its status for clients that disconnect."""
    return Response(status_code=499)


async def _run_unless_disconnected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``, for a client whose body has been read.

    Raises:
        ClientDisconnect: the client has disconnected before the end of ``work``.
    """
    disconnected = asyncio.ensure_future(wait_for_disconnect(request))
    try:
        return await run_unless_disconnected(disconnected, work)
    finally:
        disconnected.cancel()


async def _collect(events: AsyncIterator[Any]) -> list[Any]:
    """All events as a list."""
    return [event async for event in events]


def _report_errors(
    function: Callable[[PreparedRequest, Emit, Any, int], None], prepared: PreparedRequest
) -> Job:
    """A job that calls ``function`` and emits an error as an event, since half of the answer may have been sent already."""

    def job(emit: Emit, stop: Any, worker: int) -> None:
        try:
            function(prepared, emit, stop, worker)
        except Exception as error:
            if not is_client_safe(error):
                log.exception("an answer failed")
            emit({"event": "error", "error": client_message(error)})

    return job


def _line(event: Any) -> str:
    """An event as one line of JSON."""
    return json.dumps(event, ensure_ascii=True, allow_nan=False) + "\n"


def _file(name: str, kind: str) -> Callable[[Request], Any]:
    """An endpoint that sends a file of the folder ``static``, which is read once."""
    content = (files("keepsight.serve.page") / "static" / name).read_bytes()

    async def send_file(request: Request) -> Response:
        return Response(content, media_type=kind)

    return send_file


@lru_cache(maxsize=256)
def _png(name: str) -> bytes:
    """A drawn scene as a PNG file. Raises what ``find_scene`` raises."""
    file = io.BytesIO()
    find_scene(name).image().save(file, format="PNG")
    return file.getvalue()
