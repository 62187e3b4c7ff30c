"""The page's server: a handful of addresses over one ``Studio``. Needs the extra ``ui``."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sightline.errors import SightlineError
from sightline.serve.errors import Busy, RequestRefused, TooLarge
from sightline.serve.hosts import called
from sightline.ui.asked import Asked, find_scene, read
from sightline.ui.desk import Desk, Say, Work
from sightline.ui.studio import Studio, error_event

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


def build(studio: Studio, *, hosts: Sequence[str] = ("127.0.0.1", "localhost", "[::1]")) -> Starlette:
    """The application.

    Args:
        hosts: names under which it answers, ``*`` for any. Others are refused, so that no web page elsewhere can reach it
            under a name of its own.
    """
    desk = Desk(studio.limits.queue, lanes=len(studio.models))

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        yield
        desk.close()

    async def facts(request: Request) -> Response:
        return JSONResponse(studio.facts(), headers=HEADERS)

    async def scene(request: Request) -> Response:
        try:
            found = _png(request.path_params["name"])
        except SightlineError as error:
            return refuse(error)
        return Response(found, media_type="image/png", headers={**HEADERS, "Cache-Control": "max-age=86400"})

    async def answer(request: Request) -> Response:
        try:
            asked = await _asked(request, studio, again=False)
            ahead = desk.ahead
            events = desk.take(_telling(studio.answer, asked))
        except SightlineError as error:
            return refuse(error)

        async def lines() -> AsyncIterator[str]:
            yield _line({"event": "queued", "ahead": ahead})
            async for event in events:
                yield _line(event)

        return StreamingResponse(lines(), media_type="application/x-ndjson", headers=HEADERS)

    async def attention(request: Request) -> Response:
        try:
            asked = await _asked(request, studio, again=True)
            found = [event async for event in desk.take(_telling(studio.maps, asked))]
        except SightlineError as error:
            return refuse(error)
        if not found:
            return refuse(RequestRefused("the server is about to end", status=503))
        failed = found[0].get("event") == "error"
        return JSONResponse(found[0], status_code=400 if failed else 200, headers=HEADERS)

    routes = [Route(path, _file(*what)) for path, what in FILES.items()]
    routes += [
        Route("/api/facts", facts),
        Route("/api/answer", answer, methods=["POST"]),
        Route("/api/attention", attention, methods=["POST"]),
        Route("/scene/{name}.png", scene),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(_Guard, hosts=hosts)], lifespan=life)
    app.state.desk = desk
    return app


class _Guard:
    """Turns away who calls this server by another name. Starlette's own knows no IPv6 address before its release 1.7."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        anyone = scope["type"] != "http" or "*" in self._hosts
        if anyone or called(Headers(scope=scope).get("host", "")) in self._hosts:
            await self._app(scope, receive, send)
        else:
            await PlainTextResponse("Invalid host header", status_code=400)(scope, receive, send)


def refuse(error: SightlineError) -> Response:
    """An error that is the asker's, as one line of JSON with its status."""
    if isinstance(error, Busy):
        headers = {**HEADERS, "Retry-After": str(error.retry_after)}
        return JSONResponse({"error": str(error)}, status_code=429, headers=headers)
    status = error.status if isinstance(error, RequestRefused) else 400
    return JSONResponse({"error": " ".join(str(error).split())}, status_code=status, headers=HEADERS)


def _telling(do: Callable[[Asked, Say, Any, int], None], asked: Asked) -> Work:
    """``do`` whose errors become an event: half an answer may be with the asker already."""

    def work(say: Say, stop: Any, lane: int) -> None:
        try:
            do(asked, say, stop, lane)
        except Exception as error:
            if not isinstance(error, SightlineError):
                log.exception("an answer failed")
            say(error_event(error))

    return work


async def _asked(request: Request, studio: Studio, *, again: bool) -> Asked:
    """The request's body, read.

    Raises:
        RequestRefused: it is not JSON by its type, and so maybe from a form of another site; or by its content.
        TooLarge: it is longer than what is taken.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestRefused("the request must be application/json", status=415)
    limit = studio.limits.request_bytes
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise TooLarge(f"the request has more than {limit:,} bytes: send a smaller picture")
    except ClientDisconnect:
        raise RequestRefused("the request broke off") from None
    return read(bytes(body), studio.limits, vocabulary=studio.vocabulary, again=again)


def _line(event: Any) -> str:
    return json.dumps(event, ensure_ascii=True, allow_nan=False) + "\n"


def _file(name: str, kind: str) -> Callable[[Request], Any]:
    content = (files("sightline.ui") / "page" / name).read_bytes()

    async def give(request: Request) -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return give


@lru_cache(maxsize=256)
def _png(name: str) -> bytes:
    """A drawn scene as a PNG. Raises as ``find_scene``."""
    file = io.BytesIO()
    find_scene(name).image().save(file, format="PNG")
    return file.getvalue()
