"""Which layers a method acts on."""

from __future__ import annotations

import math
from collections.abc import Iterable

from keepsight.errors import InvalidParameter
from keepsight.target import Target


def chosen_layers(
    method: str, target: Target, layers: tuple[int, ...] | None, default: Iterable[int]
) -> frozenset[int]:
    """``layers`` where given, else ``default``.

    Raises:
        InvalidParameter: the model has no such layer.
    """
    count = len(target.layers)
    picked = frozenset(default if layers is None else layers)
    if bad := sorted(layer for layer in picked if not 0 <= layer < count):
        raise InvalidParameter(f"{method}: {target.name} has layers 0 to {count - 1}, not {bad[0]}")
    return picked


def last_layers(count: int, share: float) -> range:
    """The last ``round(share · count)`` of ``count`` layers."""
    return range(count - math.floor(share * count + 0.5), count)
