"""A service on a port: uvicorn, and an end in which streams end by themselves or are told why."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from keepsight.serve.app import create_app
from keepsight.serve.http_protocol import Connection
from keepsight.serve.request_handler import Service

LAST_WORDS = 5.0
"""Seconds that clients have, after all answers have ended, to hear so."""
FORCED = 1.0
"""Seconds that the engine has to end after a second signal."""


class Server(uvicorn.Server):
    """``run(sockets=[listen(…)])`` serves until a signal, or until ``should_exit`` is set by another thread.

    Then nothing new is taken, waiting requests get a 503, answers that are being written have ``grace`` seconds to end by
    themselves, and what is left gets an error in its stream. The engine is closed when ``run`` returns. A second signal ends
    it within ``FORCED`` seconds, whatever is being written.

    Args:
        ready: called once the port answers.
    """

    def __init__(
        self, service: Service, *, grace: float = 30.0, ready: Callable[[], None] = lambda: None
    ) -> None:
        config = uvicorn.Config(
            create_app(service),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            http=Connection,
            timeout_graceful_shutdown=round(grace + LAST_WORDS),
        )
        super().__init__(config)
        self._engine, self._grace, self._ready = service.engine, grace, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again = self.should_exit
        super().handle_exit(sig, frame)
        self.force_exit = self.force_exit or again  # a second SIGTERM too

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = threading.Thread(target=self._engine.close, args=(self._grace,), daemon=True)
        closing.start()
        await super().shutdown(sockets)
        loop = asyncio.get_running_loop()
        while closing.is_alive() and not self.force_exit:
            await asyncio.sleep(0.02)
        if self.force_exit:
            self._engine.hurry()
            end = loop.time() + FORCED
            while (closing.is_alive() or self.server_state.tasks) and loop.time() < end:
                await asyncio.sleep(0.02)
