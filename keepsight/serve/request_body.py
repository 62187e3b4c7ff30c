"""Reads the bodies of requests: bounded in bytes and in time, for each body and for all that arrive at the same time."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope

from keepsight.serve.errors import Busy, RequestRefused, TooLarge

BODY_SECONDS = 30.0
"""Within this time the body of a request has to arrive."""
ARRIVING_BYTES_FACTOR = 16
"""All bodies that are arriving together may have this many times the bytes that one may have."""
MAX_DRAINED_BYTES = 64 << 20
"""Bytes of a refused body that are read and discarded, because many clients read no response before they have sent all."""
DRAIN_SECONDS = 5.0
"""How long a refused body is read and discarded at most."""


class BodyReader:
    """Reads the JSON bodies of all requests to one server.

    Args:
        max_bytes: the largest number of bytes of one body. All bodies that are arriving at the same time may together have
            ``ARRIVING_BYTES_FACTOR`` times as many.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._arriving_bytes = 0  # only changed in the event loop, and therefore without a lock

    async def read(self, request: Request) -> bytes:
        """The body of ``request``. It is not parsed.

        Raises:
            RequestRefused: the content type is not JSON, or the body takes longer than ``BODY_SECONDS``.
            TooLarge: the body has more than ``max_bytes`` bytes.
            Busy: too many bytes are arriving at the same time.
            ClientDisconnect: the client has disconnected.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Without asking first (CORS preflight), a web page can send forms and plain text here, but never this type
        if kind != "application/json":
            await drain(request.scope, request.receive)
            raise RequestRefused("the content type must be application/json", status=415, code="content_type")
        # A chunked body states no length: its bytes are counted as they arrive
        stated = request.headers.get("content-length", "0")
        if not stated.isdecimal() or int(stated) > self._max_bytes:
            await drain(request.scope, request.receive)
            raise self._too_large()
        # The list stands here and not in _gather(), so that what had arrived is known when the time is over
        pieces: list[bytes] = []
        try:
            await asyncio.wait_for(self._gather(request, pieces), BODY_SECONDS)
        except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
            raise RequestRefused(
                f"the request did not arrive within {BODY_SECONDS:g} seconds", status=408, code="timeout"
            ) from None
        finally:
            self._arriving_bytes -= sum(map(len, pieces))
        return b"".join(pieces)

    async def _gather(self, request: Request, pieces: list[bytes]) -> None:
        """Append the parts of a body to ``pieces`` as they arrive, and raise what ``read`` raises for its size."""
        size, more = 0, True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            piece, more = message.get("body", b""), message.get("more_body", False)
            size += len(piece)
            refusal: Exception | None = None
            if size > self._max_bytes:
                refusal = self._too_large()
            elif self._arriving_bytes + len(piece) > ARRIVING_BYTES_FACTOR * self._max_bytes:
                refusal = Busy("too much is being sent at the same time: try again later", retry_after=5)
            if refusal is not None:
                if more:
                    await drain(request.scope, request.receive)
                raise refusal
            self._arriving_bytes += len(piece)
            pieces.append(piece)

    def _too_large(self) -> TooLarge:
        """The error for a body with too many bytes."""
        return TooLarge(
            f"the request has more than {self._max_bytes:,} bytes, which is the limit: send smaller pictures"
        )


async def drain(scope: Scope, receive: Receive) -> None:
    """Read and discard the rest of a refused body, so that clients that send everything first read the response.

    Bodies of more than ``MAX_DRAINED_BYTES`` are left alone, and slow ones are given up after ``DRAIN_SECONDS``. The end of
    the body must not have been read before, because ``receive`` would then wait for the client to disconnect.
    """
    headers = Headers(scope=scope)
    stated = headers.get("content-length", "0")
    # A client that sends Expect: 100-continue waits for our answer before it sends the body
    if "expect" in headers or not stated.isdecimal() or int(stated) > MAX_DRAINED_BYTES:
        return

    async def read() -> None:
        # A chunked body states no length, so that its bytes are counted here as well
        left, more = MAX_DRAINED_BYTES, True
        while more and left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), DRAIN_SECONDS)
