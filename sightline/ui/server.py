"""Starts the page's server. Needs the extra ``ui``."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import uvicorn

from sightline.errors import InputError


class CannotListen(InputError):
    """The address or the port cannot be had."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        CannotListen: the port is taken or out of its range, or there is no such address here.
    """
    if not 0 <= port <= 65535:
        raise CannotListen(f"--port {port} must be from 0 to 65535 (0: any that is free)")
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, number)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen()
        except BaseException:
            opened.close()
            raise
    except OSError as error:
        raise CannotListen(
            f"cannot listen on {host}:{port} ({error.strerror or error}): choose another --port or --host"
        ) from None
    return opened


def hosts_of(host: str) -> list[str]:
    """The names under which a server on ``host`` answers: on loopback those of loopback, elsewhere any."""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return ["127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host] if loopback else ["*"]


def run(app: Any, opened: socket.socket) -> None:
    """Serve until interrupted; answers that are being written are ended."""
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, server_header=False)
    uvicorn.Server(settings).run(sockets=[opened])
