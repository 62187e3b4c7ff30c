"""Several answers at a time: each is what it is alone, and none waits for another while a worker is free."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from asking import page_request
from serving import GUARD
from starlette.testclient import TestClient
from typer.testing import CliRunner

from keepsight import InvalidParameter
from keepsight.cli.main import app as command
from keepsight.errors import InputError
from keepsight.inference.loading import load
from keepsight.serve.errors import Busy
from keepsight.serve.page.app import create_page
from keepsight.serve.page.scheduler import Scheduler
from keepsight.serve.page.service import PageService

Ask = Callable[..., list[Any]]
M3ID = "m3id:decay=0.07,cutoff=0.02"
HELD = "pai:alpha=0.9"


class Gated(PageService):
    """Notes who said what, and holds answers under one setting in the middle of their second piece until a gate opens."""

    gate: threading.Event
    held: threading.Event
    heard: list[tuple[str, str]]

    def answer(
        self, prepared: Any, emit: Callable[[Any], None], stop: threading.Event, worker: int = 0
    ) -> None:
        name = " ".join(method.name() for method in prepared.methods)

        def note(event: Any) -> None:
            self.heard.append((name, event["event"]))
            emit(event)
            if name == "pai" and self.heard.count((name, "piece")) == 2:
                self.held.set()
                assert self.gate.wait(GUARD), "nobody came past it"

        super().answer(prepared, note, stop, worker)


@contextmanager
def opened(service: PageService) -> Iterator[TestClient]:
    with TestClient(create_page(service), base_url="http://127.0.0.1:7860") as client:
        yield client


def events(client: TestClient, **changes: Any) -> list[Any]:
    answer = client.post("/api/answer", json=page_request(**changes))
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def told(event: Any) -> Any:
    return {name: value for name, value in event.items() if name != "seconds"}


def test_an_answer_and_a_map_come_while_another_answer_is_half_written(
    service: PageService, ask: Ask
) -> None:
    alone = {spec: told(ask(method=spec)[-1]) for spec in (HELD, M3ID, "vhr")}
    gated = Gated(name="demo", model=service.model, processor=service.processor)
    gated.gate, gated.held, gated.heard = threading.Event(), threading.Event(), []
    with opened(gated) as client, ThreadPoolExecutor(1) as thread:
        usual = client.post(
            "/api/attention", json=page_request(tokens=None, answer=alone[M3ID]["ids"], method=M3ID)
        )
        first: Future[list[Any]] = thread.submit(events, client, method=HELD)
        try:
            assert gated.held.wait(GUARD)
            queued, *_, second = events(client, method=M3ID)
            _, *_, third = events(client, method="vhr")
            again = client.post(
                "/api/attention", json=page_request(tokens=None, answer=second["ids"], method=M3ID)
            )
            assert not first.done()
        finally:
            gated.gate.set()
        ended = first.result(GUARD)
    assert queued == {"event": "queued", "ahead": 0}
    assert (told(second), told(third), told(ended[-1])) == (alone[M3ID], alone["vhr"], alone[HELD])
    assert again.json() == usual.json()
    assert again.status_code == 200
    at = gated.heard.index
    assert at(("pai", "begun")) < at(("m3id", "begun")) < at(("m3id", "done")) < at(("pai", "done"))


def test_many_askers_at_once_get_what_each_gets_alone(service: PageService, ask: Ask) -> None:
    specs = ["", HELD, f"vhr+{M3ID}", "vcd:beta=0.02,noise_step=999", "sla"]
    alone = [told(ask(method=spec)[-1]) for spec in specs]
    assert len({done["text"] for done in alone}) > 2
    roomy = replace(service, at_once=3, limits=replace(service.limits, queue=2 * len(specs)))
    assert [model is service.model for model in roomy.models] == [True, False, False]
    with opened(roomy) as client, ThreadPoolExecutor(2 * len(specs)) as threads:
        found = list(threads.map(lambda spec: events(client, method=spec), [*specs, *specs[::-1]]))
    assert [told(one[-1]) for one in found] == [*alone, *alone[::-1]]


def test_a_worker_on_which_an_answer_failed_writes_the_next_one(
    service: PageService, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keepsight.inference import streaming as answering

    both = threading.Barrier(2)
    usual = answering.stream_answer

    def fail(model: Any, *arguments: Any, **settings: Any) -> Any:
        both.wait(GUARD)
        raise InputError(str(next(i for i, one in enumerate(service.models) if one is model)))

    def meet(*arguments: Any, **settings: Any) -> Any:
        both.wait(GUARD)
        return usual(*arguments, **settings)

    with opened(service) as client, ThreadPoolExecutor(2) as threads:

        def twice() -> list[Any]:
            return [one[-1] for one in threads.map(lambda _: events(client), range(2))]

        with monkeypatch.context() as broken:
            broken.setattr(answering, "stream_answer", fail)
            failed = sorted(done["error"] for done in twice())
        assert failed == ["0", "1"], "one on each worker"
        monkeypatch.setattr(answering, "stream_answer", meet)
        one, other = twice()
    assert told(one) == told(other)
    assert one["words"]


@contextmanager
def hooked(model: Any) -> Iterator[None]:
    """As if the model were spread over several devices."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    layer = model.get_decoder().layers[0]
    add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu"))
    try:
        yield
    finally:
        remove_hook_from_module(layer)


