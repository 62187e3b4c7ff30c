"""Pictures from the web, for a server that was told to fetch them: public addresses alone, looked up once."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

from sightline.serve.errors import BadPicture
from sightline.serve.limits import Limits

SECONDS = 10.0
"""Until the whole picture has to be there."""
_PORTS = {"http": 80, "https": 443}
_EMBEDDING = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))
"""IPv6 addresses that lead to an IPv4 address, which may be a private one."""


def fetch(url: str, limits: Limits) -> bytes:
    """What stands at ``url``.

    The name is looked up once and that address is connected to, so that a second answer of the name server changes nothing.
    Redirects are not followed, proxies of the environment not used, ports other than 80 and 443 not called.

    Raises:
        BadPicture: any of that, an address that is not public, too many bytes, or no answer in time.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
        host = parts.hostname or ""
    except (ValueError, KeyError):
        raise BadPicture("the picture's address is not an http or https URL") from None
    if not host or parts.username or parts.password or port not in _PORTS.values():
        raise BadPicture("the picture's address must be a host's own, on port 80 or 443, without a password")
    address = public_address(host, port)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        with _connected(parts.scheme, host, port, address) as connection:
            connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "sightline"})
            response = connection.getresponse()
            if response.status != 200:
                hint = " (redirects are not followed)" if 300 <= response.status < 400 else ""
                raise BadPicture(f"the picture's address answered with status {response.status}{hint}")
            found = response.read(limits.image_bytes + 1)
    except (OSError, http.client.HTTPException) as error:
        raise BadPicture(
            f"the picture cannot be fetched within {SECONDS:g} seconds ({type(error).__name__})"
        ) from None
    if len(found) > limits.image_bytes:
        raise BadPicture(f"the picture has more than {limits.image_bytes:,} bytes, which is the limit")
    return found


def public_address(host: str, port: int) -> str:
    """The first address of ``host``, if all of its addresses are public.

    Raises:
        BadPicture: one of them is not, or there is none.
    """
    try:
        found = [
            str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM) if entry[4]
        ]
    except (OSError, UnicodeError):
        found = []
    if not found:
        raise BadPicture("the picture's host has no address")
    if not all(map(is_public, found)):
        raise BadPicture("the picture's host is not on the public internet: send the picture as a data URI")
    return found[0]


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, in whatever way it is written."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if any(found in network for network in _EMBEDDING):
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


@contextmanager
def _connected(scheme: str, host: str, port: int, address: str) -> Iterator[http.client.HTTPConnection]:
    """A connection to that very address, cut off after ``SECONDS`` however slowly bytes drip in."""
    with ExitStack() as stack:
        raw = socket.create_connection((address, port), timeout=SECONDS)
        stack.callback(raw.close)
        connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
        connection.auto_open = 0  # never look the name up again
        if scheme == "https":
            connection.default_port = port  # what the Host header leaves out
            raw = ssl.create_default_context().wrap_socket(raw, server_hostname=host)
            stack.callback(raw.close)
        connection.sock = raw
        cut = threading.Timer(SECONDS, _shut, [raw])
        cut.daemon = True
        cut.start()
        stack.callback(cut.cancel)
        stack.callback(connection.close)
        yield connection


def _shut(raw: socket.socket) -> None:
    with suppress(OSError):
        raw.shutdown(socket.SHUT_RDWR)
