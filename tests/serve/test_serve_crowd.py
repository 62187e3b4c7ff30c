"""Clients that send too little, too slowly or too much, or that leave: the others notice nothing of them."""

from __future__ import annotations

import gc
import json
import socket
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx2
import openai
import pytest
from PIL.Image import Image
from serving import (
    GUARD,
    ForwardGate,
    client_of,
    data_uri,
    handler_of,
    painted,
    question,
    request,
    running,
    until,
)

from keepsight.serve import app, http_protocol, server
from keepsight.serve import request_body as bodies
from keepsight.serve import request_handler as handler_module
from keepsight.serve.addresses import listen
from keepsight.serve.errors import InvalidImage, RequestRefused
from keepsight.serve.image_fetch import ImageFetcher
from keepsight.serve.limits import Limits

HELLO = {"model": "toy", "messages": [{"role": "user", "content": "a cat"}], "max_tokens": 1}


def port_of(address: str) -> int:
    return int(address.rsplit(":")[-1].removesuffix("/v1"))


def raw(address: str, content: bytes) -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", port_of(address)), timeout=GUARD)
    try:
        opened.sendall(content)
    except OSError:
        opened.close()
        raise
    return opened


def posted(content: bytes, *, length: int | None = None) -> bytes:
    head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {length or len(content)}"
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n\r\n".encode() + content


def answer(address: str, **fields: Any) -> httpx2.Response:
    return request("POST", f"{address}/chat/completions", json=HELLO | fields)


@pytest.fixture
def address(loaded: Any) -> Iterator[str]:
    with running(handler_of(loaded, limits=Limits(queue=1, batch=1, request_bytes=20_000))) as address:
        yield address


