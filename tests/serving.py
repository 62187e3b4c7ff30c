"""What the tests of the server share: pictures, a gate in front of a model, a handler on a free port."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
from PIL import Image

from keepsight.serve.addresses import listen
from keepsight.serve.batching_engine import BatchingEngine
from keepsight.serve.limits import Limits
from keepsight.serve.model_registry import ModelRegistry
from keepsight.serve.request_handler import RequestHandler
from keepsight.serve.server import Server


def painted(number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture unlike that of another number."""
    slope = Image.linear_gradient("L")
    return Image.merge("RGB", [slope.rotate(40 * number + 77 * band).resize(size) for band in range(3)])


def data_uri(picture: Image.Image, kind: str = "PNG", **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def question(uri: str, text: str = "Describe this image.") -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": uri}}]
    return [{"role": "user", "content": parts}]


def until(met: Callable[[], Any]) -> None:
    """Wait until something is so; half a minute is for ever."""
    end = time.monotonic() + 30
    while not met():
        assert time.monotonic() < end
        time.sleep(0.003)


class ForwardGate:
    """Holds a model at its next forward pass until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.passes = 0
        self.fail_at: int | None = None

    def __call__(self, *_: Any) -> None:
        self.passes += 1
        if self.passes == self.fail_at:
            raise RuntimeError("secret: /home/somebody")
        assert self.open.wait(20)


@contextmanager
def running(handler: RequestHandler, grace: float = 5.0) -> Iterator[str]:
    """The address of a handler on a free port, in a thread of its own."""
    bound = listen("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(handler, grace=grace, ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        assert ready.wait(20)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(20)
        bound.close()
        assert not thread.is_alive()


def handler_of(
    loaded: tuple[Any, Any], *specs: str, limits: Limits | None = None, **options: Any
) -> RequestHandler:
    limits = limits or Limits()
    engine = BatchingEngine(*loaded, batch=limits.batch, queue=limits.queue)
    return RequestHandler(
        engine=engine, models=ModelRegistry.from_specs("toy", specs), limits=limits, **options
    )


def client_of(address: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=address, **{"api_key": "none", "max_retries": 0, "timeout": 20} | options)
