"""Bodies of requests, whole: bounded in bytes and in time, each and all that are on their way together."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope

from keepsight.serve.errors import Busy, RequestRefused, TooLarge

BODY_SECONDS = 30.0
"""In which a request's body has to arrive."""
TOGETHER = 16
"""All bodies that are on their way may have so many times the bytes that one may have."""
DRAINED = 64 << 20
"""Bytes of a refused body that are read and thrown away: many clients send everything before they read an answer."""
DRAIN_SECONDS = 5.0


class Bodies:
    """Reads bodies of JSON.

    Args:
        most: bytes of one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """The body of ``request``.

        Raises:
            RequestRefused: another content type, or it takes too long.
            TooLarge: more bytes than are taken.
            Busy: others send too much at the same time.
            ClientDisconnect: the client has hung up.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what a page of a stranger cannot send unasked
            await drain(request.scope, request.receive)
            raise RequestRefused("the content type must be application/json", status=415, code="content_type")
        stated = request.headers.get("content-length", "0")
        if not stated.isdecimal() or int(stated) > self._most:
            await drain(request.scope, request.receive)
            raise self._too_large()
        pieces: list[bytes] = []
        try:
            await asyncio.wait_for(self._gather(request, pieces), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise RequestRefused(
                f"the request did not arrive within {BODY_SECONDS:g} seconds", status=408, code="timeout"
            ) from None
        finally:
            self._held -= sum(map(len, pieces))
        return b"".join(pieces)

    async def _gather(self, request: Request, pieces: list[bytes]) -> None:
        size, more = 0, True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            piece, more = message.get("body", b""), message.get("more_body", False)
            size += len(piece)
            refusal: Exception | None = None
            if size > self._most:
                refusal = self._too_large()
            elif self._held + len(piece) > TOGETHER * self._most:
                refusal = Busy("too much is being sent at the same time: try again later", retry_after=5)
            if refusal is not None:
                if more:
                    await drain(request.scope, request.receive)
                raise refusal
            self._held += len(piece)
            pieces.append(piece)

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the request has more than {self._most:,} bytes, which is the limit: send smaller pictures"
        )


async def drain(scope: Scope, receive: Receive) -> None:
    """Throw away the rest of a body that is refused, if it is not too long; nobody has read its end yet."""
    headers = Headers(scope=scope)
    stated = headers.get("content-length", "0")
    if "expect" in headers or not stated.isdecimal() or int(stated) > DRAINED:
        return

    async def read() -> None:
        left, more = DRAINED, True
        while more and left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), DRAIN_SECONDS)
