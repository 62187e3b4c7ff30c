"""Decides whether a request may use the server, before its body is read."""

from __future__ import annotations

import hashlib
import hmac

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from keepsight.serve.addresses import host_name, is_local_name
from keepsight.serve.errors import RequestRefused, Unauthorized
from keepsight.serve.request_body import drain
from keepsight.serve.request_handler import RequestHandler
from keepsight.serve.responses import error_response


class AuthMiddleware:
    """ASGI middleware that lets requests with the API key in, and answers others with status 401 or 403.

    On a server without a key that listens on loopback alone, it lets requests in whose ``Host`` header names this machine.
    On a server without a key that other machines can reach, it lets all requests in.

    Args:
        app: the application behind the middleware.
        handler: says which key, which host and which addresses count.
    """

    def __init__(self, app: ASGIApp, handler: RequestHandler) -> None:
        self._app = app
        self._key = None if handler.api_key is None else _digest(handler.api_key.encode())
        # Without a key, a foreign web page that is open in a browser here could reach the server under a host name of its
        # own that resolves to this machine (DNS rebinding). No such page knows a key, so that a key is protection enough
        self._local_names_only = handler.loopback and handler.api_key is None
        self._host = handler.host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(Request(scope))) is not None:
            # Many clients read no response before they have sent all of their body
            await drain(scope, receive)
            await error_response(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, request: Request) -> RequestRefused | None:
        """Why the request may not use the server, or None if it may."""
        if self._key is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            # Starlette decodes headers as latin-1, so encoding them again gives the bytes that were sent. Digests have
            # one length, and are compared in constant time, so that the time taken tells nothing about the key
            known = hmac.compare_digest(_digest(given.encode("latin-1")), self._key)
            # HTTP compares the names of authentication schemes without regard to case
            if scheme.lower() != "bearer" or not known:
                return Unauthorized(
                    "the API key is missing or wrong: send Authorization: Bearer KEY",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if self._local_names_only and not is_local_name(
            host_name(request.headers.get("host", "")), self._host
        ):
            return RequestRefused(
                "this server answers requests to localhost alone: start it with --api-key to be called by another name",
                status=403,
                code="host_not_allowed",
            )
        return None


def _digest(key: bytes) -> bytes:
    """The SHA-256 digest of a key."""
    return hashlib.sha256(key).digest()
