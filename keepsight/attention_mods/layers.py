"""Chooses the layers that a method acts on."""

from __future__ import annotations

import math
from collections.abc import Iterable

from keepsight.errors import InvalidParameter
from keepsight.target import Target


def chosen_layers(
    method: str, target: Target, layers: tuple[int, ...] | None, default: Iterable[int]
) -> frozenset[int]:
    """Returns ``layers`` where they are given, else ``default``.

    Args:
        method: the name of the method, for messages.
        target: the model and its inputs.
        layers: numbers of decoder layers from 0 on, or None.
        default: the layers of the method for this model.

    Raises:
        InvalidParameter: the model has no such layer.
    """
    count = len(target.layers)
    picked = frozenset(default if layers is None else layers)
    # Negative numbers are refused as well, since they do not count from the end here.
    if bad := sorted(layer for layer in picked if not 0 <= layer < count):
        raise InvalidParameter(f"{method}: {target.name} has layers 0 to {count - 1}, not {bad[0]}")
    return picked


def last_layers(count: int, share: float) -> range:
    """Returns the last ``round(share · count)`` of ``count`` layers, with halves rounded up."""
    # Python's ``round`` would take halves to the even number.
    return range(count - math.floor(share * count + 0.5), count)
