"""What one asker sends, or leaves behind, holds up nobody else."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import uvicorn
from asking import page_request
from serving import GUARD, until
from starlette.testclient import TestClient

from keepsight.analysis import attention_maps as attention_map
from keepsight.calibration.file import BadCalibration
from keepsight.serve import request_body as bodies
from keepsight.serve.addresses import listen
from keepsight.serve.page import app as served
from keepsight.serve.page import request_schema as reading
from keepsight.serve.page.app import create_page, error_response
from keepsight.serve.page.scheduler import Scheduler
from keepsight.serve.page.service import PageService, PreparedRequest

Ask = Callable[..., list[Any]]
PNG = "data:image/png;base64,"
PIXEL = (
    PNG + "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@contextmanager
def serving(service: PageService) -> Iterator[tuple[int, Any]]:
    """The port of a server, and its scheduler; ended with the block."""
    with listen("127.0.0.1", 0) as opened:
        app = create_page(service)
        settings = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1, ws="none")
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        try:
            yield opened.getsockname()[1], app.state.scheduler
        finally:
            server.should_exit = True
            thread.join(GUARD)
            assert not thread.is_alive()


def send(port: int, path: str, body: bytes, *, stated: int | None = None) -> socket.socket:
    """A connection with a request on it, whose body is said to be so long."""
    length = len(body) if stated is None else stated
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", port), timeout=GUARD)
    connection.sendall(head.encode() + body)
    return connection


class Watching(PageService):
    """Makes maps until it is told to stop, and notes for whom it had begun."""

    begun: threading.Semaphore
    stopped: threading.Semaphore

    def attention_maps(
        self, prepared: PreparedRequest, emit: Callable[[Any], None], stop: threading.Event, worker: int = 0
    ) -> None:
        self.begun.release()
        if stop.wait(GUARD):
            self.stopped.release()


def test_who_leaves_makes_no_more_maps(service: PageService, monkeypatch: pytest.MonkeyPatch) -> None:
    watching = Watching(name="demo", model=service.model, processor=service.processor, at_once=1)
    watching.begun, watching.stopped = threading.Semaphore(0), threading.Semaphore(0)
    queued = threading.Semaphore(0)
    usual = Scheduler.submit

    def submit(self: Scheduler, *arguments: Any) -> Any:
        found = usual(self, *arguments)
        queued.release()
        return found

    monkeypatch.setattr(Scheduler, "submit", submit)
    body = json.dumps(page_request(tokens=None, answer=[1, 2])).encode()
    with serving(watching) as (port, scheduler):
        first = send(port, "/api/attention", body)
        assert watching.begun.acquire(timeout=GUARD)
        others = [send(port, "/api/attention", body) for _ in range(2)]
        assert all(queued.acquire(timeout=GUARD) for _ in range(3))
        # They leave before the first one does. In the other order the server may learn that the worker is free before it
        # learns that the next in the queue has left as well, and begins for somebody who is still there as far as it knows
        for one in others:
            one.close()
        until(lambda: scheduler.occupied == 1)
        first.close()
        assert watching.stopped.acquire(timeout=GUARD), "the one that was made"
        until(lambda: scheduler.occupied == 0)
        assert not watching.begun.acquire(blocking=False), "and the others never begin"


def test_maps_end_with_the_token_at_which_nobody_wants_them(
    service: PageService, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    usual = attention_map.generate_observed

    def note(*arguments: Any, **settings: Any) -> Any:
        found = usual(*arguments, **settings)
        lengths.append(len(found))
        return found

    monkeypatch.setattr(attention_map, "generate_observed", note)
    ids = ask()[-1]["ids"]
    given = json.dumps(page_request(tokens=None, answer=ids)).encode()
    prepared = service.prepare(
        reading.parse_page_request(given, service.limits, vocabulary=service.vocabulary, answered=True)
    )
    said: list[Any] = []
    stop = threading.Event()
    service.attention_maps(prepared, said.append, stop)
    stop.set()
    service.attention_maps(prepared, said.append, stop)
    assert lengths == [len(ids), 1]
    assert len(said) == 1


def test_who_leaves_before_the_picture_is_read_is_never_answered(
    service: PageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, begun = threading.Event(), threading.Semaphore(0)
    usual = reading.decode_image

    def slow(*arguments: Any) -> Any:
        begun.release()
        assert free.wait(GUARD)
        return usual(*arguments)

    monkeypatch.setattr(reading, "decode_image", slow)
    written: list[Any] = []
    monkeypatch.setattr(PageService, "answer", lambda self, *given: written.append(given))
    body = json.dumps(page_request(picture={"data": PIXEL})).encode()
    with serving(service) as (port, scheduler):
        askers = [send(port, "/api/answer", body) for _ in range(4)]
        assert begun.acquire(timeout=GUARD)
        until(lambda: scheduler.occupied == 4)
        for one in askers:
            one.close()
        until(lambda: scheduler.occupied == 0)  # their slots are free at once, whatever is being read
        free.set()
    assert not written
    assert len(list(iter(lambda: begun.acquire(blocking=False), False))) <= 1, "two were read at a time"


def test_a_picture_that_is_slow_to_read_takes_no_worker(
    service: PageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, begun = threading.Event(), threading.Event()
    usual = reading.decode_image

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert free.wait(GUARD)
        return usual(*arguments)

    monkeypatch.setattr(reading, "decode_image", slow)
    single = replace(service, at_once=1)
    with (
        TestClient(create_page(single), base_url="http://localhost") as client,
        ThreadPoolExecutor(1) as thread,
    ):
        first = thread.submit(
            client.post, "/api/answer", json=page_request(picture={"data": PIXEL}, tokens=2)
        )
        try:
            assert begun.wait(GUARD)
            second = client.post("/api/answer", json=page_request(tokens=2))
            assert not first.done()
        finally:
            free.set()
        assert all('"done"' in one.text for one in (second, first.result(GUARD)))


def test_the_server_answers_while_it_reads_a_request(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, begun = threading.Event(), threading.Event()
    freed: list[bool] = []
    usual = served.parse_page_request

    def slow(*arguments: Any, **settings: Any) -> Any:
        begun.set()
        freed.append(free.wait(GUARD))
        return usual(*arguments, **settings)

    monkeypatch.setattr(served, "parse_page_request", slow)
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(client.post, "/api/answer", json=page_request(tokens=1))
        assert begun.wait(GUARD)
        assert client.get("/icon.svg").status_code == 200
        free.set()
        assert '"done"' in answer.result(GUARD).text
    assert freed == [True]


def test_bodies_are_bounded_in_time_and_all_together(
    service: PageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "ARRIVING_BYTES_FACTOR", 1)
    small = replace(service, limits=replace(service.limits, request_bytes=1000))
    with serving(small) as (port, scheduler):

        def more_is_too_much() -> bool:
            with send(port, "/api/answer", b"a" * 600) as more:
                return more.recv(4096).startswith(b"HTTP/1.1 429")

        with send(port, "/api/answer", b"a" * 600, stated=700):
            until(more_is_too_much)
        monkeypatch.setattr(bodies, "BODY_SECONDS", 0.1)
        with send(port, "/api/answer", b"a" * 600, stated=700) as late:
            assert late.recv(4096).startswith(b"HTTP/1.1 408")
        assert scheduler.occupied == 0


@pytest.mark.parametrize(
    ("ask_for", "path", "host", "status"),
    [
        ("GET", "/nowhere", "localhost", 404),
        ("GET", "/api/answer", "localhost", 405),
        ("GET", "/", "evil.example", 400),
        ("GET", "/api/facts/", "localhost", 307),
        ("GET", "/scene/nope:1.png", "localhost", 400),
    ],
)
def test_refusals_are_guarded_as_everything_is(
    client: TestClient, ask_for: str, path: str, host: str, status: int
) -> None:
    got = client.request(ask_for, path, headers={"Host": host}, follow_redirects=False)
    assert got.status_code == status
    for name, value in served.HEADERS.items():
        assert got.headers[name] == value
    if status != 307:
        assert list(got.json()) == ["error"]
    if status == 405:
        assert got.headers["allow"] == "POST"


def test_what_is_for_the_log_is_not_told(service: PageService, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = error_response(BadCalibration("/home/somebody/sinks.json is broken"))
    assert hidden.status_code == 500
    assert json.loads(bytes(hidden.body)) == {"error": "BadCalibration: the server's log tells more"}

    def fail(*arguments: Any, **settings: Any) -> Any:
        raise FileNotFoundError("/home/somebody/tokenizer.json")

    monkeypatch.setattr(served, "parse_page_request", fail)
    with TestClient(
        create_page(service), base_url="http://localhost", raise_server_exceptions=False
    ) as client:
        got = client.post("/api/answer", json=page_request())
    assert (got.status_code, got.json()) == (500, {"error": "FileNotFoundError: the server's log tells more"})
    assert got.headers["content-security-policy"] == served.HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("host", ["LOCALHOST", "127.1"])
def test_whatever_leads_to_this_machine_alone_is_called_so(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from keepsight.cli.main import app as command
    from keepsight.serve.page import server

    statuses: list[int] = []

    def run(app: Any, opened: Any) -> None:
        client = TestClient(app)
        statuses.extend(
            client.get("/", headers={"Host": name}).status_code for name in (host, "evil.example")
        )

    monkeypatch.setattr(server, "run", run)
    ran = CliRunner().invoke(command, ["ui", "--port", "0", "--at-once", "1", "--host", host])
    assert (ran.exit_code, ran.stdout.count("\n")) == (0, 1), ran.output
    assert statuses == [200, 400]
