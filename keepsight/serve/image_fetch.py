"""Pictures from the web, for a server that was told to fetch them: public addresses alone, looked up once."""

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

from keepsight.serve.errors import BadPicture
from keepsight.serve.limits import Limits

SECONDS = 10.0
"""Until all pictures of a request have to be there."""
_PORTS = {"http": 80, "https": 443}
_OTHERS = tuple(
    map(
        ipaddress.ip_network,
        (
            *(
                "64:ff9b::/96",
                "64:ff9b:1::/48",
                "2002::/16",
                "2001::/32",
            ),  # lead to an IPv4 address, maybe a private one
            *("192.88.99.0/24", "fec0::/10", "3fff::/20", "5f00::/16"),  # of no host; not all Pythons know
        ),
    )
)
_PATH = "%/:;=&?~+!$,'@()*[]"
"""What stays as it is in a path and its query, besides letters, digits and -._"""


def fetch(url: str, limits: Limits) -> bytes:
    """What stands at ``url``. Raises ``BadPicture`` as ``Fetching.one``."""
    return Fetching(limits).one(url)


class Fetching:
    """The pictures of one request, fetched one after another; ``stop`` ends that from another thread.

    All of them have ``SECONDS``, counted from the first, and ``limits.request_bytes`` together.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bytes = limits.request_bytes
        self._end: float | None = None
        self._lock = threading.Lock()
        self._raw: socket.socket | None = None
        self._stopped = False

    def all(self, urls: Iterable[str]) -> dict[str, bytes | BadPicture]:
        """What stands at each address. The first that cannot be had is the last, with why in its place."""
        found: dict[str, bytes | BadPicture] = {}
        for url in urls:
            try:
                found[url] = self.one(url)
            except BadPicture as error:
                found[url] = error.with_traceback(None)
                break
        return found

    def one(self, url: str) -> bytes:
        """What stands at ``url``.

        The name is looked up once and that address is connected to, so that a second answer of the name server changes
        nothing. Redirects are not followed, proxies of the environment not used, ports other than 80 and 443 not called.

        Raises:
            BadPicture: any of that, an address that is not public, too many bytes, or no answer in time.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS[parts.scheme]
            host = parts.hostname or ""
            path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_PATH)
        except (ValueError, KeyError):
            raise BadPicture("the picture's address is not an http or https URL") from None
        if not host or parts.username or parts.password or port not in _PORTS.values():
            raise BadPicture(
                "the picture's address must be a host's own, on port 80 or 443, without a password"
            )
        if self._end is None:
            self._end = time.monotonic() + SECONDS
        address = public_address(host, port)
        most = min(self._limits.image_bytes, self._bytes)
        try:
            with self._connected(parts.scheme, host, port, address) as connection:
                connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "keepsight"})
                response = connection.getresponse()
                if response.status != 200:
                    hint = " (redirects are not followed)" if 300 <= response.status < 400 else ""
                    raise BadPicture(f"the picture's address answered with status {response.status}{hint}")
                found = response.read(most + 1)
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            raise BadPicture(
                f"the pictures cannot be fetched within {SECONDS:g} seconds ({type(error).__name__})"
            ) from None
        if len(found) > most:
            raise BadPicture(f"the picture has more than {most:,} bytes, which is the limit")
        self._bytes -= len(found)
        return found

    def stop(self) -> None:
        """Cut the connection, if there is one, and make none any more."""
        with self._lock:
            self._stopped = True
            if self._raw is not None:
                with suppress(OSError):
                    self._raw.shutdown(socket.SHUT_RDWR)

    def _hold(self, raw: socket.socket | None) -> None:
        with self._lock:
            if self._stopped and raw is not None:
                raise TimeoutError
            self._raw = raw

    @contextmanager
    def _connected(
        self, scheme: str, host: str, port: int, address: str
    ) -> Iterator[http.client.HTTPConnection]:
        """A connection to that very address, cut off at the end of the time however slowly bytes drip in."""
        left = (self._end or 0.0) - time.monotonic()
        if self._stopped or left <= 0:
            raise TimeoutError
        with ExitStack() as stack:
            raw = socket.create_connection((address, port), timeout=left)
            stack.callback(raw.close)
            self._hold(raw)
            stack.callback(self._hold, None)
            cut = threading.Timer(max((self._end or 0.0) - time.monotonic(), 0), self.stop)
            cut.daemon = True
            cut.start()
            stack.callback(cut.cancel)
            connection = http.client.HTTPConnection(host, port, timeout=left)
            connection.auto_open = 0  # never look the name up again
            if scheme == "https":
                connection.default_port = port  # what the Host header leaves out
                raw = ssl.create_default_context().wrap_socket(raw, server_hostname=host)
                stack.callback(raw.close)
                self._hold(raw)
            connection.sock = raw
            stack.callback(connection.close)
            yield connection


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
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return is_public(str(found.ipv4_mapped))
    if any(found in network for network in _OTHERS):
        return False
    return found.is_global and not found.is_multicast and not found.is_reserved