def test_a_model_without_a_twin_answers_one_after_the_other_and_the_page_is_told(ask: Ask) -> None:
    usual = [told(ask(method=spec)[-1]) for spec in ("", M3ID)]
    model, processor = load("demo")
    with hooked(model):
        single = PageService(name="demo", model=model, processor=processor)
        with opened(single) as client, ThreadPoolExecutor(2) as threads:
            facts = client.get("/api/facts").json()
            found = list(threads.map(lambda spec: events(client, method=spec)[-1], ["", M3ID]))
    assert facts["workers"] == len(single.models) == 1
    assert "Accelerate moves what LlamaDecoderLayer" in facts["single_worker_reason"]
    assert [told(done) for done in found] == usual


def test_facts_tell_how_many_answers_are_written_at_a_time(service: PageService, client: TestClient) -> None:
    facts = client.get("/api/facts").json()
    assert (facts["workers"], facts["single_worker_reason"]) == (2, None)
    chosen = replace(service, at_once=1)
    assert (chosen.facts()["workers"], chosen.facts()["single_worker_reason"]) == (1, None)
    with pytest.raises(InvalidParameter, match="at_once=0"):
        replace(service, at_once=0)


def test_workers_take_turns_in_order_and_each_does_one_thing_at_a_time() -> None:
    begun: list[int] = []
    free = [threading.Event() for _ in range(6)]
    busy = [threading.Lock() for _ in range(2)]

    def work(number: int) -> Any:
        def do(say: Callable[[Any], None], stop: threading.Event, worker: int) -> None:
            assert busy[worker].acquire(blocking=False), "another is in this worker"
            begun.append(number)
            say((number, worker))
            free[number].wait(GUARD)
            busy[worker].release()

        return do

    async def play() -> None:
        scheduler = Scheduler(4, workers=2)
        ahead, streams = [], []
        for number in range(6):
            ahead.append(scheduler.ahead)
            streams.append(scheduler.reserve().run(work(number)))
        assert ahead == [0, 0, 1, 2, 3, 4]
        with pytest.raises(Busy, match="6 answers are written or waiting"):
            scheduler.reserve().run(work(0))
        assert {await anext(streams[0]), await anext(streams[1])} == {(0, 0), (1, 1)}
        assert sorted(begun) == [0, 1]
        free[1].set()
        assert await anext(streams[2]) == (2, 1), "the next one takes the worker that is free"
        free[0].set()
        assert await anext(streams[3]) == (3, 0)
        for one in free:
            one.set()
        for stream in streams:
            async for _ in stream:
                pass
        assert scheduler.occupied == 0
        scheduler.close()

    asyncio.run(play())
    assert begun[2:4] == [2, 3]
    assert sorted(begun[4:]) == [4, 5]


def test_closing_ends_what_is_written_on_every_worker() -> None:
    ended: list[int] = []

    def work(say: Callable[[Any], None], stop: threading.Event, worker: int) -> None:
        say("begun")
        if stop.wait(GUARD):
            ended.append(worker)

    async def play() -> None:
        scheduler = Scheduler(2, workers=2)
        streams = [scheduler.reserve().run(work) for _ in range(3)]
        assert [await anext(stream) for stream in streams[:2]] == ["begun", "begun"]
        scheduler.close()

    asyncio.run(play())
    assert sorted(ended) == [0, 1], "and the third never began"


def test_the_command_says_why_there_is_one_worker_and_takes_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    from keepsight.serve.page import server

    def run(app: Any, opened: Any) -> None:
        workers.append(app.state.scheduler.workers)

    workers: list[int] = []
    monkeypatch.setattr(server, "run", run)
    for arguments in (["--at-once", "1"], [], ["--at-once", "3"]):
        ran = CliRunner().invoke(command, ["ui", "--port", "0", *arguments])
        assert (ran.exit_code, ran.stdout.count("\n")) == (0, 1), ran.output
    assert workers == [1, 2, 3]
    loaded = load("demo")
    monkeypatch.setattr("keepsight.inference.loading.load", lambda *arguments, **options: loaded)
    with hooked(loaded[0]):
        ran = CliRunner().invoke(command, ["ui", "--port", "0"])
    assert workers[3:] == [1]
    assert "Answers are written one after the other: LlavaForConditionalGeneration: no twin" in ran.stdout
    ran = CliRunner().invoke(command, ["ui", "--at-once", "0"])
    assert ran.exit_code == 2
    assert "--at-once" in ran.stderr
