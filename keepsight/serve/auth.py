"""Who is let in, before anything of a request is read."""

from __future__ import annotations

import hashlib
import hmac

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from keepsight.serve.addresses import called, means_here
from keepsight.serve.errors import NotAllowed, RequestRefused
from keepsight.serve.request_body import drain
from keepsight.serve.request_handler import Service
from keepsight.serve.responses import failure


class Gate:
    """Lets in who has the key; without a key on this machine alone, who asks for this machine."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._key = None if service.api_key is None else _digest(service.api_key.encode())
        self._local = service.loopback and service.api_key is None
        self._host = service.host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(Request(scope))) is not None:
            await drain(scope, receive)
            await failure(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, request: Request) -> RequestRefused | None:
        if self._key is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            known = hmac.compare_digest(_digest(given.encode("latin-1")), self._key)  # the bytes as they came
            if scheme.lower() != "bearer" or not known:
                return NotAllowed(
                    "the API key is missing or wrong: send Authorization: Bearer KEY",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if self._local and not means_here(called(request.headers.get("host", "")), self._host):
            return RequestRefused(
                "this server answers requests to localhost alone: start it with --api-key to be called by another name",
                status=403,
                code="host_not_allowed",
            )
        return None


def _digest(key: bytes) -> bytes:
    """Of one length whatever the key, so that comparing tells nothing of the right one's."""
    return hashlib.sha256(key).digest()
