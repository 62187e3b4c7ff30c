"""Where a server listens, and under which host names requests may reach it."""

from __future__ import annotations

import ipaddress
import re
import socket

from keepsight.errors import InputError

# The whole header has to match. Starlette's own check cuts the header at its first colon before release 1.7, which refuses
# every IPv6 address, and a lenient reader would take [::1]evil.example for this machine
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/@\s]+)(?::[0-9]*)?")


class CannotListen(InputError):
    """The server cannot listen on the address or the port that it was given."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host`` and ``port``.

    The socket listens at once and is not only bound. Two servers can be bound to one port, so of two that start together the
    second would otherwise fail only after it has loaded its model.

    Args:
        host: a host name or an IP address of this machine.
        port: from 0 to 65535; 0 takes a free port.

    Raises:
        CannotListen: the port is taken or out of its range, or the address is not one of this machine.
    """
    if not 0 <= port <= 65535:
        raise CannotListen(f"--port {port} must be from 0 to 65535 (0: any that is free)")
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        opened = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # names are encoded as IDNA, which fails with UnicodeError
        raise CannotListen(f"cannot listen on {host}: {error}") from None
    try:
        # A server that is started again must not wait until the system has forgotten the connections of the one before
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
    """Whether an IP address, such as ``getsockname()[0]`` of a socket, can only be reached from this machine.

    The result is False for anything that is not an IP address, host names included.
    """
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def host_name(header: str) -> str:
    """The name in a ``Host`` header, in lower case and without the port. An IPv6 address keeps its brackets.

    The result is empty for anything that is not a name with an optional port.

    >>> host_name("LOCALHOST:8000"), host_name("[::1]:80"), host_name("[::1]evil.example")
    ('localhost', '[::1]', '')
    """
    found = _HOST.fullmatch(header)
    return found[1].lower() if found else ""


def is_local_name(name: str, host: str = "localhost") -> bool:
    """Whether a host name means this machine by itself, and not through a name server that leads here.

    Args:
        name: what ``host_name`` returns.
        host: the name or address that the server was told to listen on.
    """
    # The operator chose ``host``. Any other name may have been made up by a foreign web page
    return name in ("localhost", host.lower()) or is_loopback(name.removeprefix("[").removesuffix("]"))
