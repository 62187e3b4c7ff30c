"""Who is let in, and what of HTTP is refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from serving import GUARD, client_of, data_uri, handler_of, painted, question, request, running

from keepsight.serve import request_body as module
from keepsight.serve.addresses import CannotListen, is_loopback, listen
from keepsight.serve.image_decoding import read_data_uri
from keepsight.serve.image_fetch import ImageFetcher
from keepsight.serve.limits import Limits

ASK = {"model": "toy", "messages": question(data_uri(painted(0))), "max_tokens": 1}


@pytest.fixture(scope="module")
def address(loaded: Any) -> Iterator[str]:
    with running(handler_of(loaded, limits=Limits(request_bytes=10_000))) as address:
        yield address


def error_of(response: httpx2.Response) -> dict[str, Any]:
    told = response.json()["error"]
    assert set(told) == {"message", "type", "param", "code"}
    return dict(told)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/models", 405),
        ("GET", "/chat/completions", 405),
        ("GET", "/../docs", 404),
    ],
)
def test_other_routes(address: str, method: str, path: str, status: int) -> None:
    response = request(method, address + path)
    assert response.status_code == status
    assert "POST /v1/chat/completions" in error_of(response)["message"]
    allowed = {name.strip() for name in response.headers.get("allow", "").split(",")}
    assert allowed == ({""} if status == 404 else {"POST"} if path[1] == "c" else {"GET", "HEAD"})


@pytest.mark.parametrize("path", ["/models", "/models/toy", "/../health"])
def test_heads(address: str, path: str) -> None:
    response = request("HEAD", address + path)
    assert (response.status_code, response.content) == (200, b"")


def test_bodies(address: str) -> None:
    url = f"{address}/chat/completions"
    assert request("POST", url, content=json.dumps(ASK)).status_code == 415
    assert request("POST", url, data={"model": "toy"}).status_code == 415
    as_json = {"content-type": "application/json; charset=utf-8"}
    assert request("POST", url, content=json.dumps(ASK), headers=as_json).status_code == 200
    for content in (b"{", b'{"model": "toy", "messages": [], "temperature": NaN}'):
        response = request("POST", url, content=content, headers=as_json)
        assert response.status_code == 400
        assert error_of(response)["type"] == "invalid_request_error"
    response = request("POST", url, content=b"x" * 10_001, headers=as_json)
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")
    unstated = request("POST", url, content=(b"x" * 1000 for _ in range(11)), headers=as_json)
    assert unstated.status_code == 413


def test_a_body_that_never_comes(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.2)
    port = int(address.rsplit(":")[-1].removesuffix("/v1"))
    with socket.create_connection(("127.0.0.1", port), timeout=GUARD) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 408")


def test_a_page_of_a_stranger_cannot_ask(address: str) -> None:
    for host, status in (
        ("localhost:1", 200),
        ("[::1]:9", 200),
        ("127.0.0.1", 200),
        ("127.0.0.2", 200),
        ("LOCALHOST", 200),
        ("evil.example", 403),
        ("[::1]evil.example", 403),
        ("localhost:evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("8.8.8.8", 403),
    ):
        response = request("GET", f"{address}/models", headers={"host": host})
        assert response.status_code == status, host


def test_the_name_that_was_listened_on(loaded: Any) -> None:
    with running(handler_of(loaded, host="Ip6-Localhost")) as address:
        for host, status in (("ip6-localhost:80", 200), ("localhost", 200), ("other", 403)):
            assert request("GET", f"{address}/models", headers={"host": host}).status_code == status, host


def test_pages_of_origins_that_are_allowed(loaded: Any) -> None:
    origin = "http://chat.example:3000"
    asks = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    with running(handler_of(loaded, api_key="sesame", origins=(origin,))) as address:
        url = f"{address}/chat/completions"
        before = request("OPTIONS", url, headers=asks)
        assert before.status_code == 200, "without the key"
        assert before.headers["access-control-allow-origin"] == origin
        assert "x-stainless-os" in before.headers["access-control-allow-headers"]
        assert request("OPTIONS", url, headers=asks | {"origin": "http://evil.example"}).status_code == 400
        key = {"authorization": "Bearer sesame"}
        for headers, status in ((key, 200), ({}, 401)):
            response = request("POST", url, json=ASK, headers=headers | {"origin": origin})
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == origin
    with running(handler_of(loaded)) as address:
        assert request("OPTIONS", f"{address}/chat/completions", headers=asks).status_code == 405
        told = request("GET", f"{address}/models", headers={"origin": origin}).headers
        assert not [name for name in told if name.startswith("access-control")]


def test_method_errors_name_their_field(address: str) -> None:
    for specs in (["nope"], ["vcd:seed=100000000000000000000"], ["m3id", "m3id"]):
        wish = {"keepsight": {"methods": specs}}
        response = request("POST", f"{address}/chat/completions", json=ASK | wish)
        assert (response.status_code, error_of(response)["param"]) == (400, "keepsight.methods")


def test_nothing_answers_without_the_key(loaded: Any) -> None:
    with running(handler_of(loaded, api_key="sésame")) as address:
        for path in ("/models", "/chat/completions", "/../health", "/nothing"):
            for headers in (
                {},
                {"authorization": "sésame"},
                {"authorization": "Bearer sesame"},
                {"authorization": "Basic sésame"},
                {"authorization": "Bearer  sésame"},
            ):
                encoded = {name: value.encode() for name, value in headers.items()}
                response = request("GET", address + path, headers=encoded)
                assert response.status_code == 401
                assert error_of(response)["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
        for scheme in ("Bearer", "bearer"):  # its letters are of either case
            key = {"authorization": f"{scheme} sésame".encode(), "host": b"elsewhere.example"}
            assert request("GET", f"{address}/models", headers=key).status_code == 200
    with running(handler_of(loaded, api_key="sesame")) as address:
        assert client_of(address, api_key="sesame").models.list().data


def test_pictures_are_fetched_for_who_was_told_to(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetched(self: ImageFetcher, url: str) -> bytes:
        asked.append(url)
        return read_data_uri(data_uri(painted(0)), Limits())

    monkeypatch.setattr(ImageFetcher, "fetch", fetched)
    wanted = None
    for url in (data_uri(painted(0)), "https://example.org/a.png"):
        with running(handler_of(loaded, fetch_urls=True)) as address:
            body = ASK | {"messages": question(url), "max_tokens": 4}
            told = request("POST", f"{address}/chat/completions", json=body).json()["choices"]
        wanted = wanted or told
        assert told == wanted
    assert asked == ["https://example.org/a.png"]


def test_ports_and_hosts() -> None:
    with listen("127.0.0.1", 0) as bound, pytest.raises(CannotListen, match="choose another --port"):
        listen("127.0.0.1", bound.getsockname()[1])
    with pytest.raises(CannotListen, match="cannot listen on"):
        listen("203.0.113.1", 0)
    with pytest.raises(CannotListen, match="cannot listen on"):
        listen("no such host", 0)
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "a.b")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
