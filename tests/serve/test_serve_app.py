"""Who is let in, and what of HTTP is refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from serving import client_of, data_uri, painted, question, running, service_of

from sightline.serve import app as module
from sightline.serve.limits import Limits
from sightline.serve.pictures import read_data_uri
from sightline.serve.server import CannotListen, is_loopback, listen

ASK = {"model": "toy", "messages": question(data_uri(painted(0))), "max_tokens": 1}


@pytest.fixture(scope="module")
def address(loaded: Any) -> Iterator[str]:
    with running(service_of(loaded, limits=Limits(request_bytes=10_000))) as address:
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
    response = httpx2.request(method, address + path)
    assert response.status_code == status
    assert "POST /v1/chat/completions" in error_of(response)["message"]


def test_bodies(address: str) -> None:
    url = f"{address}/chat/completions"
    assert httpx2.post(url, content=json.dumps(ASK)).status_code == 415
    assert httpx2.post(url, data={"model": "toy"}).status_code == 415
    as_json = {"content-type": "application/json; charset=utf-8"}
    assert httpx2.post(url, content=json.dumps(ASK), headers=as_json, timeout=20).status_code == 200
    for content in (b"{", b'{"model": "toy", "messages": [], "temperature": NaN}'):
        response = httpx2.post(url, content=content, headers=as_json)
        assert response.status_code == 400
        assert error_of(response)["type"] == "invalid_request_error"
    response = httpx2.post(url, content=b"x" * 10_001, headers=as_json)
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")
    unstated = httpx2.post(url, content=(b"x" * 1000 for _ in range(11)), headers=as_json)
    assert unstated.status_code == 413


def test_a_body_that_never_comes(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.2)
    port = int(address.rsplit(":")[-1].removesuffix("/v1"))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 408")


def test_a_page_of_a_stranger_cannot_ask(address: str) -> None:
    for host, status in (("evil.example", 403), ("localhost:1", 200), ("[::1]:9", 200), ("127.0.0.1", 200)):
        response = httpx2.get(f"{address}/models", headers={"host": host})
        assert response.status_code == status, host


def test_nothing_answers_without_the_key(loaded: Any) -> None:
    with running(service_of(loaded, api_key="sésame")) as address:
        for path in ("/models", "/chat/completions", "/../health", "/nothing"):
            for headers in (
                {},
                {"authorization": "sésame"},
                {"authorization": "Bearer sesame"},
                {"authorization": "bearer sésame"},
            ):
                encoded = {name: value.encode() for name, value in headers.items()}
                response = httpx2.get(address + path, headers=encoded)
                assert response.status_code == 401
                assert error_of(response)["code"] == "invalid_api_key"
        key = {"authorization": "Bearer sésame".encode(), "host": b"elsewhere.example"}
        assert httpx2.get(f"{address}/models", headers=key).status_code == 200
    with running(service_of(loaded, api_key="sesame")) as address:
        assert client_of(address, api_key="sesame").models.list().data


def test_pictures_are_fetched_for_who_was_told_to(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetched(url: str, limits: Limits) -> bytes:
        asked.append(url)
        return read_data_uri(data_uri(painted(0)), limits)

    monkeypatch.setattr("sightline.serve.service.fetch", fetched)
    wanted = None
    for url in (data_uri(painted(0)), "https://example.org/a.png"):
        with running(service_of(loaded, fetch_urls=True)) as address:
            body = ASK | {"messages": question(url), "max_tokens": 4}
            told = httpx2.post(f"{address}/chat/completions", json=body, timeout=20).json()["choices"]
        wanted = wanted or told
        assert told == wanted
    assert asked == ["https://example.org/a.png"]


def test_ports_and_hosts() -> None:
    with listen("127.0.0.1", 0) as bound:
        bound.listen()
        with pytest.raises(CannotListen, match="choose another --port"):
            listen("127.0.0.1", bound.getsockname()[1])
    with pytest.raises(CannotListen, match="cannot listen on"):
        listen("203.0.113.1", 0)
    with pytest.raises(CannotListen, match="cannot listen on"):
        listen("no such host", 0)
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::", "a.b")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
