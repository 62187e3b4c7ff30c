"""Methods as model names in vLLM's own server: a middleware that turns ``base:m3id`` into ``base`` and an argument.

vLLM takes it by ``--middleware keepsight.engines.vllm.model_names.ModelNames``. What it serves stands in the environment,
where ``keepsight serve --engine vllm`` puts it; without it every request passes as it came.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from keepsight.engines.vllm.placing import SERVED, SPEC

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BASE = "KEEPSIGHT_VLLM_MODEL"
"""The environment variable with the name of the plain model."""
ASKS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""Paths whose bodies name a model and may have extra arguments."""
MODELS = "/v1/models"


class ModelNames:
    """An ASGI middleware: methods are model names, as in ``keepsight serve``.

    A request for ``base:spec`` is passed on as one for ``base`` with ``vllm_xargs: {"keepsight": spec}``, for the specs that
    the operator serves; a request for another name passes as it came, and vLLM refuses it. The list of models names them
    all. Answers name the plain model, since vLLM writes them.

    Args:
        app: the application that answers.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self.base = os.environ.get(BASE, "")
        specs = json.loads(os.environ.get(SERVED, "[]"))
        self.served = {f"{self.base}:{spec}": str(spec) for spec in specs} if self.base else {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if not self.served or scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["method"] == "POST" and scope["path"] in ASKS:
            await self._ask(scope, receive, send)
        elif scope["method"] == "GET" and scope["path"].rstrip("/") == MODELS:
            await self._list(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        if body is None:
            return  # the client has gone
        rewritten = self.rewrite(body)
        if isinstance(rewritten, str):
            await _refuse(send, rewritten)
            return
        if rewritten is not body:
            headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
            headers.append((b"content-length", str(len(rewritten)).encode()))
            scope = {**scope, "headers": headers}
        await self.app(scope, _replay(rewritten, receive), send)

    def rewrite(self, body: bytes) -> bytes | str:
        """The body as vLLM takes it; the very same one if it names no served method; a text if it contradicts itself."""
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return body  # vLLM says what is wrong with it
        name = asked.get("model") if isinstance(asked, dict) else None
        spec = self.served.get(name) if isinstance(name, str) else None
        if spec is None:
            return body
        arguments = asked.get("vllm_xargs") or {}
        if not isinstance(arguments, dict):
            return body
        if arguments.get(SPEC) not in (None, spec):
            return (
                f"the model {name!r} stands for the methods {spec!r}, and vllm_xargs names"
                f" {str(arguments[SPEC])[:200]!r}: give one of them"
            )
        changed = {**asked, "model": self.base, "vllm_xargs": {**arguments, SPEC: spec}}
        return json.dumps(changed).encode()

    async def _list(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message = {}
        pieces: list[bytes] = []

        async def keep(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            pieces.append(message.get("body", b""))
            if message.get("more_body"):
                return
            body = self.listed(b"".join(pieces)) if start["status"] == 200 else b"".join(pieces)
            headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
            headers.append((b"content-length", str(len(body)).encode()))
            await send({**start, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, keep)

    def listed(self, body: bytes) -> bytes:
        """vLLM's list of models with one more entry for each served spec, made like that of the plain model."""
        try:
            found = json.loads(body)
            plain = next(one for one in found["data"] if one["id"] == self.base)
        except (ValueError, LookupError, TypeError, StopIteration):
            return body
        found["data"] += [{**plain, "id": name, "parent": self.base} for name in self.served]
        return json.dumps(found).encode()


async def _read(receive: Receive) -> bytes | None:
    """The whole body of a request; None if the client goes before it is there."""
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A channel that gives a body at once, and afterwards what the client sends, such as that it has gone."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


async def _refuse(send: Send, reason: str) -> None:
    error = {"message": reason, "type": "BadRequestError", "param": "model", "code": 400}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
