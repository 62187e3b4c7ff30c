"""Serves the application with uvicorn. When it shuts down, streams end by themselves or with an error that says why."""

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
        grace: seconds for answers that are being generated when the server shuts down; default 30.
        ready: called once, as soon as the port answers requests.
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
            # After this time uvicorn cancels the responses that are left. The grace time is for answers to end or fail, and
            # the rest for clients to read the end of them
            timeout_graceful_shutdown=round(grace + FLUSH_SECONDS),
        )
        super().__init__(config)
        self._engine, self._grace, self._ready = handler.engine, grace, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, and then call ``ready``."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to shut down at the first signal, and end at the second one, whatever is being generated."""
        again = self.should_exit
        super().handle_exit(sig, frame)
        self.force_exit = self.force_exit or again  # uvicorn itself forces the exit at a second SIGINT only

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the engine while uvicorn sends the rest of the responses, and wait for both, or for a second signal."""
        # close() blocks until the last answer has ended, and the event loop has to go on sending meanwhile. The thread is a
        # daemon, because after a second signal nobody waits for it any more
        closing = threading.Thread(target=self._engine.close, args=(self._grace,), daemon=True)
        closing.start()
        # Returns once all responses have been sent, when their time is over, or at a second signal
        await super().shutdown(sockets)
        loop = asyncio.get_running_loop()
        while closing.is_alive() and not self.force_exit:
            await asyncio.sleep(0.02)
        if self.force_exit:
            # A forward pass that has begun cannot be stopped, so that the engine may or may not end in time. Until then
            # responses can still be sent, which uvicorn no longer waits for
            self._engine.abort()
            end = loop.time() + FORCED_SHUTDOWN_SECONDS
            while (closing.is_alive() or self.server_state.tasks) and loop.time() < end:
                await asyncio.sleep(0.02)
