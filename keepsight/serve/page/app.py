"""The page's server: a handful of addresses over one ``Studio``. Needs the extra ``ui``."""

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
from keepsight.serve.addresses import called, means_here
from keepsight.serve.errors import Busy, RequestRefused, tellable
from keepsight.serve.page.request_schema import find_scene, read
from keepsight.serve.page.scheduler import Desk, Place, Say, Work
from keepsight.serve.page.service import Prepared, Studio, told
from keepsight.serve.request_body import Bodies
from keepsight.serve.thread_limiter import Crew, hung_up, unless

Found = TypeVar("Found")
PREPARING = 2
"""Requests that are read, and whose pictures are unpacked, at the same time."""
HEADERS = {
    # Nothing from elsewhere, nothing inline: what a model writes can be shown and never run
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/pane.js": ("pane.js", "text/javascript; charset=utf-8"),
    "/heat.js": ("heat.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
log = logging.getLogger(__name__)


def build(studio: Studio, *, here: str | None = "localhost") -> Starlette:
    """The application.

    Args:
        here: what the server listens on, if nobody outside this machine reaches it. Then it answers under this machine's own
            names alone, so that no web page elsewhere can reach it under a name of its own. None: under any name.
    """
    desk = Desk(studio.limits.queue, lanes=len(studio.models))
    bodies = Bodies(studio.limits.request_bytes)
    preparing = Crew(PREPARING, "page")

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        yield
        desk.close()

    async def facts(request: Request) -> Response:
        return JSONResponse(studio.facts())

    async def scene(request: Request) -> Response:
        found = _png(request.path_params["name"])
        return Response(found, media_type="image/png", headers={"Cache-Control": "max-age=86400"})

    def prepare(body: bytes, again: bool) -> Prepared:
        asked = read(body, studio.limits, vocabulary=studio.vocabulary, again=again)
        del body
        return studio.prepare(asked)

    async def answer(request: Request) -> Response:
        body = await bodies.read(request)
        place = desk.place()
        try:
            given = await _unless_gone(request, preparing.run(prepare, body, False))
            del body
            events = place.take(_telling(studio.answer, given))
        except BaseException:
            place.leave()
            raise

        async def lines() -> AsyncIterator[str]:
            yield _line({"event": "queued", "ahead": place.ahead})
            async for event in events:
                yield _line(event)

        return _Lines(lines(), place)

    async def attention(request: Request) -> Response:
        body = await bodies.read(request)
        place = desk.place()
        try:
            given = await _unless_gone(request, preparing.run(prepare, body, True))
            del body
            found = await _unless_gone(request, _all(place.take(_telling(studio.maps, given))))
        finally:
            place.leave()
        if not found:
            raise RequestRefused("the server is about to end", status=503)
        failed = found[0].get("event") == "error"
        return JSONResponse(found[0], status_code=400 if failed else 200)

    routes = [Route(path, _file(*what)) for path, what in FILES.items()]
    routes += [
        Route("/api/facts", facts),
        Route("/api/answer", answer, methods=["POST"]),
        Route("/api/attention", attention, methods=["POST"]),
        Route("/scene/{name}.png", scene),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_Guard, here=here)],
        exception_handlers={
            HTTPException: _refused,
            KeepsightError: _refused,
            ClientDisconnect: _nobody,
            Exception: _broken,
        },
        lifespan=life,
    )
    app.state.desk = desk
    return app


class _Guard:
    """Turns away who calls this server by another name, and puts ``HEADERS`` on whatever is answered."""

    def __init__(self, app: ASGIApp, here: str | None) -> None:
        self._app, self._here = app, here

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        host = Headers(scope=scope).get("host", "")
        app = self._app
        if self._here is not None and not means_here(called(host), self._here):
            app = refuse(RequestRefused("this page answers under the names of this machine alone"))
        await app(scope, receive, guarded)


class _Lines(StreamingResponse):
    """Events as they come. Whoever hangs up leaves, even before the first one."""

    def __init__(self, lines: AsyncIterator[str], place: Place) -> None:
        super().__init__(lines, media_type="application/x-ndjson")
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._place.leave()


def refuse(error: KeepsightError) -> Response:
    """An error as one line of JSON with its status; what is not for the asker stays in the log."""
    status, headers = 400, dict(HEADERS)
    if isinstance(error, Busy):
        status, headers["Retry-After"] = 429, str(error.retry_after)
    elif isinstance(error, RequestRefused):
        status = error.status
        headers |= error.headers
    elif not tellable(error):
        status = 500
        log.error("a request failed", exc_info=error)
    # What it was raised from holds the picture, until cycles are looked for
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return JSONResponse({"error": told(error)}, status_code=status, headers=headers)


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):  # Starlette's own
        what = f"{request.method} {request.url.path[:200]}: {error.detail}"
        return refuse(RequestRefused(what, status=error.status_code, headers=error.headers))
    assert isinstance(error, KeepsightError)
    return refuse(error)


async def _broken(request: Request, error: Exception) -> Response:
    """What nobody expected; uvicorn writes it into its log."""
    return JSONResponse({"error": told(error)}, status_code=500, headers=HEADERS)


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Found]) -> Found:
    """What ``work`` comes to. Raises ``ClientDisconnect`` if the asker, whose body has been read, hangs up before."""
    gone = asyncio.ensure_future(hung_up(request))
    try:
        return await unless(gone, work)
    finally:
        gone.cancel()


async def _all(events: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in events]


def _telling(do: Callable[[Prepared, Say, Any, int], None], given: Prepared) -> Work:
    """``do`` whose errors become an event: half an answer may be with the asker already."""

    def work(say: Say, stop: Any, lane: int) -> None:
        try:
            do(given, say, stop, lane)
        except Exception as error:
            if not tellable(error):
                log.exception("an answer failed")
            say({"event": "error", "error": told(error)})

    return work


def _line(event: Any) -> str:
    return json.dumps(event, ensure_ascii=True, allow_nan=False) + "\n"


def _file(name: str, kind: str) -> Callable[[Request], Any]:
    content = (files("keepsight.serve.page") / "static" / name).read_bytes()

    async def give(request: Request) -> Response:
        return Response(content, media_type=kind)

    return give


@lru_cache(maxsize=256)
def _png(name: str) -> bytes:
    """A drawn scene as a PNG. Raises as ``find_scene``."""
    file = io.BytesIO()
    find_scene(name).image().save(file, format="PNG")
    return file.getvalue()
