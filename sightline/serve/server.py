"""A service on a port: uvicorn, and an end in which streams end by themselves or are told why."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from sightline.errors import InputError
from sightline.serve.app import create_app
from sightline.serve.service import Service

CONNECTIONS = 512
"""Open at the same time, idle ones included; uvicorn turns the next one away with a 503."""
LAST_WORDS = 5.0
"""Seconds that clients have, after all answers have ended, to hear so."""


class CannotListen(InputError):
    """The address or the port cannot be had."""


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to ``host`` and ``port``; 0 takes a free port.

    Raises:
        CannotListen: the port is taken, or the address is not this machine's.
    """
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        bound = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise CannotListen(f"cannot listen on {host}: {error}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise CannotListen(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
        ) from None
    return bound


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine reaches ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Server(uvicorn.Server):
    """``run(sockets=[listen(…)])`` serves until a signal, or until ``should_exit`` is set by another thread.

    Then nothing new is taken, waiting requests get a 503, answers that are being written have ``grace`` seconds to end by
    themselves, and what is left gets an error in its stream. The engine is closed when ``run`` returns.

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
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=round(grace + LAST_WORDS),
        )
        super().__init__(config)
        self._engine, self._grace, self._ready = service.engine, grace, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing: Any = asyncio.get_running_loop().run_in_executor(None, self._engine.close, self._grace)
        await super().shutdown(sockets)
        await closing
