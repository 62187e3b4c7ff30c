"""One line of the parity table."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import NamedTuple

SHOWN = 3


class Row(NamedTuple):
    """How often something of one reference file was compared with the official result, and how often it differed."""

    file: str
    """The reference file, relative to the reference folder."""
    what: str
    """What was compared: "pattern: words", "figures of the opera parser", …"""
    compared: int
    differing: int


def tally(file: str, what: str, pairs: Iterable[tuple[object, object, object]]) -> Row:
    """Count pairs of ours and theirs that are not equal; the first ones are shown on stderr.

    `pairs` holds (what it is about, ours, theirs). Floats are equal within 1e-12.
    """
    compared = differing = 0
    for about, ours, theirs in pairs:
        compared += 1
        if not same(ours, theirs):
            differing += 1
            if differing <= SHOWN:
                print(f"{file}, {what}: {about!r}: ours {ours!r}, theirs {theirs!r}", file=sys.stderr)
    return Row(file, what, compared, differing)


def same(ours: object, theirs: object) -> bool:
    """Whether two figures, texts or (nested) lists of them are equal, floats but for their last digits."""
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, float) and isinstance(theirs, (int, float)):
        return abs(ours - theirs) <= 1e-12
    return ours == theirs
