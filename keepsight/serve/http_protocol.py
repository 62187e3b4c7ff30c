"""Connections that nobody can keep: who sends no request, or takes no answer, is cut off."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

if TYPE_CHECKING:
    Protocol = Any
else:
    Protocol = AutoHTTPProtocol

CONNECTIONS = 512
"""Open at the same time. For one more, the one that has sent no request for longest is closed; else it hears a 503."""
HEAD_SECONDS = 10.0
"""In which the head of a request has to arrive, after the connection or the answer before."""
READ_SECONDS = 60.0
"""Who takes nothing of an answer for so long gets no more of it."""
_FULL = {
    "message": f"{CONNECTIONS} connections are open already: try again later",
    "type": "server_error",
    "param": None,
    "code": "too_many_connections",
}


class Connection(Protocol):  # type: ignore[misc]
    """uvicorn's own, on a clock."""

    _clock: asyncio.TimerHandle | None = None
    _reads: asyncio.TimerHandle | None = None
    since = 0.0
    """When it began to wait for a request."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > CONNECTIONS:
            idle = [one for one in self.connections if one is not self and one.idle]
            if idle:
                min(idle, key=lambda one: one.since).transport.abort()
            else:
                transport.write(_full())
                transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        _stop(self._clock)
        _stop(self._reads)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reads = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _stop(self._reads)

    @property
    def idle(self) -> bool:
        """Whether no request is being answered here."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        """Bytes that come do not set the clock back, only a whole head does."""
        if not self.idle:
            _stop(self._clock)
            self._clock = None
        elif self._clock is None:
            self.since = self.loop.time()
            self._clock = self.loop.call_later(HEAD_SECONDS, self._late)

    def _late(self) -> None:
        if self.idle:
            self.transport.close()


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _full() -> bytes:
    body = json.dumps({"error": _FULL}).encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"retry-after: 5\r\nconnection: close\r\n\r\n" + body
