"""Serves the page with uvicorn. It needs the extra ``ui``."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn


def run(app: Any, opened: socket.socket) -> None:
    """Serve ``app`` on a listening socket until it is interrupted. Answers that are being generated are stopped then.

    Args:
        app: the application that ``create_page`` returns.
        opened: a socket that listens, as ``keepsight.serve.addresses.listen`` returns it.
    """
    # uvicorn waits for open responses before it runs the end of the application, which stops the workers. Without this bound
    # it would wait until the last answer has ended by itself
    settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, server_header=False)
    uvicorn.Server(settings).run(sockets=[opened])
