"""OpenAI's client for JavaScript against a server on a port: it understands what the one for Python understands.

`make clients` installs it and runs this. KEEPSIGHT_CLIENTS names another folder with `node_modules/openai`; where it is
set, nothing is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import GUARD, ForwardGate, client_of, data_uri, handler_of, painted, question, running, until
from strong import STRONG

from keepsight.serve.limits import Limits

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
NAMED = os.environ.get("KEEPSIGHT_CLIENTS")
FOLDER = Path(NAMED or HERE.parent.parent / "build" / "clients").absolute()
SPEC = STRONG["m3id"].spec
KEY = "the key of the house"
ASK = {"model": "toy", "messages": question(data_uri(painted(0)), "a cat and a dog"), "max_tokens": 8}
OWN = {"id", "created"}  # an answer's alone


class Script:
    """A process in which the client runs; `call` answers as `client.mjs` does."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self._process = process
        self._options = {"baseURL": address, "apiKey": KEY}

    def raw(self, call: str, options: Any = None, **rest: Any) -> dict[str, Any]:
        given = {"call": call, "options": self._options | (options or {}), **rest}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watch = threading.Timer(GUARD, self._process.kill)
        watch.start()
        try:
            self._process.stdin.write(json.dumps(given) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        assert line, f"node ended, or said nothing for {GUARD} seconds, at {call}"
        return dict(json.loads(line))

    def call(self, call: str, **rest: Any) -> Any:
        told = self.raw(call, **rest)
        assert "error" not in told, told
        return told["value"]


@contextmanager
def script_for(address: str) -> Iterator[Script]:
    node = shutil.which("node")
    missing = None
    if node is None:
        missing = "node is not installed"
    elif not (FOLDER / "node_modules" / "openai").is_dir():
        missing = f"there is no npm package openai in {FOLDER}: make clients"
    if missing and NAMED:
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
    command = [str(node), str(HERE / "client.mjs"), str(FOLDER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Script(process, address)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def address(loaded: Any) -> Iterator[str]:
    with running(handler_of(loaded, SPEC, api_key=KEY)) as address:
        yield address


@pytest.fixture(scope="module")
def script(address: str) -> Iterator[Script]:
    with script_for(address) as script:
        yield script


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return client_of(address, api_key=KEY)


def python(client: openai.OpenAI, body: dict[str, Any]) -> Any:
    """The same request by the client for Python, as JSON; of a stream, a list of chunks."""
    known = {name: value for name, value in body.items() if name != "keepsight"}
    extra = {name: value for name, value in body.items() if name == "keepsight"}
    found = client.chat.completions.create(**known, extra_body=extra)
    if body.get("stream"):
        return [bare(chunk.to_dict()) for chunk in found]
    return bare(found.to_dict())


def bare(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in OWN}


def test_models(script: Script, client: openai.OpenAI) -> None:
    found = script.call("models")
    assert [model["id"] for model in found] == ["toy", f"toy:{SPEC}"]
    assert found == [model.to_dict() for model in client.models.list()]
    assert script.call("model", name=f"toy:{SPEC}") == found[1], "a name with a colon and an equals sign"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model": f"toy:{SPEC}"},
        {"n": 2, "temperature": 1.5, "seed": 7},
        {"logprobs": True, "top_logprobs": 2},
        {"keepsight": {"grounding": True, "threshold": -2.0}},
        {"keepsight": {"methods": [SPEC]}},
    ],
    ids=["plain", "method", "choices", "logprobs", "grounding", "methods"],
)
def test_answers_and_streams(script: Script, client: openai.OpenAI, settings: dict[str, Any]) -> None:
    body = ASK | settings
    whole = script.call("create", body=body)
    assert whole["id"].startswith("chatcmpl-")
    assert bare(whole) == python(client, body)
    count = body.get("n", 1)
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert len(set(texts)) == len(texts) == count
    assert all(texts)

    streaming = body | {"stream": True, "stream_options": {"include_usage": True}}
    chunks = script.call("stream", body=streaming)
    assert len({chunk["id"] for chunk in chunks}) == 1
    # The choices of one answer are written side by side; whose chunk comes first is nobody's promise
    wanted = python(client, streaming)
    for row in range(count):
        assert [bare(chunk) for chunk in chunks if of(chunk, row)] == [
            chunk for chunk in wanted if of(chunk, row)
        ]
    heard = [
        "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if of(chunk, row))
        for row in range(count)
    ]
    assert heard == texts
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]

    assembled = script.call("assembled", body=streaming)
    for own, told in zip(whole["choices"], assembled["whole"]["choices"], strict=True):
        assert (told["message"]["content"], told["finish_reason"]) == (own["message"]["content"], "length")
        assert (told["logprobs"] or {}).get("content") == (own["logprobs"] or {}).get("content")
    assert assembled["whole"]["usage"] == whole["usage"]
    if count == 1:
        assert len(assembled["heard"]) > 4, "word by word"
        assert "".join(assembled["heard"]) == texts[0]


def of(chunk: dict[str, Any], row: int) -> bool:
    return bool(chunk["choices"]) and chunk["choices"][0]["index"] == row


