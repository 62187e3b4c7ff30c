"""Methods as model names in vLLM's server. The middleware needs no vLLM: it is asked here through Starlette's client."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from keepsight.engines.vllm.model_names import BASE, ModelNames
from keepsight.engines.vllm.placing import SERVED

SPECS = ["m3id", "vcd:alpha=2.0"]


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """A stand-in for vLLM's server, which answers what it was asked."""
    monkeypatch.setenv(SERVED, json.dumps(SPECS))
    monkeypatch.setenv(BASE, "llava")
    return TestClient(standin())


def standin() -> FastAPI:
    app = FastAPI()

    async def ask(request: Request) -> Any:
        body = await request.body()
        assert int(request.headers["content-length"]) == len(body)
        return {"asked": body.decode("utf-8", "replace")}

    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        app.add_api_route(path, ask, methods=["POST"])

    @app.get("/v1/models")
    def models() -> Any:
        return {"object": "list", "data": [{"id": "llava", "object": "model", "max_model_len": 64}]}

    app.add_middleware(ModelNames)  # type: ignore[arg-type]
    return app


def asked(client: TestClient, path: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(client.post(path, json=body).json()["asked"])
    return found


def test_a_served_name_becomes_an_argument(client: TestClient) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        for spec in SPECS:
            found = asked(client, path, model=f"llava:{spec}", stream=True, vllm_xargs={"other": 1})
            assert found == {"model": "llava", "stream": True, "vllm_xargs": {"other": 1, "keepsight": spec}}


@pytest.mark.parametrize("model", ["llava", "llava:vhr", "llava:", "m3id", "llava:m3id ", 7, None])
def test_another_name_passes_as_it_came(client: TestClient, model: Any) -> None:
    assert asked(client, model=model) == {"model": model}


def test_the_plain_model_with_an_argument_passes_as_it_came(client: TestClient) -> None:
    body = {"model": "llava", "vllm_xargs": {"keepsight": "m3id:decay=0.05"}}
    assert asked(client, **body) == body


def test_other_paths_pass_as_they_came(client: TestClient) -> None:
    assert asked(client, "/tokenize", model="llava:m3id") == {"model": "llava:m3id"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_request_is_left_to_the_server(client: TestClient, body: bytes) -> None:
    assert client.post("/v1/chat/completions", content=body).json()["asked"] == body.decode(
        "utf-8", "replace"
    )


def test_a_request_that_contradicts_itself_is_refused(client: TestClient) -> None:
    body = {"model": "llava:m3id", "vllm_xargs": {"keepsight": "vcd"}}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == (
        "the model 'llava:m3id' stands for the methods 'm3id', and vllm_xargs names 'vcd': give one of them"
    )
    body["vllm_xargs"]["keepsight"] = "m3id"  # type: ignore[index]
    assert asked(client, **body)["vllm_xargs"] == {"keepsight": "m3id"}


def test_all_names_are_listed(client: TestClient) -> None:
    answer = client.get("/v1/models")
    assert int(answer.headers["content-length"]) == len(answer.content)
    names = [one["id"] for one in answer.json()["data"]]
    assert names == ["llava", "llava:m3id", "llava:vcd:alpha=2.0"]
    assert {one["max_model_len"] for one in answer.json()["data"]} == {64}


def test_without_served_methods_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVED, raising=False)
    monkeypatch.delenv(BASE, raising=False)
    client = TestClient(standin())
    assert asked(client, model="llava:m3id") == {"model": "llava:m3id"}
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["llava"]
