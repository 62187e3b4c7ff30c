"""One line of the parity table."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """How often something of one reference file was compared with the official result, and how often it differed."""

    file: str
    """The reference file, relative to the reference folder."""
    what: str
    """What was compared: "pattern: words", "figures of the opera parser", …"""
    compared: int
    differing: int