def test_what_was_asked_for_is_there(script: Script) -> None:
    """Equal to the other client's would also hold where both got nothing."""
    drawn = script.call("create", body=ASK | {"n": 2, "temperature": 1.5, "seed": 7})
    assert (
        drawn["choices"]
        == script.call("create", body=ASK | {"n": 2, "temperature": 1.5, "seed": 7})["choices"]
    )
    [choice] = script.call("create", body=ASK | {"logprobs": True, "top_logprobs": 2})["choices"]
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == choice["message"]["content"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in choice["logprobs"]["content"])
    [choice] = script.call("create", body=ASK)["choices"]
    assert "keepsight" not in choice
    chunks = script.call("stream", body=ASK | {"keepsight": {"grounding": True, "threshold": -2.0}})
    told = [
        chunk["choices"][0]["keepsight"]["grounding"]
        for chunk in chunks
        if "keepsight" in chunk["choices"][0]
    ]
    assert (
        "".join(token["text"] for each in told for token in each.get("tokens", []))
        == choice["message"]["content"]
    )
    assert {word["unsupported"] for word in told[-1]["words"]} == {True, False}
    plain = choice["message"]["content"]
    assert (
        script.call("create", body=ASK | {"model": f"toy:{SPEC}"})["choices"][0]["message"]["content"]
        != plain
    )


@pytest.mark.parametrize("call", ["create", "stream"])
@pytest.mark.parametrize(
    ("settings", "options", "kind", "status", "code"),
    [
        ({"model": "toy:nope"}, {}, "NotFoundError", 404, "model_not_found"),
        ({"messages": question("data:image/png;base64,@@")}, {}, "BadRequestError", 400, "invalid_image"),
        ({"keepsight": {"methods": ["nope"]}}, {}, "BadRequestError", 400, "unknown_method"),
        ({}, {"apiKey": "wrong"}, "AuthenticationError", 401, "invalid_api_key"),
    ],
    ids=["model", "picture", "method", "key"],
)
def test_errors(
    script: Script,
    client: openai.OpenAI,
    call: str,
    settings: dict[str, Any],
    options: dict[str, Any],
    kind: str,
    status: int,
    code: str,
) -> None:
    told = script.raw(call, options=options, body=ASK | settings)["error"]
    assert (told["class"], told["isAPIError"], told["status"], told["code"]) == (kind, True, status, code)
    if "apiKey" in options:
        client = client.with_options(api_key=options["apiKey"])
    with pytest.raises(openai.APIStatusError) as raised:
        python(client, ASK | settings | {"stream": call == "stream"})
    assert type(raised.value).__name__ == kind
    assert isinstance(raised.value.body, dict)
    for name in ("code", "type", "param"):
        assert told[name] == raised.value.body[name]
    assert raised.value.body["message"] in told["message"]
    assert script.call("create", body=ASK | {"max_tokens": 1})["choices"], "the client and the server live on"


def test_a_full_queue(loaded: Any, gate: ForwardGate) -> None:
    handler = handler_of(loaded, limits=Limits(queue=1, batch=1))
    with running(handler) as address, script_for(address) as script:
        gate.close_at = gate.passes + 5
        script.call("begin", body=ASK | {"max_tokens": 400}, way="signal")
        gate.wait_until_held()
        waiting = threading.Thread(
            target=lambda: client_of(address).chat.completions.create(**ASK | {"max_tokens": 1})
        )
        waiting.start()
        until(lambda: handler.engine.waiting)
        told = script.raw("create", body=ASK)["error"]
        assert (told["class"], told["status"], told["code"]) == ("RateLimitError", 429, "queue_full")
        script.call("hangUp")
        gate.open.set()
        waiting.join(GUARD)
        assert not waiting.is_alive()


@pytest.mark.parametrize("way", ["signal", "controller", "leave"])
def test_hanging_up_frees_the_slot(loaded: Any, gate: ForwardGate, caplog: Any, way: str) -> None:
    handler = handler_of(loaded, limits=Limits(queue=1, batch=1))
    with running(handler) as address, script_for(address) as script:
        gate.close_at = gate.passes + 5
        first = script.call("begin", body=ASK | {"max_tokens": 400}, way=way)
        assert first["choices"][0]["delta"]["role"] == "assistant"
        gate.wait_until_held()
        assert handler.engine.running == 1
        assert script.call("hangUp") < 390, "the stream ends without an error, and not by itself"
        until(lambda: not handler.engine.running)  # the model stands still, and node lives on
        passes = gate.passes
        gate.open.set()
        assert script.call("create", body=ASK | {"max_tokens": 1})["choices"]
        assert gate.passes <= passes + 3
    assert not caplog.records, "hanging up is no error"


def test_a_failure_in_a_stream(loaded: Any, gate: ForwardGate) -> None:
    with running(handler_of(loaded)) as address, script_for(address) as script:
        gate.fail_at = gate.passes + 5
        told = script.raw("stream", body=ASK)["error"]
        assert told["isAPIError"]
        assert "failed unexpectedly" in told["message"]
        assert "secret" not in told["message"]