class Watched(http_protocol.TimedConnection):  # type: ignore[misc]
    """Connections that tests can look at. Timers do not fire by themselves: a test fires them when it is their turn."""

    made: list[Watched]

    def connection_made(self, transport: Any) -> None:
        self.bytes_received, self.lost = 0, threading.Event()
        super().connection_made(transport)
        self.made.append(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.bytes_received += len(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost.set()

    def header_timer_fires(self) -> None:
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (self._close_if_idle(), done.set()))
        assert done.wait(GUARD)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    monkeypatch.setattr(Watched, "made", [], raising=False)
    monkeypatch.setattr(http_protocol, "HEADER_SECONDS", 10 * GUARD)
    monkeypatch.setattr(server, "TimedConnection", Watched)
    return Watched.made


HALF = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "


@pytest.mark.parametrize("requests", [0, 1])
@pytest.mark.parametrize("part", [b"", HALF])
def test_a_request_whose_head_never_ends_is_cut_off(
    loaded: Any, watched: list[Watched], requests: int, part: bytes
) -> None:
    content = requests * (HALF + b"y\r\n\r\n") + part
    with running(handler_of(loaded)) as address, raw(address, content) as slow:
        found = b""
        while found.count(b"HTTP/1.1 200") < requests:
            found += slow.recv(1000)
        until(lambda: watched and watched[0].bytes_received == len(content) and watched[0].idle)
        [connection] = watched
        timer = connection._header_timer
        assert timer is not None
        assert timer.when() == pytest.approx(connection.idle_since + http_protocol.HEADER_SECONDS, abs=1)
        if part:
            slow.sendall(b"y")
            until(lambda: connection.bytes_received == len(content) + 1)
            assert connection._header_timer is timer, "bytes that drip in do not help"
        connection.header_timer_fires()
        while slow.recv(1000):  # the rest of the answer before
            pass
        assert connection.lost.wait(GUARD)


def test_a_connection_without_a_request_is_closed_when_its_time_is_over(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEADER_SECONDS", 0.05)
    with raw(address, b"") as slow:
        assert slow.recv(1) == b""


def test_a_slow_answer_is_not_cut_off(loaded: Any, gate: ForwardGate, watched: list[Watched]) -> None:
    with running(handler_of(loaded)) as address, ThreadPoolExecutor(1) as thread:
        gate.open.clear()
        asked = thread.submit(answer, address)
        gate.wait_until_held()
        [connection] = watched
        assert connection._header_timer is None
        connection.header_timer_fires()
        gate.open.set()
        assert asked.result(GUARD).status_code == 200


def test_connections_without_a_request_make_room(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "MAX_CONNECTIONS", 4)
    slow = [raw(address, b"") for _ in range(8)]
    assert request("GET", address.replace("/v1", "/health")).json()["status"] == "ok"
    with suppress(ConnectionResetError):
        assert slow[0].recv(1) == b""
    slow[-1].sendall(HALF + b"y\r\n\r\n")
    assert slow[-1].recv(12) == b"HTTP/1.1 200", "the oldest are closed, not the last"
    for one in slow:
        one.close()


def test_connections_that_are_all_busy_make_none(
    loaded: Any, gate: ForwardGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "MAX_CONNECTIONS", 1)
    handler = handler_of(loaded)
    with running(handler) as address:
        gate.open.clear()
        busy = raw(address, posted(json.dumps(HELLO).encode()))
        until(lambda: handler.engine.running)
        with raw(address, b"") as other:
            head, _, told = other.recv(10_000).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert json.loads(told)["error"]["code"] == "too_many_connections"
        gate.open.set()
        assert busy.recv(20).startswith(b"HTTP/1.1 200")
        busy.close()


SENT = 4 << 20


def test_who_takes_nothing_of_an_answer_is_left(
    loaded: Any, watched: list[Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "WRITE_STALL_SECONDS", 0.1)
    monkeypatch.setattr(
        app, "_server_sent", lambda found: b"x" * SENT
    )  # more than all buffers on the way take
    handler = handler_of(loaded)
    with running(handler) as address:
        body = json.dumps(HELLO | {"stream": True, "max_tokens": 8}).encode()
        with raw(address, posted(body)) as stuck:
            until(lambda: watched)
            assert watched[0].lost.wait(GUARD)
            taken = 0
            while piece := stuck.recv(1 << 20):
                taken += len(piece)
            assert 0 < taken < 3 * SENT, "of ten"


def test_bodies_that_never_come_keep_nobody_out(address: str) -> None:
    slow = [raw(address, posted(b"{", length=100)) for _ in range(10)]
    assert answer(address).status_code == 200
    for one in slow:
        one.close()


def test_bodies_on_their_way_are_bounded_together(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "ARRIVING_BYTES_FACTOR", 1)
    with raw(address, posted(b"x" * 19_990, length=20_000)):
        until(lambda: answer(address).status_code == 429)
    until(lambda: answer(address).status_code == 200)


def test_who_sends_everything_first_hears_why_it_is_too_much(address: str) -> None:
    whole = posted(b"x" * (8 << 20)).replace(b"Host", b"Connection: close\r\nHost", 1)
    for part, other, status in (
        (b"", b"", b"413"),
        (b"application/json", b"text/plain", b"415"),
        (b"localhost", b"elsewhere", b"403"),
    ):
        with raw(address, whole.replace(part, other, 1)) as client:
            assert client.recv(12) == b"HTTP/1.1 " + status


def test_a_refused_conversation_leaves_no_picture(loaded: Any) -> None:
    """Not even until cycles are looked for, which may take long and gigabytes."""
    handler = handler_of(loaded)
    made: list[weakref.ref[Image]] = []
    body = json.dumps(HELLO | {"messages": question(data_uri(painted(0)), "<image>")}).encode()

    class Watched(type(painted(0))):  # type: ignore[misc]
        pass

    opened = handler_module.decode_image

    def watched(*args: Any, **options: Any) -> Any:
        found = opened(*args, **options)
        found.__class__ = Watched
        made.append(weakref.ref(found))
        return found

    with pytest.MonkeyPatch.context() as patch, running(handler) as address:
        patch.setattr(handler_module, "decode_image", watched)
        gc.collect()
        gc.disable()
        try:
            for _ in range(2):
                response = request("POST", f"{address}/chat/completions", content=body, headers=AS_JSON)
                assert response.status_code == 400
            until(lambda: all(ref() is None for ref in made))
            assert len(made) == 2
        finally:
            gc.enable()


def test_memory_of_large_and_of_broken_pictures_is_given_back(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr(handler_module, "trim_memory", lambda: given.append(1))
    monkeypatch.setattr(handler_module, "LARGE_IMAGE_PIXELS", 2000)
    handler = handler_of(loaded)

    def refused(uri: str, text: str) -> bool:
        body = json.dumps(HELLO | {"messages": question(uri, text)}).encode()
        with suppress(RequestRefused):
            handler.prepare(handler.parse(body), {})
            return False
        return True

    small, large = (data_uri(painted(0, size)) for size in ((40, 30), (50, 50)))
    for uri, text, refusal, times in (
        (small, "a cat", False, 0),
        (small, "<image>", True, 0),
        (large, "a cat", False, 1),
        (large, "<image>", True, 1),
        (small[:-400], "a cat", True, 1),
    ):
        given.clear()
        assert refused(uri, text) == refusal
        assert len(given) == times
    handler.engine.close()


AS_JSON = {"content-type": "application/json"}


class Slow:
    """Fetches that end when they are stopped."""

    begun = 0
    stopped = 0

    def __init__(self, limits: Limits) -> None:
        self.over = threading.Event()

    def fetch_all(self, urls: list[str]) -> dict[str, bytes | InvalidImage]:
        Slow.begun += 1
        assert self.over.wait(GUARD)
        return {url: InvalidImage("stopped") for url in urls}

    def stop(self) -> None:
        Slow.stopped += 1
        self.over.set()


def test_who_waits_for_the_web_keeps_nobody_out(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "ImageFetcher", Slow)
    Slow.begun = Slow.stopped = 0
    limits = Limits(queue=30)
    body = json.dumps(HELLO | {"messages": question("http://example.org/a.png")}).encode()
    with running(handler_of(loaded, limits=limits, fetch_urls=True)) as address:
        waiting = [raw(address, posted(body)) for _ in range(app.MAX_FETCHING + 2)]
        until(lambda: Slow.begun == app.MAX_FETCHING)
        assert answer(address).status_code == 200, "there is nothing to fetch"
        for one in waiting:
            one.close()
        until(lambda: Slow.stopped >= app.MAX_FETCHING)  # hung up: nobody fetches on
        assert answer(address).status_code == 200


def test_a_long_wait_for_the_first_token_begins_the_stream(
    loaded: Any, gate: ForwardGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "KEEP_ALIVE_SECONDS", 0.1)
    with running(handler_of(loaded)) as address:
        gate.open.clear()
        url = f"{address}/chat/completions"
        with httpx2.stream("POST", url, json=HELLO | {"stream": True}, timeout=GUARD) as response:
            lines = response.iter_lines()
            assert next(lines) == ": still here"
            gate.open.set()
            assert [line for line in lines if line][-1] == "data: [DONE]"


def test_a_second_signal_ends_a_server_at_once(
    loaded: Any, gate: ForwardGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "FORCED_SHUTDOWN_SECONDS", 0.1)
    handler = handler_of(loaded)
    ready = threading.Event()
    with listen("127.0.0.1", 0) as bound:
        running_server = server.Server(handler, grace=10 * GUARD, ready=ready.set)
        thread = threading.Thread(target=running_server.run, kwargs={"sockets": [bound]})
        thread.start()
        assert ready.wait(GUARD)
        address = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        gate.close_at = gate.passes + 5
        stream = client_of(address).chat.completions.create(**HELLO | {"max_tokens": 400}, stream=True)
        next(iter(stream))
        gate.wait_until_held()
        running_server.handle_exit(15, None)
        until(lambda: handler.engine._closing)
        assert thread.is_alive(), "the first waits for what is being written"
        running_server.handle_exit(15, None)
        thread.join(GUARD)
        assert not thread.is_alive(), "the model stands still, and the server has ended"
        gate.open.set()
        with pytest.raises((openai.APIError, httpx2.HTTPError)):
            list(stream)


def test_a_fetch_that_is_stopped_is_no_fetch() -> None:
    fetching = ImageFetcher(Limits())
    fetching.stop()
    with pytest.raises(InvalidImage, match="cannot be fetched"):
        fetching.fetch("http://8.8.8.8/")
