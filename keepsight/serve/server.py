"""Serves the application with uvicorn, and shuts down so that streams end by themselves or are told why they end."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from keepsight.serve.app import create_app
from keepsight.serve.http_protocol import TimedConnection
from keepsight.serve.request_handler import RequestHandler

FLUSH_SECONDS = 5.0
"""After all answers have ended, clients have this time to read the rest of their responses."""
FORCED_SHUTDOWN_SECONDS = 1.0
"""After a second signal, the engine has this time to stop."""


class Server(uvicorn.Server):
    """A uvicorn server for one handler.

    ``run(sockets=[listen(…)])`` serves until a signal arrives, or until another thread sets ``should_exit``. Then new
    requests are refused, requests that wait get status 503, and answers that are being generated have ``grace`` seconds to
    end by themselves before they get an error in their stream. The engine is closed when ``run`` returns. A second signal
    ends the server within ``FORCED_SHUTDOWN_SECONDS``, whatever is being generated.

    Args:
        handler: the model, its names and its limits.
        grace: seconds for answers that are being generated when the server shuts down.
        ready: called once the port answers requests.
    """

    def __init__(
        self, handler: RequestHandler, *, grace: float = 30.0, ready: Callable[[], None] = lambda: None
    ) -> None:
        config = uvicorn.Config(
            create_app(handler),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            http=TimedConnection,
            timeout_graceful_shutdown=round(grace + FLUSH_SECONDS),
        )
        super().__init__(config)
        self._engine, self._grace, self._ready = handler.engine, grace, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again = self.should_exit
        super().handle_exit(sig, frame)
        self.force_exit = self.force_exit or again  # uvicorn itself forces the exit at a second SIGINT only

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = threading.Thread(target=self._engine.close, args=(self._grace,), daemon=True)
        closing.start()
        await super().shutdown(sockets)
        loop = asyncio.get_running_loop()
        while closing.is_alive() and not self.force_exit:
            await asyncio.sleep(0.02)
        if self.force_exit:
            self._engine.abort()
            end = loop.time() + FORCED_SHUTDOWN_SECONDS
            while (closing.is_alive() or self.server_state.tasks) and loop.time() < end:
                await asyncio.sleep(0.02)
