"""Starts the page's server. Needs the extra ``ui``."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn


def run(app: Any, opened: socket.socket) -> None:
    """Serve until interrupted; answers that are being written are ended."""
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, server_header=False)
    uvicorn.Server(settings).run(sockets=[opened])
