from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asking import page_request
from starlette.testclient import TestClient

from keepsight.inference.loading import load
from keepsight.serve.page.app import create_page
from keepsight.serve.page.service import PageService

Ask = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def service() -> PageService:
    model, processor = load("demo")
    return PageService(name="demo", model=model, processor=processor)


@pytest.fixture(scope="session")
def client(service: PageService) -> Iterator[TestClient]:
    with TestClient(create_page(service), base_url="http://127.0.0.1:7860") as opened:
        yield opened


@pytest.fixture
def ask(client: TestClient) -> Ask:
    """The events of an answer."""

    def post(**changes: Any) -> list[Any]:
        answer = client.post("/api/answer", json=page_request(**changes))
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]

    return post
