"""HTTP connections with timeouts: clients that send no request, or read no response, are disconnected."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

# uvicorn chooses the class when it is imported (httptools if it is installed, otherwise h11), and type checkers accept no
# base class that is a variable
if TYPE_CHECKING:
    Protocol = Any
else:
    Protocol = AutoHTTPProtocol

MAX_CONNECTIONS = 512
"""Connections that are open at the same time.

If one more comes, the connection that has waited for a request for longest is closed. If all are busy, the new one gets
status 503.
"""
HEADER_SECONDS = 10.0
"""Within this time after the connection, or after the response before, the headers of a request have to arrive."""
WRITE_STALL_SECONDS = 60.0
"""A client that reads nothing of a response for so long is disconnected."""
_TOO_MANY_CONNECTIONS = {
    "message": f"{MAX_CONNECTIONS} connections are open already: try again later",
    "type": "server_error",
    "param": None,
    "code": "too_many_connections",
}


class TimedConnection(Protocol):  # type: ignore[misc]
    """uvicorn's HTTP connection with the timeouts above.

    uvicorn's own timeout does not suffice. It only begins after a response, so that a client may connect and send nothing,
    and it ends with the first byte of the next request, so that a client may send headers that never end.
    """

    _header_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    idle_since = 0.0
    """The time of the event loop at which the connection began to wait for a request."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)  # this adds the connection to ``connections``
        self._update_header_timer()
        if len(self.connections) > MAX_CONNECTIONS:
            idle = [one for one in self.connections if one is not self and one.idle]
            if idle:
                # abort() frees the connection at once. close() would first send what is buffered, which may take for ever
                min(idle, key=lambda one: one.idle_since).transport.abort()
            else:
                # There is no request yet that the application could answer, so that the response is written by hand
                transport.write(_too_many_connections())
                transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        # The event loop holds a timer until it fires, and the timer holds the connection
        _stop(self._header_timer)
        _stop(self._stall_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_header_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_header_timer()

    # asyncio calls this when more waits to be sent than it wants to buffer, and resume_writing when the client has read on
    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self.loop.call_later(WRITE_STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _stop(self._stall_timer)

    @property
    def idle(self) -> bool:
        """Whether no request of this connection is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _update_header_timer(self) -> None:
        """Run the timer while the connection waits for headers.

        Single bytes do not restart it, only whole headers do. A client could otherwise keep a connection open for ever by
        sending a byte now and then.
        """
        if not self.idle:
            _stop(self._header_timer)
            self._header_timer = None
        elif self._header_timer is None:
            self.idle_since = self.loop.time()  # which connection has waited longest decides who makes room
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        """Close the connection, unless a request has begun since the timer was started."""
        if self.idle:
            self.transport.close()


def _stop(timer: asyncio.TimerHandle | None) -> None:
    """Cancel a timer if there is one."""
    if timer is not None:
        timer.cancel()


def _too_many_connections() -> bytes:
    """A whole HTTP response with status 503 and an error in OpenAI's shape."""
    body = json.dumps({"error": _TOO_MANY_CONNECTIONS}).encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"retry-after: 5\r\nconnection: close\r\n\r\n" + body
