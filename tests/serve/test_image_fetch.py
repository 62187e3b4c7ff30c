"""The guard in front of the web."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from keepsight.serve import image_fetch as module
from keepsight.serve.errors import InvalidImage
from keepsight.serve.image_fetch import fetch, is_public
from keepsight.serve.limits import Limits


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("ff02::1", False),
        ("fec0::1", False),
        ("3fff::1", False),
        ("192.88.99.1", False),
        ("nonsense", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1/", "not on the public internet"),
        ("http://[::1]/", "not on the public internet"),
        ("http://2130706433/", "not on the public internet"),
        ("http://localhost/", "not on the public internet"),
        ("http://169.254.169.254/latest/meta-data", "not on the public internet"),
        ("http://8.8.8.8:22/", "port 80 or 443"),
        ("http://user:word@8.8.8.8/", "without a password"),
        ("ftp://8.8.8.8/", "not an http or https URL"),
        ("http://8.8.8.8:99999/", "not an http or https URL"),
        ("http:///", "must be a host's own"),
        ("http://[::1/", "not an http or https URL"),
    ],
)
def test_what_is_refused(url: str, says: str) -> None:
    with pytest.raises(InvalidImage, match=says):
        fetch(url, Limits())


def test_a_name_is_refused_if_any_of_its_addresses_is_private(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(*_: Any, **__: Any) -> Any:
        return [(0, 0, 0, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(InvalidImage, match="not on the public internet"):
        fetch("http://example.org/a.png", Limits())


class Web(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = {"/moved": 302, "/gone": 404}.get(self.path, 200)
        self.send_response(status)
        self.send_header("Location", "http://127.0.0.1/")
        self.end_headers()
        self.wfile.write(self.headers["Host"].encode() + b"x" * 100)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A web that is this machine: what is connected to is noted down."""
    server = HTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    connect, seen = socket.create_connection, []

    def redirected(address: Any, **options: Any) -> Any:
        seen.append(address)
        return connect(server.server_address, **options)

    monkeypatch.setattr(socket, "create_connection", redirected)
    monkeypatch.setattr(module, "public_address", lambda host, port: "93.184.216.34")
    yield seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_picture_is_fetched_from_the_address_that_was_checked(web: list[Any]) -> None:
    assert fetch("http://example.org/a.png?b", Limits()) == b"example.org" + b"x" * 100
    assert web == [("93.184.216.34", 80)]


@pytest.mark.parametrize(("path", "says"), [("moved", "302 .redirects are not"), ("gone", "status 404")])
def test_other_answers(web: list[Any], path: str, says: str) -> None:
    with pytest.raises(InvalidImage, match=says):
        fetch(f"http://example.org/{path}", Limits())


def test_bytes_are_bounded(web: list[Any]) -> None:
    with pytest.raises(InvalidImage, match="more than 50 bytes"):
        fetch("http://example.org/a.png", Limits(image_bytes=50))


def test_paths_are_escaped_and_escapes_kept(web: list[Any]) -> None:
    paths = []

    def noted(self: Web) -> None:
        paths.append(self.path)
        self.send_error(404)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Web, "do_GET", noted)
        for url in ("http://example.org/é.png?ü=%20&a=b", "http://example.org/a b"):
            with pytest.raises(InvalidImage, match="status 404"):
                fetch(url, Limits())
    assert paths == ["/%C3%A9.png?%C3%BC=%20&a=b", "/a%20b"]


def test_pictures_of_a_request_share_bytes_and_time(web: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    urls = [f"http://example.org/{number}" for number in range(4)]
    found = module.ImageFetcher(Limits(request_bytes=250)).fetch_all(urls)
    assert [type(found[url]) for url in urls[:3]] == [bytes, bytes, InvalidImage]
    assert "more than 28 bytes" in str(found[urls[2]])
    assert len(found) == 3
    late = module.ImageFetcher(Limits())
    late.fetch(urls[0])
    monkeypatch.setattr(module.time, "monotonic", lambda: float("inf"))
    with pytest.raises(InvalidImage, match="cannot be fetched within"):
        late.fetch(urls[1])


def test_whoever_never_answers_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(module, "FETCH_SECONDS", 0.1)
    monkeypatch.setattr(module, "public_address", lambda host, port: "93.184.216.34")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: ours)
    with pytest.raises(InvalidImage, match="cannot be fetched"):
        fetch("http://example.org/", Limits())
    theirs.close()
