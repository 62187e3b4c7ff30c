"""``keepsight serve``: what is refused before a model is loaded, and one server from its first line to its end."""

from __future__ import annotations

import builtins
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "m3di"], "did you mean 'm3id'?"),
        (["--method", "m3id+m3id"], "m3id is given twice"),
        (["--method", "m3id", "--method", "m3id"], "m3id is given twice"),
        (["--max-batch", 0], "the limit batch=0"),
        (["--max-image-mb", "nan"], "--max-image-mb nan"),
        (["--max-megapixels", 0], "--max-megapixels 0"),
        (["--grace", -1], "--grace -1"),
        (["--api-key", " "], "--api-key is empty"),
        (["--api-key", "sésame"], "--api-key must be"),
        (["--calibration", "/nowhere.json"], "/nowhere.json"),
        (["--allow-origin", "*"], "--allow-origin '*' is no origin"),
        (["--allow-origin", "http://localhost:3000/"], "is no origin"),
        (["--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
        (["--port", 70000], "65535"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_what_is_refused(refused: Callable[..., str], arguments: list[object], says: str) -> None:
    assert says in refused("serve", "demo", *arguments)


@pytest.mark.usefixtures("no_model")
def test_a_port_that_is_taken(refused: Callable[..., str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert "choose another --port" in refused("serve", "--port", other.getsockname()[1])


@pytest.mark.usefixtures("no_model")
def test_the_extra_is_named(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "fastapi":
            raise ImportError("none", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install -e '.[serve]'" in refused("serve")


def test_a_method_that_does_not_run(refused: Callable[..., str], demo_model: Path) -> None:
    said = refused("serve", "--method", "vhr:layers=77", "--port", 0)
    assert "vhr:layers=77 cannot be served: " in said


@pytest.mark.slow
def test_a_server_from_its_first_line_to_its_end() -> None:
    command = [sys.executable, "-m", "keepsight", "serve", "demo", "--port", "0", "--method", "m3id"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "models: demo, demo:m3id\n"
    address = process.stdout.readline().removeprefix("serving at ").strip()
    client = openai.OpenAI(base_url=address, api_key="any")
    assert [model.id for model in client.models.list()] == ["demo", "demo:m3id"]
    process.send_signal(signal.SIGTERM)
    said, complained = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")
    assert "Traceback" not in complained
