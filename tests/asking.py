"""A request of the page, whole unless changed."""

from __future__ import annotations

from typing import Any


def page_request(**changes: Any) -> dict[str, Any]:
    """One that is answered; a change to None leaves the field out."""
    given = {
        "picture": {"scene": "test-shifted:1"},
        "question": "Describe this image.",
        "method": "",
        "tokens": 64,
    }
    return {name: value for name, value in {**given, **changes}.items() if value is not None}
