"""Which name a request calls its server by."""

from __future__ import annotations


def called(header: str) -> str:
    """The name in a ``Host`` header, in small letters and without the port; an IPv6 address keeps its brackets."""
    if header.startswith("["):
        return header[: header.find("]") + 1].lower()  # nothing, where the bracket is never closed
    return header.partition(":")[0].lower()
