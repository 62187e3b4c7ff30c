"""Fetches images from the public internet, for servers that were started with ``--fetch-urls``."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import quote, urlsplit

from keepsight.serve.errors import InvalidImage
from keepsight.serve.limits import Limits

FETCH_SECONDS = 10.0
"""Within this time all images of a request have to be fetched."""
_PORTS = {"http": 80, "https": 443}
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            # NAT64, 6to4 and Teredo: addresses of these networks lead to an IPv4 address, which may be private
            *(
                "64:ff9b::/96",
                "64:ff9b:1::/48",
                "2002::/16",
                "2001::/32",
            ),
            # The anycast address of 6to4 relays, site-local addresses, documentation and segment identifiers: no public host
            # has such an address, and the ipaddress module of some Python versions takes them for public
            *(
                "192.88.99.0/24",
                "fec0::/10",
                "3fff::/20",
                "5f00::/16",
            ),
        ),
    )
)
_UNQUOTED = "%/:;=&?~+!$,'@()*[]"
"""Characters that stay as they are in a path and its query, besides letters, digits and ``-._``.

The per cent sign is among them, so that what is escaped already is not escaped again.
"""


def fetch(url: str, limits: Limits) -> bytes:
    """The bytes at one ``url``.

    Raises:
        InvalidImage: as ``ImageFetcher.fetch``.
    """
    return ImageFetcher(limits).fetch(url)


class ImageFetcher:
    """Fetches the images of one request one after another. ``stop`` ends that from another thread.

    All images together have ``FETCH_SECONDS``, counted from the first one, and ``limits.request_bytes``.

    Args:
        limits: the bounds on one image and on the whole request.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bytes = limits.request_bytes
        self._deadline: float | None = None
        # stop() runs in another thread. Under the lock, a socket is either shut down by it or refused by _set_socket()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._stopped = False

    def fetch_all(self, urls: Iterable[str]) -> dict[str, bytes | InvalidImage]:
        """The bytes at each URL. The first failure ends the fetching, and stands in the place of the bytes.

        It is returned and not raised, because the message has to name the place of the image in the conversation, and only
        whoever reads the messages knows that place.
        """
        found: dict[str, bytes | InvalidImage] = {}
        for url in urls:
            try:
                found[url] = self.fetch(url)
            except InvalidImage as error:
                found[url] = error.with_traceback(None)  # its frames would keep the bytes that were fetched
                break
        return found

    def fetch(self, url: str) -> bytes:
        """The bytes at ``url``.

        The host name is looked up once, and the connection is made to the address that was checked. A name server that
        first answers with a public address and then with a private one (DNS rebinding) gains nothing. Redirects are not
        followed, proxies of the environment are not used, and only the ports 80 and 443 are connected to.

        Raises:
            InvalidImage: the URL or its address is not allowed, the response has too many bytes, or it takes too long.
        """
        try:
            parts = urlsplit(url)
            # Ports out of range and brackets that do not close raise ValueError, and other schemes KeyError
            port = parts.port or _PORTS[parts.scheme]
            host = parts.hostname or ""
            path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_UNQUOTED)
        except (ValueError, KeyError):
            raise InvalidImage("the picture's address is not an http or https URL") from None
        if not host or parts.username or parts.password or port not in _PORTS.values():
            raise InvalidImage(
                "the picture's address must be a host's own, on port 80 or 443, without a password"
            )
        if self._deadline is None:
            self._deadline = time.monotonic() + FETCH_SECONDS
        # The socket module has no timeout for this look-up: the name server's own time comes on top
        address = public_address(host, port)
        most = min(self._limits.image_bytes, self._bytes)
        try:
            with self._connected(parts.scheme, host, port, address) as connection:
                connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "keepsight"})
                response = connection.getresponse()
                if response.status != 200:
                    hint = " (redirects are not followed)" if 300 <= response.status < 400 else ""
                    raise InvalidImage(f"the picture's address answered with status {response.status}{hint}")
                # One byte more than allowed shows that the file goes on. The Content-Length header may say anything
                found = response.read(most + 1)
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            raise InvalidImage(
                f"the pictures cannot be fetched within {FETCH_SECONDS:g} seconds ({type(error).__name__})"
            ) from None
        if len(found) > most:
            raise InvalidImage(f"the picture has more than {most:,} bytes, which is the limit")
        self._bytes -= len(found)
        return found

    def stop(self) -> None:
        """Cut the connection, if there is one, and open no further ones."""
        with self._lock:
            self._stopped = True
            if self._socket is not None:
                with suppress(OSError):
                    # Unlike close(), shutdown() wakes the thread that waits for data
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _set_socket(self, raw: socket.socket | None) -> None:
        """Say which socket ``stop`` has to shut down. Raises ``TimeoutError`` if ``stop`` was called already."""
        with self._lock:
            if self._stopped and raw is not None:
                raise TimeoutError
            self._socket = raw

    @contextmanager
    def _connected(
        self, scheme: str, host: str, port: int, address: str
    ) -> Iterator[http.client.HTTPConnection]:
        """A connection to exactly this address, which is cut when the time of all images is over.

        A timer cuts it. A timeout of the socket alone would start again with every byte, so that a server could send a byte
        now and then for ever.

        Raises:
            TimeoutError: the time is over, or ``stop`` was called.
        """
        left = (self._deadline or 0.0) - time.monotonic()
        if self._stopped or left <= 0:
            raise TimeoutError
        with ExitStack() as stack:
            raw = socket.create_connection((address, port), timeout=left)
            stack.callback(raw.close)
            self._set_socket(raw)
            stack.callback(self._set_socket, None)
            # Looking up names and connecting have taken some of the time
            cut = threading.Timer(max((self._deadline or 0.0) - time.monotonic(), 0), self.stop)
            cut.daemon = True
            cut.start()
            stack.callback(cut.cancel)
            connection = http.client.HTTPConnection(host, port, timeout=left)
            connection.auto_open = 0  # http.client would connect by itself, and look the name up again
            if scheme == "https":
                connection.default_port = port  # the Host header leaves the default port out
                # The certificate is checked against the host's name, although the connection leads to an address
                raw = ssl.create_default_context().wrap_socket(raw, server_hostname=host)
                stack.callback(raw.close)
                # wrap_socket() has detached the plain socket, which can no longer be shut down
                self._set_socket(raw)
            connection.sock = raw
            stack.callback(connection.close)
            yield connection


def public_address(host: str, port: int) -> str:
    """The first IP address of ``host``, provided that all of its addresses are public.

    ``host`` may be an address in any notation that the system's resolver reads, such as ``2130706433`` for 127.0.0.1.

    Raises:
        InvalidImage: one of the addresses is not public, or there is none.
    """
    try:
        found = [
            str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM) if entry[4]
        ]
    except (OSError, UnicodeError):
        found = []
    if not found:
        raise InvalidImage("the picture's host has no address")
    if not all(map(is_public, found)):
        raise InvalidImage("the picture's host is not on the public internet: send the picture as a data URI")
    return found[0]


def is_public(address: str) -> bool:
    """Whether an IP address, in any notation, belongs to the public internet."""
    try:
        # The address of a link may carry its interface after a per cent sign
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    # A mapped address such as ::ffff:127.0.0.1 connects to the IPv4 address within it
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return is_public(str(found.ipv4_mapped))
    if any(found in network for network in _NOT_PUBLIC):
        return False
    # The ipaddress module calls some multicast and reserved addresses global
    return found.is_global and not found.is_multicast and not found.is_reserved
