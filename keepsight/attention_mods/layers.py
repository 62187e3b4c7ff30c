"""Chooses the layers that a method acts on."""

from __future__ import annotations

import math
from collections.abc import Iterable

from keepsight.errors import InvalidParameter, UnsupportedModel
from keepsight.target import Target


def chosen_layers(
    method: str,
    target: Target,
    layers: tuple[int, ...] | None,
    default: Iterable[int],
    *,
    in_attention: bool = False,
) -> frozenset[int]:
    """Returns ``layers`` where they are given, else ``default``.

    Args:
        method: the name of the method, for messages.
        target: the model and its inputs.
        layers: numbers of decoder layers from 0 on, or None.
        default: the layers of the method for this model.
        in_attention: whether the method acts inside attention. Layers that have none (linear ones and convolutions of hybrid
            decoders, as their configuration says) are then left out of the default.

    Raises:
        InvalidParameter: the model has no such layer, or a given layer has no attention to act in.
        UnsupportedModel: none of the default layers has attention.
    """
    count = len(target.layers)
    picked = frozenset(default if layers is None else layers)
    # Negative numbers are refused as well, since they do not count from the end here.
    if bad := sorted(layer for layer in picked if not 0 <= layer < count):
        raise InvalidParameter(f"{method}: {target.name} has layers 0 to {count - 1}, not {bad[0]}")
    without = picked & target.layers_without_attention if in_attention else frozenset()
    if not without:
        return picked
    if layers is not None:
        raise InvalidParameter(
            f"{method}: layer {min(without)} of {target.name} has no softmax attention"
            f" ({target.text_config.layer_types[min(without)]}): leave it out of layers"
        )
    if picked == without:
        raise UnsupportedModel(
            f"{target.name}: none of the layers that {method} acts in by default has softmax attention: give layers"
        )
    return picked - without


def last_layers(count: int, share: float) -> range:
    """Returns the last ``round(share · count)`` of ``count`` layers, with halves rounded up."""
    # Python's ``round`` would take halves to the even number.
    return range(count - math.floor(share * count + 0.5), count)
