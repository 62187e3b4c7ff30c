"""The page's server under bad input, several askers, and askers who leave."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any

import pytest
import uvicorn
from asking import page_request
from serving import GUARD, until
from starlette.testclient import TestClient
from typer.testing import CliRunner

from keepsight.cli.main import app as command
from keepsight.serve.addresses import CannotListen, listen
from keepsight.serve.errors import Busy
from keepsight.serve.page.app import FILES, create_page
from keepsight.serve.page.scheduler import Scheduler
from keepsight.serve.page.service import PageService

Ask = Callable[..., list[Any]]
PNG = "data:image/png;base64,"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.mark.parametrize("path", [*FILES, "/scene/test-shifted:5.png", "/api/facts"])
def test_every_address_answers_and_lets_nothing_in_from_elsewhere(client: TestClient, path: str) -> None:
    got = client.get(path)
    assert got.status_code == 200
    assert "default-src 'none'" in got.headers["content-security-policy"]
    assert got.headers["x-content-type-options"] == "nosniff"
    assert "://" not in got.text.replace("http://www.w3.org/2000/svg", ""), "nothing is fetched from outside"
    if path.endswith(("/", ".js")):
        for unsafe in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "style=",
            " onclick=",
        ):
            assert unsafe not in got.text


def test_a_scene_is_the_picture_of_the_demo_world(client: TestClient) -> None:
    import io

    from PIL import Image

    from keepsight.demo.world import scene

    shown = Image.open(io.BytesIO(client.get("/scene/val:3.png").content))
    assert shown.tobytes() == scene("val", 3).image().tobytes()


@pytest.mark.parametrize(
    ("name", "told"),
    [("nope:1", "no split 'nope'"), ("val:99999999", "out of range"), ("..%2F..%2Fetc", "test-shifted:5")],
)
def test_scenes_that_are_not_there(client: TestClient, name: str, told: str) -> None:
    got = client.get(f"/scene/{name}.png")
    assert got.status_code in (400, 404)
    assert got.status_code == 404 or told in got.json()["error"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "m3di"}, "did you mean 'm3id'?"),
        ({"method": "m3id:decay=nan"}, "decay=nan"),
        ({"method": "var:calibration=/etc/passwd"}, "calibration names a file, which a request may not"),
        ({"method": "+".join(["m3id"] * 9)}, "9 methods are too many"),
        ({"method": 3}, "method must be a text"),
        ({"question": "  "}, "the question is empty"),
        ({"question": "a" * 2001}, "2001 letters"),
        ({"question": "\ud800"}, "half a letter"),
        ({"tokens": 0}, "tokens must be a whole number from 1 to 512"),
        ({"tokens": 513}, "from 1 to 512"),
        ({"tokens": True}, "tokens must"),
        ({"tokens": 1.5}, "tokens must"),
        ({"tokens": None}, "tokens must"),
        ({"picture": {}}, "picture must hold"),
        ({"picture": {"scene": "val:0", "data": "x"}}, "picture must hold"),
        ({"picture": {"scene": "val"}}, "test-shifted:5"),
        ({"picture": {"scene": "nope:1"}}, "no split 'nope'"),
        ({"picture": {"data": "http://example.com/a.png"}}, "not a data URI"),
        ({"picture": {"data": PNG + "!!"}}, "base64 is broken"),
        ({"temperature": 1}, "unknown field 'temperature'"),
        ({"answer": [1]}, "unknown field 'answer'"),
    ],
)
def test_bad_requests_are_told_in_one_line(client: TestClient, changes: dict[str, Any], told: str) -> None:
    given = {**page_request(), **changes}
    given = {name: value for name, value in given.items() if value is not None}
    got = client.post("/api/answer", content=json.dumps(given), headers={"Content-Type": "application/json"})
    assert got.status_code == 400
    assert told in got.json()["error"]
    assert "\n" not in got.json()["error"]


@pytest.mark.parametrize(
    "answer", [None, [], [-1], [10**9], [1.0], [True], "ids", [1] * 513], ids=lambda value: str(value)[:12]
)
def test_a_map_of_what_is_no_answer_is_refused(client: TestClient, answer: Any) -> None:
    got = client.post("/api/attention", json={**page_request(tokens=None), "answer": answer})
    assert got.status_code == 400
    assert got.json()["error"].startswith("answer must")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (PNG, "none of the formats"),
        (PNG + "PHN2Zy8+", "convert it (SVG to PNG)"),
        (PNG + PIXEL[:60], "damaged or incomplete"),
    ],
)
def test_bad_pictures_are_told_before_anything_is_written(
    client: TestClient, content: str, told: str
) -> None:
    got = client.post("/api/answer", json=page_request(picture={"data": content}))
    assert (got.status_code, told in got.json()["error"]) == (400, True)


def test_a_single_pixel_is_a_picture(ask: Ask) -> None:
    assert ask(picture={"data": PNG + PIXEL}, tokens=3)[-1]["event"] == "done"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000])
def test_what_is_no_json_object_is_refused(client: TestClient, body: bytes) -> None:
    got = client.post("/api/answer", content=body, headers={"Content-Type": "application/json"})
    assert (got.status_code, "JSON" in got.json()["error"]) == (400, True)


def test_json_of_too_many_parts_is_refused_unparsed(client: TestClient) -> None:
    body = json.dumps({**page_request(), "extra": [0] * 20_000})
    got = client.post("/api/answer", content=body, headers={"Content-Type": "application/json"})
    assert (got.status_code, "too many parts" in got.json()["error"]) == (400, True)


def test_forms_of_other_sites_and_other_names_are_refused(client: TestClient) -> None:
    plain = client.post(
        "/api/answer", content=json.dumps(page_request()), headers={"Content-Type": "text/plain"}
    )
    assert plain.status_code == 415
    known = ("localhost:7860", "LOCALHOST", "127.0.0.1:1", "[::1]:7860", "[::1]")
    strange = ("evil.example", "evil.example:7860", "localhost.evil.example", "[2001:db8::1]", "[::1", "")
    for host in known + strange:
        assert client.get("/", headers={"Host": host}).status_code == (200 if host in known else 400), host


def test_a_request_that_is_too_long_is_refused_while_it_comes(service: PageService) -> None:
    small = replace(service, limits=replace(service.limits, request_bytes=1000, image_pixels=100))
    with TestClient(create_page(small), base_url="http://localhost") as client:
        got = client.post("/api/answer", json=page_request(question="x", picture={"data": "y" * 2000}))
        assert (got.status_code, got.json()["error"][:33]) == (413, "the request has more than 1,000 b")
        events = client.post("/api/answer", json=page_request(picture={"data": PNG + PIXEL})).text
        assert '"done"' in events


def test_an_unexpected_failure_is_one_line_and_the_server_lives(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from keepsight.inference import streaming as answering

    def write(*arguments: Any, on_text: Callable[[str], None], **settings: Any) -> Any:
        on_text("A kit")
        raise ZeroDivisionError("deep\ninside")

    before = ask()[-1]
    with monkeypatch.context() as broken, caplog.at_level(logging.ERROR):
        broken.setattr(answering, "stream_answer", write)
        *_, piece, error = ask()
    assert piece == {"event": "piece", "text": "A kit"}
    assert error == {"event": "error", "error": "ZeroDivisionError: the server's log tells more"}
    assert "Traceback" in caplog.text
    after = ask()[-1]
    assert (after["ids"], after["words"]) == (before["ids"], before["words"])


class Slow(PageService):
    """Writes two words and no more, until it is told to stop."""

    stopped: threading.Event

    def answer(
        self, prepared: Any, emit: Callable[[Any], None], stop: threading.Event, worker: int = 0
    ) -> None:
        emit({"event": "begun"})
        for _ in range(2):
            emit({"event": "piece", "text": "word "})
        assert stop.wait(GUARD), "nobody stopped it"
        self.stopped.set()


@contextmanager
def serving(service: PageService, at_once: int) -> Iterator[tuple[Slow, int]]:
    """A server of a slow answerer that takes so many askers and lets one wait, with its port; ended with the block."""
    limits = replace(service.limits, queue=1)
    told = Slow(name="slow", model=service.model, processor=service.processor, limits=limits, at_once=at_once)
    told.stopped = threading.Event()
    with listen("127.0.0.1", 0) as opened:
        port = opened.getsockname()[1]
        settings = uvicorn.Config(
            create_page(told), log_level="critical", timeout_graceful_shutdown=1, ws="none"
        )
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        try:
            yield told, port
        finally:
            server.should_exit = True
            thread.join(GUARD)
            assert not thread.is_alive()


def open_stream(port: int) -> tuple[HTTPConnection, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=GUARD)
    connection.request(
        "POST", "/api/answer", json.dumps(page_request()), {"Content-Type": "application/json"}
    )
    return connection, connection.getresponse()


@pytest.mark.parametrize("workers", [1, 2])
def test_one_waits_the_next_is_turned_away_and_whoever_leaves_makes_room(
    service: PageService, workers: int
) -> None:
    with ExitStack() as stack:
        told, port = stack.enter_context(serving(service, workers))

        def ask() -> tuple[HTTPConnection, Any]:
            connection, stream = open_stream(port)
            stack.callback(connection.close)
            stack.callback(stream.close)
            return connection, stream

        begun = [ask() for _ in range(workers)]
        for _, stream in begun:
            lines = [json.loads(stream.readline()) for _ in range(4)]
            assert lines[0] == {"event": "queued", "ahead": 0}
            assert [line["event"] for line in lines[1:]] == ["begun", "piece", "piece"], "long before the end"
        _, waiting = ask()
        assert json.loads(waiting.readline()) == {"event": "queued", "ahead": 1}
        _, refused = ask()
        assert (refused.status, refused.headers["Retry-After"]) == (429, "2")
        assert f"{workers + 1} answers are written or waiting" in json.loads(refused.read())["error"]
        begun[-1][0].sock.shutdown(socket.SHUT_RDWR)
        assert told.stopped.wait(GUARD), "the generation ends when its asker leaves"
        assert json.loads(waiting.readline()) == {"event": "begun"}, "and the next one has its turn"


def test_a_shutdown_ends_the_answer_that_is_being_written(service: PageService) -> None:
    with serving(service, 1) as (told, port):
        connection, stream = open_stream(port)
        assert [json.loads(stream.readline())["event"] for _ in range(2)] == ["queued", "begun"]
        assert not told.stopped.is_set()
    assert told.stopped.is_set()
    stream.close()
    connection.close()


def test_who_leaves_the_queue_is_never_served() -> None:
    served: list[str] = []
    free = threading.Event()

    async def play() -> None:
        scheduler = Scheduler(2)

        def long(say: Callable[[Any], None], stop: threading.Event, worker: int) -> None:
            free.wait(GUARD)
            served.append("first")
            say(1)

        first = scheduler.reserve().run(long)
        second = scheduler.reserve().run(lambda say, stop, worker: served.append("second"))
        third = scheduler.reserve().run(lambda say, stop, worker: say("third"))
        with pytest.raises(Busy):
            scheduler.reserve().run(long)
        leaving = asyncio.ensure_future(anext(second))
        await asyncio.sleep(0)  # one turn of the loop, in which it begins to listen
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        free.set()
        assert [what async for what in first] == [1]
        assert [what async for what in third] == ["third"]
        assert scheduler.occupied == 0
        scheduler.close()

    asyncio.run(play())
    assert served == ["first"]


def test_the_command_serves_until_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    from keepsight.serve.page import server

    pages: list[str] = []

    def run(app: Any, opened: socket.socket) -> None:
        monkeypatch.undo()
        serving = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [opened]})
        thread.start()
        until(lambda: serving.started)
        port = opened.getsockname()[1]
        pages.append(urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=GUARD).read().decode())
        serving.should_exit = True
        thread.join(GUARD)
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "run", run)
    ran = CliRunner().invoke(command, ["ui", "--port", "0"])
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout.startswith("demo: http://127.0.0.1:")
    assert "Which words does the picture support?" in pages[0]


def refused(*arguments: str) -> str:
    ran = CliRunner().invoke(command, ["ui", *arguments])
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    return ran.stderr


def test_the_command_refuses_before_it_loads_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("keepsight.inference.loading.load", load)
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in refused("--port", str(port))
    assert "--port 70000 must be from 0 to 65535" in refused("--port", "70000")
    assert "cannot listen on no.such.host.invalid" in refused("--host", "no.such.host.invalid")
    assert "missing.json" in refused("--calibration", "missing.json")
    with pytest.raises(CannotListen):
        listen("203.0.113.7", 0)


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_the_extra_the_command_names_it(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    import builtins
    import sys

    usual = builtins.__import__

    def fail(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return usual(name, *rest, **more)

    for name in list(sys.modules):
        if name.startswith("keepsight.serve.page.") and name.rpartition(".")[2] in ("app", "server"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", fail)
    assert f"{missing} is not installed" in (told := refused())
    assert "pip install -e '.[ui]'" in told
