"""Where a server listens, and by which names requests may call it."""

from __future__ import annotations

import ipaddress
import re
import socket

from keepsight.errors import InputError

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@\s]+)(?::[0-9]*)?")


class CannotListen(InputError):
    """The address or the port cannot be had."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host`` and ``port``; 0 takes a free port.

    It listens at once, and is not only bound: of two servers that start together the second is told now, not when it has
    loaded its model.

    Raises:
        CannotListen: the port is taken or out of its range, or the address is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise CannotListen(f"--port {port} must be from 0 to 65535 (0: any that is free)")
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        opened = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise CannotListen(f"cannot listen on {host}: {error}") from None
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen()
    except OSError as error:
        opened.close()
        raise CannotListen(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
        ) from None
    return opened


def is_loopback(address: str) -> bool:
    """Whether nobody outside this machine reaches an address; of a socket, ``getsockname()[0]``."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def called(header: str) -> str:
    """The name in a ``Host`` header, in small letters and without the port; an IPv6 address keeps its brackets.

    Empty for what is no name with a port.

    >>> called("LOCALHOST:8000"), called("[::1]:80"), called("[::1]evil.example"), called("localhost:evil.example")
    ('localhost', '[::1]', '', '')
    """
    found = _HOST.fullmatch(header)
    return found[1].lower() if found else ""


def means_here(name: str, host: str = "localhost") -> bool:
    """Whether a name of a request, as ``called`` gives it, is this machine's own, and no other's that leads here.

    Args:
        host: what the server was told to listen on.
    """
    return name in ("localhost", host.lower()) or is_loopback(name.removeprefix("[").removesuffix("]"))
